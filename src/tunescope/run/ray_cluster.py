"""Executor for several machines under Ray: one task per step, which starts the step's worker on the node that Ray chose.

All truth is in the store, which all machines share. Ray only places work: a lost node costs the attempt that ran on it, and a lost
head costs nothing but the run of `tunescope run` that was connected to it.
"""

import os
import signal
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope import __version__
from tunescope.errors import PrerequisiteError
from tunescope.study.schema import Kind, RaySpec

from .launcher import NO_FOLDER, run_to_end
from .lease import read_lease
from .local import GRACE_S, PLAIN_START, Ended
from .worker import BUG

MACHINE = "machine:"
"""Prefix of the custom resource by which a node says which machine of the study's placement it is: `machine:vm1`."""
MACHINE_SHARE = 0.001
"""What a placed step takes of it: nodes offer 1, and CPUs and GPUs are what limits the number of steps."""
CHECK_S = 60.0
KILLED = -signal.SIGKILL


@dataclass
class _Task:
    """A submitted step."""

    folder: Path
    kind: Kind
    ref: Any
    machine: str | None
    """The machine it was pinned to when it was submitted."""
    losses: int = 0
    cancelled: bool = False


class RayExecutor:
    """Runs workers as tasks of a Ray cluster.

    Args:
        spec: address, GPUs a step, how many node losses a step survives.
        jobs: steps at once; None: as many as the cluster has room for.
        threads: CPU cores of each step.
        device: `auto` takes GPUs when the cluster has any.
        machines: step id -> machine of the study's placement. A machine that no node offers is no constraint.
        root: the study's folder.

    Raises:
        PrerequisiteError: no Ray, no cluster, or nodes that do not share the folder or run another version.
    """

    def __init__(self, spec: RaySpec, jobs: int | None, threads: int, device: str, machines: Mapping[str, str | None], root: Path):
        self._ray = _connect(spec.address)
        self._spec, self._jobs, self._threads, self._machines = spec, jobs, threads, machines
        self._tasks: dict[str, _Task] = {}
        try:
            self.device = self._choose_device(device)
            self._check_nodes(root)
        except BaseException:
            self._ray.shutdown()
            raise

    def _nodes(self) -> list[dict[str, Any]]:
        return [n for n in self._ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]

    def _choose_device(self, wanted: str) -> str:
        gpus = self._ray.cluster_resources().get("GPU", 0)
        if wanted == "cuda" and not gpus:
            raise PrerequisiteError(
                "execution.device is cuda, but no node of the Ray cluster has a GPU: start one with `ray start --num-gpus=N`"
            )
        return "cuda" if wanted != "cpu" and gpus and self._spec.gpus_per_step else "cpu"

    def _check_nodes(self, root: Path) -> None:
        """Every node must see the store under this path and run this version: found out now, not in the middle of the night."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        root.mkdir(parents=True, exist_ok=True)
        mark = root / f".shared-{uuid.uuid4().hex[:8]}"
        mark.touch()
        look = self._ray.remote(num_cpus=0, max_retries=0)(_look)
        asked = {
            node["NodeManagerAddress"]: look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                os.getcwd(), str(mark)
            )
            for node in self._nodes()
        }
        problems = []
        try:
            for address, ref in asked.items():
                problem = self._answer(ref)
                problems += [f"node {address}: {problem}"] if problem else []
        finally:
            mark.unlink(missing_ok=True)
        if problems:
            raise PrerequisiteError("\n".join(problems))

    def _answer(self, ref: Any) -> str:
        """What is wrong with a node; "" when nothing is."""
        try:
            sees, version = self._ray.get(ref, timeout=CHECK_S)
        except self._ray.exceptions.RayError as error:
            return f"cannot run tunescope: {_last_line(error)}; install the same environment on every node"
        if version != __version__:
            return f"runs tunescope {version}, this host {__version__}: install the same on every node"
        where = os.getcwd()
        return "" if sees else f"does not see {where} as this host does: share that folder (NFS or similar) under the same path"

    @property
    def capacity(self) -> int:
        if self._jobs:
            return self._jobs
        each = [min(n["Resources"]["CPU"] // self._threads, self._by_gpu(n["Resources"])) for n in self._nodes()]
        return max(1, int(sum(each)))

    def _by_gpu(self, resources: Mapping[str, float]) -> float:
        return resources.get("GPU", 0) // self._spec.gpus_per_step if self.device == "cuda" else float("inf")

    def submit(self, step_id: str, kind: Kind, folder: Path) -> None:
        self._tasks[step_id] = self._submitted(step_id, kind, folder, losses=0)

    def _submitted(self, step_id: str, kind: Kind, folder: Path, losses: int) -> _Task:
        nodes = self._nodes()
        machine = self._machines.get(step_id)
        offering = [n for n in nodes if machine and n["Resources"].get(MACHINE + machine)]
        task = self._ray.remote(max_retries=0)(_run).options(
            name=step_id,
            num_cpus=self._cores_of(kind, offering or nodes),
            num_gpus=self._spec.gpus_per_step if self.device == "cuda" else 0,
            resources={MACHINE + str(machine): MACHINE_SHARE} if offering else {},
        )
        ref = task.remote(str(folder), os.getcwd(), self._threads, self.device)
        return _Task(folder, kind, ref, machine if offering else None, losses)

    def _cores_of(self, kind: Kind, nodes: list[dict[str, Any]]) -> float:
        """Serving measures time: it takes all cores of a node, so that no other task of the cluster runs beside it."""
        return max((n["Resources"]["CPU"] for n in nodes), default=1) if kind in PLAIN_START else self._threads

    def fits(self, step_id: str) -> bool:
        return True  # the scheduler sees to it

    def waiting(self, step_id: str) -> bool:
        """Whether a submitted step has not started: no worker holds its lease yet."""
        task = self._tasks.get(step_id)
        return task is not None and read_lease(task.folder) is None

    def poll(self, timeout_s: float) -> list[Ended]:
        if not self._tasks:
            time.sleep(timeout_s)
            return []
        self._free_those_waiting_for_a_lost_machine()
        by_ref = {task.ref: step_id for step_id, task in self._tasks.items()}
        with _lost_head():
            ready, _ = self._ray.wait(list(by_ref), num_returns=1, timeout=timeout_s)
            ended = [self._ended(by_ref[ref]) for ref in ready]
        return [e for e in ended if e is not None]

    def _ended(self, step_id: str) -> Ended | None:
        """How a task ended; None when its node was lost and it was submitted again."""
        task = self._tasks.pop(step_id)
        try:
            code = self._ray.get(task.ref)
            if code == NO_FOLDER:
                _note(task.folder, f"a node of the cluster does not see {task.folder} below {os.getcwd()}: share it under the same path")
            return Ended(step_id, code)
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError) as error:
            if task.cancelled or task.losses >= self._spec.node_retries:
                return Ended(step_id, KILLED)
            _note(task.folder, f"the machine or its Ray worker was lost ({_last_line(error)}); the step starts anew elsewhere")
            self._tasks[step_id] = self._submitted(step_id, task.kind, task.folder, task.losses + 1)
            return None
        except self._ray.exceptions.TaskCancelledError:
            return Ended(step_id, KILLED)
        except self._ray.exceptions.RayError as error:
            _note(task.folder, f"Ray could not run the step: {_last_line(error)}")
            return Ended(step_id, BUG)

    def _free_those_waiting_for_a_lost_machine(self) -> None:
        offered = {name for node in self._nodes() for name in node["Resources"]}
        for step_id, task in list(self._tasks.items()):
            if task.machine and MACHINE + task.machine not in offered and self.waiting(step_id):
                self._ray.cancel(task.ref, force=True)
                self._tasks[step_id] = self._submitted(step_id, task.kind, task.folder, task.losses)

    def cancel(self, step_id: str) -> None:
        task = self._tasks.get(step_id)
        if task:
            task.cancelled = True
            self._ray.cancel(task.ref, force=True)

    def close(self) -> None:
        folders = [task.folder for task in self._tasks.values()]
        for step_id in self._tasks:
            self.cancel(step_id)
        limit = time.monotonic() + GRACE_S
        while any(read_lease(folder) for folder in folders) and time.monotonic() < limit:
            time.sleep(0.1)
        self._tasks.clear()
        self._ray.shutdown()


def _run(folder: str, cwd: str, threads: int, device: str) -> int:
    """The task."""
    import ray

    gpus = ",".join(str(i) for i in ray.get_gpu_ids()) if device == "cuda" else None
    return run_to_end(folder, cwd, threads, device, gpus)


def _look(cwd: str, mark: str) -> tuple[bool, str]:
    """On a node: whether it sees a file of this host, and its version."""
    return Path(cwd, mark).is_file(), __version__


def _connect(address: str) -> Any:
    """Connect to a running cluster; one is never started here.

    Raises:
        PrerequisiteError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise PrerequisiteError(f"the executor ray needs Ray ({error}): pip install 'tunescope[cluster]' on every machine") from error
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace="tunescope")
    except Exception as error:  # ConnectionError, RuntimeError, ValueError or AuthenticationError, by what exactly is wrong
        raise PrerequisiteError(
            f"no Ray cluster at execution.ray.address={address}: {_last_line(error)}; "
            "start one with `ray start` (docs/cluster.md), or use --executor local"
        ) from error
    for number, handler in handlers.items():
        signal.signal(number, handler)  # Ray's own would turn a polite kill into another exit code
    return ray


@contextmanager
def _lost_head() -> Iterator[None]:
    """Turn what Ray raises without its head into one line."""
    import ray

    try:
        yield
    except (ray.exceptions.RaySystemError, ray.exceptions.LocalRayletDiedError, ConnectionError) as error:
        raise PrerequisiteError(
            f"the Ray head was lost ({_last_line(error)}): start it again (docs/cluster.md), then the same command; finished steps are kept"
        ) from error


def _note(folder: Path, text: str) -> None:
    with (folder / "log.txt").open("a") as log:
        log.write(f"--- {text}\n")


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
