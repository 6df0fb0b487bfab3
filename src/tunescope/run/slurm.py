"""Executor for a Slurm cluster through submitit: one job per step, which starts the step's worker on its node.

A job lives without the driver: when the driver is killed its jobs go on, and a later `tunescope run` takes up what they finished.
submitit hands the function to the job in a pickle, in a folder that only this user can read; nothing here reads one back.
"""

import os
import signal
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.errors import PrerequisiteError
from tunescope.study.schema import Kind, SlurmSpec

from .launcher import run_to_end
from .lease import read_lease
from .local import PLAIN_START, Ended

DEFAULT_JOBS = 64
"""Jobs in the queue at once when the study names no number: Slurm decides how many run."""
LOOK_S, QUEUE_S = 0.5, 5.0
"""Seconds between looks at the files that jobs leave, and between questions to Slurm."""
KILLED = -signal.SIGKILL


@dataclass
class _Job:
    folder: Path
    job: Any
    code: Path
    """Where the job leaves the worker's exit code; a job that was killed leaves none."""
    absences: int = 0
    """Times in a row that Slurm did not know it any more. Once may be a file system that lags behind the queue."""


class SlurmExecutor:
    """Runs workers as Slurm jobs.

    Args:
        spec: partition, limits and further sbatch options.
        jobs: jobs in the queue at once.
        threads: CPU cores of each step.
        device: `auto` takes GPUs when `spec.gpus_per_step` asks for any.
        root: the study's folder; job files go to `slurm/` below it.
        cluster: submitit's name of the backend; `debug` runs each job in this process when it is polled.

    Raises:
        PrerequisiteError: submitit is not installed, or this is no host of a Slurm cluster.
    """

    def __init__(self, spec: SlurmSpec, jobs: int | None, threads: int, device: str, root: Path, cluster: str = "slurm"):
        self._spec, self._jobs, self._threads = spec, jobs, threads
        if device == "cuda" and not spec.gpus_per_step:
            raise PrerequisiteError("execution.device is cuda, but execution.slurm.gpus_per_step is 0: ask for at least one")
        self.device = "cuda" if device != "cpu" and spec.gpus_per_step else "cpu"
        self._folder = root / "slurm"
        self._cluster = cluster
        self.queue()
        self._running: dict[str, _Job] = {}
        self._asked = 0.0

    @property
    def capacity(self) -> int:
        return self._jobs or DEFAULT_JOBS

    def submit(self, step_id: str, kind: Kind, folder: Path) -> None:
        queue = self.queue()
        queue.update_parameters(**self.parameters(step_id, kind))
        code = self._folder / f"{uuid.uuid4().hex}.code"
        job = queue.submit(_run, str(folder), os.getcwd(), self._threads, self.device, str(code))
        self._running[step_id] = _Job(folder, job, code)

    def queue(self) -> Any:
        """A fresh submitit executor: one that is used again keeps what an earlier step asked for."""
        return _open(self._folder, self._cluster)

    def parameters(self, step_id: str, kind: Kind) -> dict[str, Any]:
        """What is asked of Slurm for a step, in submitit's terms. Serving measures time: it has its node to itself."""
        spec = self._spec
        wanted = {
            "name": step_id, "timeout_min": spec.time_min, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": self._threads,
            "gpus_per_node": spec.gpus_per_step if self.device == "cuda" else None, "mem_gb": spec.mem_gb,
            "slurm_partition": spec.partition, "slurm_account": spec.account, "slurm_qos": spec.qos,
            "slurm_setup": list(spec.setup) or None, "slurm_exclusive": True if kind in PLAIN_START else None,
            "slurm_additional_parameters": dict(spec.options) or None,
        }  # fmt: skip
        return {key: value for key, value in wanted.items() if value is not None}

    def fits(self, step_id: str) -> bool:
        return True  # the scheduler sees to it

    def waiting(self, step_id: str) -> bool:
        """Whether a job has not started its worker: no lease is held yet."""
        return step_id in self._running and read_lease(self._running[step_id].folder) is None

    def poll(self, timeout_s: float) -> list[Ended]:
        limit = time.monotonic() + timeout_s
        while True:
            self._ask()
            ended = [Ended(i, code) for i, job in self._running.items() if (code := _exit_code(job)) is not None]
            if ended or time.monotonic() >= limit:
                break
            time.sleep(min(LOOK_S, timeout_s))
        for item in ended:
            self._running.pop(item.step_id).code.unlink(missing_ok=True)
        return ended

    def _ask(self) -> None:
        """Note which jobs Slurm does not know any more; submitit's debug jobs run here, when they are asked."""
        if self._cluster == "debug":
            for running in self._running.values():
                running.job.done()
        elif time.monotonic() - self._asked > QUEUE_S:
            self._asked, queued = time.monotonic(), _queued()
            for running in self._running.values():
                known = queued is None or running.job.job_id in queued
                running.absences = 0 if known else running.absences + 1

    def cancel(self, step_id: str) -> None:
        if step_id in self._running:
            self._running[step_id].job.cancel(check=False)

    def close(self) -> None:
        for step_id in self._running:
            self.cancel(step_id)
        self._running.clear()


def _exit_code(running: _Job) -> int | None:
    """The worker's exit code; KILLED when the job is gone and left none; None while it is on its way."""
    if running.code.exists():
        return int(running.code.read_text())
    return KILLED if running.absences >= 2 else None


def _queued() -> set[str] | None:
    """Ids of this user's jobs that wait or run; None when Slurm does not answer. (sacct would need an accounting database.)"""
    try:
        done = subprocess.run(["squeue", "--me", "--noheader", "--format=%A"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None


def _run(folder: str, cwd: str, threads: int, device: str, code: str) -> None:
    """The job. Slurm has set CUDA_VISIBLE_DEVICES."""
    ended = run_to_end(folder, cwd, threads, device, None)
    path = Path(cwd, code)
    path.with_suffix(".partial").write_text(str(ended))
    path.with_suffix(".partial").rename(path)


def _open(folder: Path, cluster: str) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise PrerequisiteError(f"the executor slurm needs submitit ({error}): pip install 'tunescope[slurm]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    try:
        return submitit.AutoExecutor(folder, cluster=cluster)
    except RuntimeError as error:
        raise PrerequisiteError(f"this is no host of a Slurm cluster ({error}): run there, or use --executor local") from error
