"""Every run's step-0 states against the base probe: they must agree within the noise floor (LoRA's B starts at zero)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunescope.drift.gram import StatesError
from tunescope.drift.noise import layer_floors, read_noise, scalar_floors
from tunescope.drift.runs import DriftRun
from tunescope.drift.similarity import cka_drift
from tunescope.drift.states import POOLINGS, ProbeStates, load_states
from tunescope.records import read_step


@dataclass(frozen=True)
class BaseProbe:
    """A finished base-probe step: states and noise floor."""

    states: ProbeStates
    noise: pd.DataFrame

    @property
    def probe_sha256(self) -> str:
        return self.states.probe_sha256

    def scalar_floor(self, pooling: str) -> float:
        """The registered scalar below which drift is below resolution: the largest over conditions."""
        return max(scalar_floors(self.noise, pooling).values())

    def floors(self, pooling: str) -> dict[str, Any]:
        layers = {k: v for (k, p), v in layer_floors(self.noise).items() if p == pooling and k > 0}
        return {
            "scalar": self.scalar_floor(pooling),
            "conditions": scalar_floors(self.noise, pooling),
            "layers": [layers[k] for k in sorted(layers)],
        }


def find_base_probe(upstream: Mapping[str, Path], task: str) -> BaseProbe | None:
    """The base-probe step of a task among the upstream steps, or None."""
    for _, folder in sorted(upstream.items()):
        step = read_step(folder)
        if step.inputs.get("kind") == "base-probe" and step.inputs.get("task") == task:
            return BaseProbe(load_states(folder / "probe" / "base.safetensors", extras=False), read_noise(folder))
    return None


def step_zero_drift(runs: list[DriftRun], base: BaseProbe | None, progress: Callable[[int, int, str], None]) -> list[dict[str, Any]]:
    """Per run, the largest debiased-CKA drift of its step-0 states from the base probe, with the floor at that layer."""
    if base is None:
        return []
    floors = layer_floors(base.noise)
    rows = []
    for i, run in enumerate(runs):
        progress(i, len(runs), f"step 0 of {run.step.id}")
        path = run.step.folder / "probe" / "step-0.safetensors"
        if run.role == "search" and not path.is_file():
            continue  # search runs need not keep states
        states = load_states(path, probe_sha256=base.probe_sha256, extras=False)
        if states.layers.keys() != base.states.layers.keys():
            raise StatesError(f"{path}: layers differ from those of the base probe {base.states.source}")
        rows.append({"step": run.step.id, **_worst(states, base, floors)})
    return rows


def _worst(states: ProbeStates, base: BaseProbe, floors: dict[tuple[int, str], float]) -> dict[str, Any]:
    """The layer and pooling with the largest drift beyond its floor."""
    drifts = {}
    for layer, pooling in sorted(states.layers):
        if pooling in POOLINGS and layer > 0:
            drifts[layer, pooling] = _drift(states, base.states, layer, pooling)
    layer, pooling = max(drifts, key=lambda key: drifts[key] - floors.get(key, 0.0))
    drift, floor = drifts[layer, pooling], floors.get((layer, pooling), 0.0)
    return {"max_drift": drift, "layer": layer, "pooling": pooling, "floor": floor, "ok": drift <= floor}


def _drift(states: ProbeStates, base: ProbeStates, layer: int, pooling: str) -> float:
    x, y = base.layers[layer, pooling], states.layers[layer, pooling]
    if np.array_equal(x, y):
        return 0.0
    try:
        return cka_drift(base.gram(layer, pooling), y)
    except StatesError as error:
        raise StatesError(f"{states.source}, layer {layer}, {pooling}: {error}") from error
