"""Executor for one machine: a fresh process per step, forked from a server that has the heavy imports loaded (CPU), or started plainly."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from tunescope.forking import environment, start_server
from tunescope.study.schema import Kind

from .environment import worker_environment
from .gpus import GpuRoom
from .launcher import start
from .lease import Process
from .worker import child_main

PRELOAD = (
    "tunescope.cli", "tunescope.run.provenance", "tunescope.tracking", "numpy", "pandas", "torch", "transformers.trainer", "peft",
    "wandb", "wandb.sdk.launch", "tunescope.data.prepare", "tunescope.train.finetune", "tunescope.train.baselines",
    "tunescope.drift.drift_analysis", "tunescope.analysis.correlate",
)  # fmt: skip
"""Loaded once in the fork server: 8 to 10 s of imports that each step would pay otherwise, 2 s of them wandb.sdk.launch, to start a run.

A module that is missing is skipped.
"""
PLAIN_START: frozenset[Kind] = frozenset({"serve"})
"""Kinds that are always started plainly: an inference engine starts processes and threads of its own."""
GRACE_S = 5.0


@dataclass(frozen=True)
class Ended:
    """A worker that has ended; a negative code is the signal that killed it."""

    step_id: str
    code: int


class Executor(Protocol):
    """Where steps run. Knows nothing of plans and results."""

    device: str
    """`cpu` or `cuda`: what its workers compute on."""

    @property
    def capacity(self) -> int:
        """Steps that may run at once."""
        ...

    def fits(self, step_id: str) -> bool:
        """Whether there is memory for one more step like this beside those that run."""
        ...

    def submit(self, step_id: str, kind: Kind, folder: Path) -> None:
        """Start the worker of a prepared folder."""
        ...

    def poll(self, timeout_s: float) -> list[Ended]:
        """Workers that ended since the last call; waits up to `timeout_s` for one."""
        ...

    def waiting(self, step_id: str) -> bool:
        """Whether a submitted step still waits for a machine (then no time limit runs)."""
        ...

    def cancel(self, step_id: str) -> None:
        """Kill a worker and its children; `poll` reports it."""
        ...

    def close(self) -> None:
        """End every worker and wait for it."""
        ...


class LocalExecutor:
    """Runs workers as child processes.

    Args:
        jobs: steps at once.
        threads: threads of each worker.
        device: `cpu` or `cuda`; with CUDA workers are started plainly, because a forked process cannot use CUDA safely.
        gpus: which steps share which GPU; None on a CPU.
        context: how CPU workers are forked.
        log: file for what the fork server prints while it imports.
    """

    def __init__(
        self,
        jobs: int,
        threads: int,
        device: str,
        gpus: GpuRoom | None = None,
        context: BaseContext | None = None,
        log: Path | None = None,
    ):
        self._jobs, self._threads, self.device, self._gpus, self._log = jobs, threads, device, gpus, log
        self._context = context or multiprocessing.get_context("forkserver")
        self._driver = Process.current()
        self._workers: dict[str, subprocess.Popen[bytes] | BaseProcess] = {}
        self._server_started = False

    @property
    def capacity(self) -> int:
        return self._jobs

    def fits(self, step_id: str) -> bool:
        return self._gpus is None or self._gpus.fits(step_id)

    def submit(self, step_id: str, kind: Kind, folder: Path) -> None:
        gpu = self._gpus.take(step_id) if self._gpus else None
        plain = self.device == "cuda" or kind in PLAIN_START
        self._workers[step_id] = self._plain(folder, gpu) if plain else self._forked(folder)

    def _plain(self, folder: Path, gpu: str | None) -> subprocess.Popen[bytes]:
        return start(folder, worker_environment(self._threads, self.device, gpu), self._driver)

    def _forked(self, folder: Path) -> BaseProcess:
        self._start_server()
        worker = self._context.Process(target=child_main, args=(folder, self._driver))  # type: ignore[attr-defined]
        with environment(worker_environment(self._threads, self.device)):  # a fork server that died is started again here
            worker.start()
        return worker

    def _start_server(self) -> None:
        """Start the fork server with the workers' environment; its children inherit it."""
        if self._server_started or self._context.get_start_method() != "forkserver":
            return
        start_server(PRELOAD, worker_environment(self._threads, self.device), self._log)
        self._server_started = True

    def poll(self, timeout_s: float) -> list[Ended]:
        limit = time.monotonic() + timeout_s
        while True:
            ended = [Ended(i, code) for i, w in self._workers.items() if (code := _exit_code(w)) is not None]
            if ended or time.monotonic() >= limit:
                break
            time.sleep(0.05)
        for item in ended:
            worker = self._workers.pop(item.step_id)
            if self._gpus:
                self._gpus.release(item.step_id)
            if item.code != 0:
                _signal(worker, signal.SIGKILL)  # children that a dying worker left behind, and a worker whose fork server died
        return ended

    def waiting(self, step_id: str) -> bool:
        return False  # its process starts when it is submitted

    def cancel(self, step_id: str) -> None:
        if step_id in self._workers:
            _signal(self._workers[step_id], signal.SIGKILL)

    def close(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):  # what a SIGKILL ended is waited for too: it does not vanish at once
            for worker in self._workers.values():
                _signal(worker, number)
            limit = time.monotonic() + GRACE_S
            while any(_exit_code(worker) is None for worker in self._workers.values()) and time.monotonic() < limit:
                time.sleep(0.05)
        self._workers.clear()


def _exit_code(worker: subprocess.Popen[bytes] | BaseProcess) -> int | None:
    return worker.poll() if isinstance(worker, subprocess.Popen) else worker.exitcode


def _signal(worker: subprocess.Popen[bytes] | BaseProcess, number: int) -> None:
    """Signal a worker's whole session; before it has one, the worker alone."""
    assert worker.pid is not None
    try:
        os.killpg(worker.pid, number)
    except ProcessLookupError:
        if _exit_code(worker) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, number)
