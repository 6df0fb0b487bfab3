"""The folders of one study: where each step lives, what a finished one must hold, and how a superseded one moves aside."""

import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from tunescope.records import FinishedStep, StepResult
from tunescope.study.identity import canonical, fingerprint
from tunescope.study.inputs import StepInputs
from tunescope.study.schema import Kind, Tracking

from .files import read_json, sha256_file, write_json
from .lease import read_lease

FORMAT = 1
RESULT_KEYS = {"fingerprint", "digest", "metrics", "resources", "outputs", "content", "files", "notes"}
_BOOKKEEPING = {
    "step.json",
    "result.json",
    "error.json",
    "provenance.json",
    "log.txt",
    "lease.json",
    "lease.lock",
    "metrics.jsonl",
}
_TRANSIENT = ("wandb", "checkpoint", ".")
"""Prefixes of top-level names that may vanish from a finished folder (see `clean`)."""


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
        self._parsed: dict[str, tuple[tuple[int, int], dict[str, Any] | None]] = {}

    @classmethod
    def of_folder(cls, folder: Path, step_id: str) -> "Store":
        """The store a step folder belongs to."""
        return cls(folder.parents[len(step_id.split("/"))])

    def folder(self, step_id: str) -> Path:
        return self.root / "steps" / step_id

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
        """A usable result, or None and what is wrong with it ("" when there is none)."""
        path = self.folder(step_id) / "result.json"
        if not path.exists():
            return None, ""
        value, record = self._read_cached(step_id, path), self.record(step_id)
        if value is None or record is None:
            return None, f"{'result.json' if record else 'step.json'} is cut off or unreadable"
        problem = _problem(self.folder(step_id), value)
        if problem:
            return None, problem
        return FinishedStep(id=step_id, folder=self.folder(step_id), inputs=record.inputs, result=value), ""

    def _read_cached(self, step_id: str, path: Path) -> dict[str, Any] | None:
        """Parse result.json once per version of the file."""
        stat = path.stat()
        key = (stat.st_mtime_ns, stat.st_size)
        if self._parsed.get(step_id, (None,))[0] != key:
            self._parsed[step_id] = (key, read_json(path))
        return self._parsed[step_id][1]

    def prepare(self, record: StepRecord) -> Path | None:
        """Make a step's folder ready to start; what is superseded moves to the attic.

        Returns:
            The folder, or None when another live worker is in it.
        """
        folder = self.folder(record.id)
        with self._locked():
            if read_lease(folder):
                return None
            if self._superseded(record):
                self._to_attic(record.id)
            folder.mkdir(parents=True, exist_ok=True)
            self.forget_failure(record.id)
            write_json(folder / "step.json", record.model_dump(mode="json"))
        return folder

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

    def _locked(self) -> FileLock:
        self.root.mkdir(parents=True, exist_ok=True)
        return FileLock(self.root / ".store.lock", timeout=60)

    def fail(self, record: StepRecord, kind: str, message: str, *, prerequisite: bool = False, retryable: bool = False) -> None:
        """Write `error.json`."""
        failure = Failure(record.fingerprint, kind, message, prerequisite, retryable)
        write_json(self.folder(record.id) / "error.json", {**failure.__dict__, "time": time.time()})

    def forget_failure(self, step_id: str) -> None:
        """Let a failed step be tried again; its log stays."""
        (self.folder(step_id) / "error.json").unlink(missing_ok=True)

    def finish(self, record: StepRecord, result: StepResult, started: float) -> None:
        """Write `result.json`, last and in one step: its presence means success."""
        folder = self.folder(record.id)
        metrics = [m.model_dump(mode="json") for m in result.metrics]
        content = {path: sha256_file(folder / path) for path in sorted(set(result.content))}
        now = time.time()
        digest = content_digest(metrics, result.outputs, content)
        value = {
            "format": FORMAT, "id": record.id, "fingerprint": record.fingerprint, "digest": digest,
            "metrics": metrics, "resources": [m.model_dump(mode="json") for m in result.resources], "outputs": result.outputs,
            "content": content, "files": dict(_files(folder)), "notes": result.notes, "started": started, "finished": now,
            "wall_s": now - started,
        }  # fmt: skip
        write_json(folder / "result.json", value)

    def attic(self) -> Path:
        return self.root / "attic"

    def checkpoints(self) -> list[Path]:
        """Checkpoint folders of finished steps."""
        return sorted(p for p in self.root.glob("steps/**/checkpoint*") if p.is_dir() and (p.parent / "result.json").exists())

    def clean(self) -> int:
        """Remove attic and checkpoints; returns the number of folders removed."""
        folders = [p for p in [self.attic(), *self.checkpoints()] if p.exists()]
        for folder in folders:
            shutil.rmtree(folder)
        return len(folders)


def content_digest(metrics: list[dict[str, Any]], outputs: Mapping[str, Any], content: Mapping[str, str]) -> str:
    """SHA-256 of a result's numbers, facts and deterministic artefacts; never of its timings."""
    return fingerprint({"metrics": metrics, "outputs": outputs, "content": content})


def _problem(folder: Path, value: dict[str, Any]) -> str:
    """Why a parsed result cannot be used; "" when it can."""
    lacking = RESULT_KEYS - value.keys()
    if lacking:
        return f"result.json lacks {', '.join(sorted(lacking))}"
    if content_digest(value["metrics"], value["outputs"], value["content"]) != value["digest"]:
        return "result.json was changed after it was written (its digest does not match)"
    for path, size in value["files"].items():
        file = folder / path
        if not file.exists():
            return f"{path} is missing"
        if file.stat().st_size != size:
            return f"{path} has {file.stat().st_size} bytes, {size} were recorded"
    return ""


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of every lasting artefact of a step folder."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.parts[0] not in _BOOKKEEPING and not relative.parts[0].startswith(_TRANSIENT):
            yield str(relative), path.stat().st_size
