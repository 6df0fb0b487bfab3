"""What crosses the doors between rooms: metrics, a step's context, a step's result, and the files of a finished step."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict


class Metric(BaseModel):
    """One number that knows what it is. Shares are fractions (0..1) with unit `fraction`, never per cent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    value: float | None
    unit: str
    split: str | None = None
    n: int | None = None
    higher_is_better: bool | None = None


class Tracker(Protocol):
    """Where a step logs its time series (see tracking.py). Never raises."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def histogram(self, name: str, values: Any, step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def rewind(self, step: int) -> None: ...


@dataclass(frozen=True)
class StepContext:
    """Everything a step function may touch besides its inputs."""

    folder: Path
    """The step's own folder; write artefacts here."""
    data_dir: Path
    """Prepared task data (`<data_dir>/<task>`)."""
    upstream: Mapping[str, Path]
    """Finished steps this one needs: step id -> folder."""
    device: str
    """`cpu` or `cuda`."""
    tracker: Tracker
    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    files_dir: Path | None = None
    """Official distribution files, for data steps of source `files`."""


@dataclass(frozen=True)
class StepResult:
    """What a step function returns. `content` names the deterministic artefacts; their SHA-256 make the step's content digest."""

    metrics: list[Metric] = field(default_factory=list)
    """Deterministic numbers; part of the content digest."""
    resources: list[Metric] = field(default_factory=list)
    """Times, memory, throughput; never part of the digest."""
    outputs: dict[str, Any] = field(default_factory=dict)
    """Small deterministic facts other rooms read (JSON types only); part of the digest."""
    content: list[str] = field(default_factory=list)
    """Artefact paths relative to the step folder."""
    notes: list[str] = field(default_factory=list)
    """Red flags and remarks in words, shown by `status` and the report; never part of the digest."""


@dataclass(frozen=True)
class FinishedStep:
    """A finished step read back from its folder."""

    id: str
    folder: Path
    inputs: dict[str, Any]
    result: dict[str, Any]

    def metric(self, name: str, split: str | None = None) -> float | None:
        """The value of a metric (or resource) by name, None when absent."""
        for row in [*self.result["metrics"], *self.result["resources"]]:
            if row["name"] == name and (split is None or row["split"] == split):
                return row["value"]
        return None

    @property
    def outputs(self) -> dict[str, Any]:
        return self.result["outputs"]


def store_root(folder: Path) -> Path | None:
    """The study's folder that holds a step's folder, where the lock of model revisions lives; None outside a store."""
    return next((p.parent for p in folder.parents if p.name == "steps"), None)


def read_step(folder: Path) -> FinishedStep:
    """Read `step.json` and `result.json` of a finished step folder."""
    step = json.loads((folder / "step.json").read_text())
    result = json.loads((folder / "result.json").read_text())
    return FinishedStep(id=step["id"], folder=folder, inputs=step["inputs"], result=result)
