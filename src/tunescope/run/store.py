"""The folders of one study: where each step lives, what a finished one must hold, and how a superseded one moves aside."""

import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from tunescope.records import FinishedStep, StepResult
from tunescope.study.identity import canonical
from tunescope.study.inputs import StepInputs
from tunescope.study.schema import Kind, Tracking

from .files import TEMPORARY, read_json, write_json
from .lease import FOREIGN_LIMIT_S, SILENCE_S, Lease, last_lease, unused
from .sealing import FORMAT, changed, sealed, unusable

ASIDE = ".merging-"
"""Beginning of the names of folders where those of other stores are copied before they are moved in."""


class Launch(BaseModel):
    """How a step is run: the execution half, never part of a fingerprint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: str
    files_dir: str | None = None
    device: str = "cpu"
    threads: int = 1
    tracking: Tracking = Tracking()
    arguments: list[str] = []
    """The driver's command line, for provenance."""


class StepRecord(BaseModel):
    """`step.json`: what a step is, written before it starts."""

    model_config = ConfigDict(frozen=True)

    format: int = FORMAT
    study: str
    id: str
    kind: Kind
    phase: str
    inputs: dict[str, Any]
    upstream: dict[str, str]
    """Step id -> content digest it had when this step was prepared."""
    fingerprint: str
    launch: Launch

    @property
    def identity(self) -> dict[str, Any]:
        return identity(self.kind, self.inputs, self.upstream)


@dataclass(frozen=True)
class Failure:
    """`error.json` read back."""

    fingerprint: str
    type: str
    message: str
    prerequisite: bool
    retryable: bool


def identity(kind: Kind, inputs: StepInputs | Mapping[str, Any], upstream: Mapping[str, str]) -> dict[str, Any]:
    """What a step's fingerprint covers."""
    return {"kind": kind, "inputs": canonical(inputs), "upstream": dict(upstream), "format": FORMAT}


class Store:
    """`<runs>/<study>/`."""

    def __init__(self, root: Path):
        self.root = root
        self._folders: dict[str, Path] = {}
        """Kept: a driver asks for every folder after every step, and joining paths took half of that time."""
        self._judged: dict[str, tuple[Any, tuple[FinishedStep | None, str]]] = {}
        self._silent: dict[str, tuple[float, float]] = {}
        """Step id -> (heartbeat of another host, since when we see it stand still)."""

    @classmethod
    def of_folder(cls, folder: Path, step_id: str) -> "Store":
        """The store a step folder belongs to."""
        return cls(folder.parents[len(step_id.split("/"))])

    def folder(self, step_id: str) -> Path:
        found = self._folders.get(step_id)
        if found is None:
            found = self._folders[step_id] = self.root / "steps" / step_id
        return found

    def record(self, step_id: str) -> StepRecord | None:
        """`step.json`, None when absent or unreadable."""
        value = read_json(self.folder(step_id) / "step.json")
        try:
            return StepRecord.model_validate(value) if value else None
        except ValidationError:
            return None

    def failure(self, step_id: str) -> Failure | None:
        """`error.json`, None when absent or unreadable."""
        value = read_json(self.folder(step_id) / "error.json")
        try:
            return Failure(**{k: v for k, v in value.items() if k in Failure.__annotations__}) if value else None
        except TypeError:
            return None

    def result(self, step_id: str) -> tuple[FinishedStep | None, str]:
        """A usable result, or None and what is wrong with it ("" when there is none).

        Judged once per version of its files; a fresh Store looks again.
        """
        folder = self.folder(step_id)
        key = (_version(f"{folder}/result.json"), _version(f"{folder}/step.json"))
        if key[0] is None:
            return None, ""
        known = self._judged.get(step_id)
        if known is None or known[0] != key:
            self._judged[step_id] = known = key, self._judge(step_id)
        return known[1]

    def _judge(self, step_id: str) -> tuple[FinishedStep | None, str]:
        folder = self.folder(step_id)
        value, step = read_json(folder / "result.json"), read_json(folder / "step.json")
        if value is None or step is None:
            return None, f"{'result.json' if step else 'step.json'} is cut off or unreadable"
        problem = unusable(folder, value)
        if problem:
            return None, problem
        return FinishedStep(id=step_id, folder=folder, inputs=step["inputs"], result=value), ""

    def prepare(self, record: StepRecord, *, again: bool = False) -> Path | None:
        """Make a step's folder ready to start; what is superseded moves to the attic.

        Args:
            again: whether a usable result of this very fingerprint is superseded too (data that must be prepared anew).

        Returns:
            The folder, or None when another worker is in it, or when another driver has finished the step meanwhile.
        """
        folder = self.folder(record.id)
        with self.locked():
            if self._taken(record.id):
                return None
            result, _ = self.result(record.id)
            if result is not None and result.result["fingerprint"] == record.fingerprint and not again:
                return None
            if self._superseded(record):
                self._to_attic(record.id)
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(f".*{TEMPORARY}"):
                leftover.unlink(missing_ok=True)
            self.forget_failure(record.id)
            write_json(folder / "step.json", record.model_dump(mode="json"))
        return folder

    def adopt(self, step_id: str, source: Path, scratch: Path, check: Callable[[], None], *, instead: bool = False) -> bool:
        """Take over another store's folder of a step: copied aside first, then moved in, so that no half copy is ever seen as a result.

        A worker that a driver has just started finds the lock of its folder held, or the result in place: either way it leaves it alone.

        Args:
            scratch: a folder on the same disk that nobody else uses.
            check: raises when the folder may not move in after all; called under the lock.
            instead: whether a usable result of another fingerprint that is here moves to the attic (a stale one).

        Returns:
            False when there is a usable result here already, or a worker is in the folder.
        """
        aside = scratch / step_id
        if not self._open_to(step_id, source, instead):
            return False
        shutil.copytree(source, aside, ignore=shutil.ignore_patterns("lease.json", "lease.lock"))
        folder = self.folder(step_id)
        with self.locked(), unused(folder) as free:
            if not free or self._taken(step_id) or not self._open_to(step_id, source, instead):
                shutil.rmtree(aside)
                return False
            check()
            if folder.exists():
                self._to_attic(step_id)
            folder.parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside, folder)
        return True

    def _open_to(self, step_id: str, source: Path, instead: bool) -> bool:
        """Whether a folder may be replaced by another store's, as far as results go."""
        here = self.result(step_id)[0]
        theirs = read_json(source / "result.json") or {}
        return here is None or (instead and here.result["fingerprint"] != theirs.get("fingerprint"))

    def _taken(self, step_id: str) -> bool:
        """Whether a worker is in the folder. Another host's is given up only when its heartbeat also stands still while we watch."""
        lease = last_lease(self.folder(step_id))
        if lease is None or lease.process.here:
            return lease is not None and lease.live()
        return self._silent_s(step_id, lease) < (FOREIGN_LIMIT_S if lease.live() else SILENCE_S)

    def _silent_s(self, step_id: str, lease: Lease) -> float:
        beat, since = self._silent.get(step_id, (None, 0.0))
        if beat != lease.beat:
            since = time.monotonic()
            self._silent[step_id] = lease.beat, since
        return time.monotonic() - since

    def _superseded(self, record: StepRecord) -> bool:
        """Whether the folder holds another step's work, or a result that cannot be trusted."""
        folder = self.folder(record.id)
        if not folder.exists() or not any(folder.iterdir()):
            return False
        old = self.record(record.id)
        result, problem = self.result(record.id)
        return old is None or old.fingerprint != record.fingerprint or bool(problem) or result is not None

    def _to_attic(self, step_id: str) -> None:
        old = self.record(step_id)
        name = old.fingerprint[:16] if old else "unreadable"
        target = self.root / "attic" / name / step_id
        while target.exists():
            name += "x"
            target = self.root / "attic" / name / step_id
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(self.folder(step_id), target)

    def locked(self) -> FileLock:
        """The lock under which folders change places and the registered plan is written, by drivers and merges alike."""
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / ".store.lock", timeout=60)

    def fail(self, record: StepRecord, kind: str, message: str, *, prerequisite: bool = False, retryable: bool = False) -> None:
        """Write `error.json`."""
        failure = Failure(record.fingerprint, kind, message, prerequisite, retryable)
        write_json(self.folder(record.id) / "error.json", {**failure.__dict__, "time": time.time()})

    def forget_failure(self, step_id: str) -> None:
        """Let a failed step be tried again; its log stays."""
        (self.folder(step_id) / "error.json").unlink(missing_ok=True)

    def finish(self, record: StepRecord, result: StepResult, started: float, wall_s: float) -> None:
        """Write `result.json`, last and in one step: its presence means success. Only then are checkpoints of no use.

        Args:
            started: Unix time.
            wall_s: seconds that the step took, by a clock that cannot jump.
        """
        folder = self.folder(record.id)
        value = sealed(folder, record.id, record.fingerprint, result, started=started, wall_s=wall_s)
        write_json(folder / "result.json", value)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)

    def damaged(self, step_id: str) -> str:
        """Which deterministic artefact of a finished step is not the bytes it was; "" when all are."""
        result, problem = self.result(step_id)
        if result is None:
            return problem or "it has no result"
        return changed(result.folder, result.result["content"])

    def attic(self) -> Path:
        return self.root / "attic"

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders of finished steps."""
        return sorted(p for p in self.root.glob("steps/**/checkpoint*") if p.is_dir() and (p.parent / "result.json").exists())

    def clean(self) -> int:
        """Remove attic, checkpoints and what a killed merge left; returns the number of folders removed."""
        folders = [p for p in [self.attic(), *self.checkpoints(), *self.root.glob(f"{ASIDE}*")] if p.exists()]
        for folder in folders:
            shutil.rmtree(folder)
        return len(folders)


def _version(path: str) -> tuple[int, int, int] | None:
    """Changes whenever a file is replaced; None when there is none."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
