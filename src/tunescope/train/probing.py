"""Drift records of one run: one small file a probe, so that a killed run loses none, put together at the end."""

import os
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from tunescope.drift.probe import Probe, ProbeStates, drift_table, save_states
from tunescope.errors import StepError
from tunescope.study.schema import DriftSpec

from .precision import in_fp32

INIT_TOLERANCE = 1e-6
"""Drift allowed at step 0 for adapters whose start rewrites the base weights (PiSSA and the like): float error, not movement."""


class DriftRecorder:
    """Probes a model against the base and keeps the rows under `<rows>/step-<n>.parquet`."""

    def __init__(self, probe: Probe, base: ProbeStates, spec: DriftSpec, folder: Path, rows: Path):
        self.probe, self.base, self.spec = probe, base, spec
        self.folder = folder / "probe"
        self.rows = rows
        for place in (self.folder, rows):
            place.mkdir(parents=True, exist_ok=True)

    def start(self, model: nn.Module, *, exact: bool) -> float:
        """Probe before the first step; the model must still be the base.

        Args:
            exact: demand a drift of exactly 0 (full fine-tuning, LoRA with B = 0).

        Raises:
            StepError: the model is not the base at step 0.
        """
        drift = self.take(model, 0)
        if drift != 0 and (exact or abs(drift) > INIT_TOLERANCE):
            raise StepError(f"drift at step 0 is {drift:g} instead of 0: the model differs from its base before any training")
        save_states(self.folder / "step-0.safetensors", self.base, extras=False)
        return drift

    def take(self, model: nn.Module, step: int) -> float:
        """Probe once, keep the rows, return the mean drift over decoder layers."""
        device, name = self.probe.device, f"the probe at step {step}"
        with in_fp32(model):
            states = self.probe.states(model, internals=False, name=name, on_device=device != "cpu")
        table = drift_table(self.base, states, self.spec, False, device).assign(step=step)
        path = self.rows / f"step-{step:06d}.parquet"
        if not path.exists():  # a record that is there after a resume is sealed by a checkpoint
            _write(table, path)
        return mean_drift(table, self.spec)

    def score(self, model: nn.Module, step: int) -> tuple[pd.DataFrame, dict[str, float]]:
        """Probe the scored checkpoint and write drift.parquet with every record of the run.

        Returns the whole table, and the registered scalar `drift` with its per-block values `drift_block_<i>`.
        """
        with in_fp32(model):
            states = self.probe.states(model)
        save_states(self.folder / "scored.safetensors", states, extras=False)
        scored = drift_table(self.base, states, self.spec, True).assign(step=step)
        parts = [pd.read_parquet(path) for path in sorted(self.rows.glob("step-*.parquet"))]
        table = pd.concat([*parts, scored], ignore_index=True)
        order = ["step", "scored", "layer", "pooling", "measure", "block", "value", "n"]
        _write(table[order], self.folder.parent / "drift.parquet")
        scalars = {"drift": mean_drift(scored, self.spec)}
        return table, scalars | {f"drift_block_{b}": mean_drift(scored, self.spec, b) for b in range(self.spec.blocks)}


def mean_drift(table: pd.DataFrame, spec: DriftSpec, block: int = -1) -> float:
    """Registered scalar: mean over decoder layers 1..L of debiased-CKA drift at the primary pooling."""
    chosen = (table["measure"] == "cka_drift_debiased") & (table["pooling"] == spec.primary_pooling) & (table["layer"] > 0)
    return float(table.loc[chosen & (table["block"] == block), "value"].mean())


def _write(table: Any, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    table.to_parquet(partial, index=False)
    os.replace(partial, path)
