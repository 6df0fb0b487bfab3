"""Weight updates of one pair of runs, over the matrices the adapter targets: how far and in how many directions they moved."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import safe_open

from tunescope.drift.gram import Array
from tunescope.drift.runs import DriftRun
from tunescope.drift.weights import effective_rank, intruders, left_vectors, lora_update, relative_update_norm, stable_rank
from tunescope.errors import PrerequisiteError
from tunescope.models.loading import resolve_model
from tunescope.records import store_root
from tunescope.study.schema import ModelSpec

Progress = Callable[[int, int, str], None]
ADAPTER_KEY = re.compile(r"^base_model\.model\.(?P<matrix>.+)\.lora_(?P<side>[AB])\.weight$")
COLUMNS = ("method", "seed", "matrix", "relative_update", "stable_rank", "effective_rank", "utilisation", "intruder_dimensions")


class Weights:
    """Read-only view of the tensors in a folder of safetensors files, one at a time."""

    def __init__(self, folder: Path):
        self._files: dict[str, Path] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as stored:
                self._files |= dict.fromkeys(stored.keys(), path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __getitem__(self, name: str) -> Array:
        if name not in self._files:
            raise PrerequisiteError(f"no tensor {name} among the stored weights")
        with safe_open(self._files[name], framework="pt") as stored:
            return stored.get_tensor(name).float().numpy()


def weight_updates(
    candidate: dict[int, DriftRun], reference: dict[int, DriftRun], notes: list[str], progress: Progress
) -> pd.DataFrame | None:
    """One row per method and adapted matrix, for the first shared seed; None when weights are not kept or there is no LoRA pair.

    A reason for leaving it out is added to `notes` only when weights are there but cannot be read.
    """
    for seed in sorted(candidate.keys() & reference.keys()):
        lora, full = candidate[seed].step.folder / "adapter", reference[seed].step.folder / "model"
        if not (lora / "adapter_config.json").is_file() or not full.is_dir():
            continue
        try:
            spec = ModelSpec.model_validate(candidate[seed].step.inputs["model"])
            base = Weights(resolve_model(spec, store_root(candidate[seed].step.folder)))
            rows = list(_rows(candidate[seed], reference[seed], base, Weights(lora), Weights(full), progress))
        except PrerequisiteError as error:
            notes.append(f"weight updates left out: {error}")
            return None
        return pd.DataFrame(rows, columns=list(COLUMNS)) if rows else None
    return None


def _rows(
    candidate: DriftRun, reference: DriftRun, base: Weights, adapter: Weights, full: Weights, progress: Progress
) -> Iterator[dict[str, Any]]:
    pairs = lora_pairs(adapter)
    config = json.loads((candidate.step.folder / "adapter" / "adapter_config.json").read_text())
    for i, (matrix, (a_name, b_name)) in enumerate(sorted(pairs.items())):
        progress(i, len(pairs), f"weights of {matrix}")
        w, tuned, a, b = base[f"{matrix}.weight"], full[f"{matrix}.weight"], adapter[a_name], adapter[b_name]
        vectors = left_vectors(w)  # the costly part: once for both methods, in float32
        yield {
            "method": candidate.method,
            "seed": candidate.seed,
            "matrix": matrix,
            **_adapter_row(w, vectors, a, b, config, matrix),
        }
        yield {"method": reference.method, "seed": reference.seed, "matrix": matrix, **_full_row(w, vectors, tuned)}


def _adapter_row(w: Array, vectors: Array, a: Array, b: Array, config: dict[str, Any], matrix: str) -> dict[str, Any]:
    scaling = lora_scaling(config, matrix, a.shape[0])
    update = lora_update(a, b, scaling)
    return {
        "relative_update": update.norm / float(np.linalg.norm(w.astype(np.float64))),
        "stable_rank": update.stable_rank,
        "effective_rank": update.effective_rank,
        "utilisation": update.utilisation,
        "intruder_dimensions": intruders(vectors, w + scaling * (b @ a)),
    }


def _full_row(w: Array, vectors: Array, tuned: Array) -> dict[str, Any]:
    moved = bool((w != tuned).any())
    return {
        "relative_update": relative_update_norm(w, tuned),
        "stable_rank": stable_rank(tuned - w) if moved else None,
        "effective_rank": effective_rank(tuned - w) if moved else None,
        "utilisation": None,
        "intruder_dimensions": intruders(vectors, tuned),
    }


def lora_pairs(adapter: Weights) -> dict[str, tuple[str, str]]:
    """matrix name -> names of its A and B tensors in a PEFT adapter file."""
    sides: dict[str, dict[str, str]] = {}
    for name in adapter:
        if match := ADAPTER_KEY.match(name):
            sides.setdefault(match["matrix"], {})[match["side"]] = name
    return {matrix: (found["A"], found["B"]) for matrix, found in sides.items() if len(found) == 2}


def lora_scaling(config: dict[str, Any], matrix: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA, with PEFT's per-module patterns."""
    alpha = next((v for k, v in (config.get("alpha_pattern") or {}).items() if matrix.endswith(k)), config["lora_alpha"])
    return float(alpha / (np.sqrt(rank) if config.get("use_rslora") else rank))
