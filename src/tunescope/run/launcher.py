"""Start `tunescope run-step` as a new interpreter with its environment set, here or inside a job of a cluster."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from .environment import worker_environment
from .lease import Process

NO_FOLDER = 3
"""Exit code: the step's folder is not visible on this machine."""


def start(folder: Path, variables: Mapping[str, str], driver: Process, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start the worker of a prepared folder, in a session of its own; it ends when `driver` does."""
    command = [sys.executable, "-m", "tunescope", "run-step", str(folder), "--driver", str(driver)]
    with (cwd or Path()).joinpath(folder, "log.txt").open("ab") as log:
        return subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **variables}, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def run_to_end(folder: str, cwd: str, threads: int, device: str, gpus: str | None) -> int:
    """Run one step on the machine a scheduler chose, and wait for it.

    The worker lives and dies with this process, not with the driver, which may be on another host: when the scheduler
    kills the job, the worker notices within a second.

    Args:
        folder: the step's folder, relative to `cwd`.
        cwd: the driver's working directory; all machines see it under the same path.
        gpus: names for CUDA_VISIBLE_DEVICES; None leaves what the scheduler set.

    Returns:
        The worker's exit code, negative for a signal; NO_FOLDER when this machine does not see the folder.
    """
    if not Path(cwd, folder, "step.json").is_file():
        return NO_FOLDER
    worker = start(Path(folder), worker_environment(threads, device, gpus), Process.current(), Path(cwd))
    try:
        return worker.wait()
    finally:
        if worker.poll() != 0:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
