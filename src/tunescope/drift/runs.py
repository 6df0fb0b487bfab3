"""Drift records of finished training runs, read back and checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from tunescope.drift.gram import Array, StatesError
from tunescope.drift.states import check_probe
from tunescope.drift.table import WHOLE, registered_scalar
from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import FinishedStep, read_step

COLUMNS = {"step", "scored", "layer", "pooling", "measure", "block", "value", "n"}
SCALAR_TOLERANCE = 1e-6


@dataclass(frozen=True)
class DriftRun:
    """One training run's drift record. `drift` is the registered scalar, by `blocks` the same per probe fifth."""

    step: FinishedStep
    table: pd.DataFrame
    pooling: str
    drift: float
    blocks: tuple[float, ...]

    @property
    def method(self) -> str:
        return str(self.step.inputs["method"])

    @property
    def seed(self) -> int:
        return int(self.step.inputs["seed"])

    @property
    def role(self) -> str:
        return str(self.step.inputs["role"])

    @property
    def scored_step(self) -> int:
        return int(self.table.loc[self.table["scored"], "step"].iloc[0])

    def profile(self, measure: str = "cka_drift_debiased") -> Array:
        """A measure at the scored probe for layers 1..L, primary pooling: shape (L,)."""
        return self._rows(measure).query("scored").sort_values("layer")["value"].to_numpy()

    def series(self, measure: str = "cka_drift_debiased") -> dict[int, float]:
        """Mean over layers 1..L at every probed step."""
        return {int(k): float(v) for k, v in self._rows(measure).groupby("step", sort=True)["value"].mean().items()}

    def selection_losses(self) -> dict[int, float]:
        """Selection loss at every evaluated step, from metrics.jsonl; empty when there is none."""
        path = self.step.folder / "metrics.jsonl"
        if not path.is_file():
            return {}
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return {int(line["step"]): float(line["selection_loss"]) for line in lines if line.get("selection_loss") is not None}

    def _rows(self, measure: str) -> pd.DataFrame:
        t = self.table
        return t[(t["measure"] == measure) & (t["pooling"] == self.pooling) & (t["block"] == WHOLE) & (t["layer"] > 0)]


def read_runs(upstream: Mapping[str, Path], task: str, pooling: str, probe_sha256: str | None) -> tuple[list[DriftRun], str]:
    """All training runs of a task among the upstream steps, and the probe hash they share.

    Raises PrerequisiteError for a missing or unreadable record, StatesError when probe sets differ.
    """
    runs = []
    for name, folder in sorted(upstream.items()):
        step = read_step(folder)
        if step.inputs.get("kind") != "train" or step.inputs.get("task") != task:
            continue
        found = str(step.outputs.get("probe_sha256", ""))
        probe_sha256 = probe_sha256 or found
        check_probe(found, probe_sha256, name)
        runs.append(_read_run(step, pooling))
    if not runs or probe_sha256 is None:
        raise PrerequisiteError(f"no finished training run of {task} to compare; run its train steps first")
    return runs, probe_sha256


def _read_run(step: FinishedStep, pooling: str) -> DriftRun:
    path = step.folder / "drift.parquet"
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise PrerequisiteError(f"{step.id}: {path} is missing or damaged ({error}); run the step again") from error
    if COLUMNS - set(table.columns):
        raise PrerequisiteError(f"{step.id}: {path} lacks columns {sorted(COLUMNS - set(table.columns))}; run the step again")
    if not np.isfinite(table["value"]).all():
        bad = table[~np.isfinite(table["value"])].iloc[0]
        raise StatesError(f"{step.id}: {path} holds a non-finite {bad['measure']} at layer {bad['layer']}, step {bad['step']}")
    blocks = sorted(int(b) for b in table["block"].unique() if b != WHOLE)
    drift = registered_scalar(table, pooling)
    reported = step.metric("drift", "probe")
    if reported is not None and abs(reported - drift) > SCALAR_TOLERANCE:
        raise StepError(f"{step.id}: its result says drift {reported:.6g} but {path} gives {drift:.6g}; run the step again")
    return DriftRun(step, table, pooling, drift, tuple(registered_scalar(table, pooling, b) for b in blocks))
