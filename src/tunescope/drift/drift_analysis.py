"""The drift step of one task: all training runs' drift records side by side, candidate against reference, paired by seed.

Descriptive, with sign-flip tests; the registered verdict on drift is made in analysis from the same scalars.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunescope.drift.contrast import BAND_LEVEL, critical_layers, max_statistic, paired, simultaneous_band, summary, thirds
from tunescope.drift.crosscheck import BaseProbe, find_base_probe, step_zero_drift
from tunescope.drift.gram import Array
from tunescope.drift.noise import run_base_probe
from tunescope.drift.progress_slice import equal_quality
from tunescope.drift.runs import DriftRun, read_runs
from tunescope.drift.table import WHOLE
from tunescope.drift.updates import weight_updates
from tunescope.records import Metric, StepContext, StepResult
from tunescope.study.inputs import DriftInputs

__all__ = ["run_base_probe", "run_drift"]
FALLING = 0.8
"""A run whose final drift is below this share of its largest has drifted back, which deserves a look."""
Groups = dict[str, dict[int, DriftRun]]


def run_drift(inputs: DriftInputs, ctx: StepContext) -> StepResult:
    """Compare the drift of all runs of a task: `drift_summary.json`, `layers.parquet` and, where weights are kept, `weights.parquet`.

    Reads finished train steps (final and search) and `base-probe/<task>` from `ctx.upstream`. Raises when records are missing,
    damaged, or come from different probe sets.
    """
    base = find_base_probe(ctx.upstream, inputs.task)
    runs, probe_sha256 = read_runs(ctx.upstream, inputs.task, inputs.drift.primary_pooling, base.probe_sha256 if base else None)
    groups: Groups = {}
    for run in runs:
        if run.role == "final":
            groups.setdefault(run.method, {})[run.seed] = run
    checks = step_zero_drift(runs, base, ctx.progress)
    found = _summary(inputs, runs, groups, base) | {"probe_sha256": probe_sha256, "step_zero": checks}
    notes = _notes(found, groups, base, checks)
    content = _write_tables(inputs, groups, notes, ctx)
    _write_json(ctx.folder / "drift_summary.json", {**found, "red_flags": notes})
    metrics = _metrics(found)
    ctx.tracker.log({m.name: m.value for m in metrics if m.value is not None}, step=0)
    outputs = {"probe_sha256": probe_sha256, "runs": [run.step.id for run in runs], "step_zero_ok": all(c["ok"] for c in checks)}
    return StepResult(metrics=metrics, outputs=outputs, content=["drift_summary.json", *content], notes=notes)


def _summary(inputs: DriftInputs, runs: list[DriftRun], groups: Groups, base: BaseProbe | None) -> dict[str, Any]:
    pooling = inputs.drift.primary_pooling
    candidate, reference = groups.get(inputs.candidate_method, {}), groups.get(inputs.reference_method, {})
    floor = base.scalar_floor(pooling) if base else None
    return {
        "task": inputs.task,
        "candidate_method": inputs.candidate_method,
        "reference_method": inputs.reference_method,
        "primary_pooling": pooling,
        "saturated_above": inputs.saturated_drift,
        "noise_floor": base.floors(pooling) if base else None,
        "runs": [_run_row(run, floor, inputs.saturated_drift) for run in runs],
        "methods": {method: _method_row(list(group.values()), inputs.saturated_drift) for method, group in sorted(groups.items())},
        "paired": paired(_scalars(candidate), _scalars(reference)),
        "blocks": _paired_blocks(candidate, reference),
        "layers": layer_contrast(candidate, reference),
        "equal_quality": equal_quality(candidate, reference),
    }


def _write_tables(inputs: DriftInputs, groups: Groups, notes: list[str], ctx: StepContext) -> list[str]:
    """`layers.parquet`, and `weights.parquet` where weights are kept; returns their names."""
    finals = [run for group in groups.values() for run in group.values()]
    layer_table(finals, inputs.drift.primary_pooling).to_parquet(ctx.folder / "layers.parquet", index=False)
    candidate, reference = groups.get(inputs.candidate_method, {}), groups.get(inputs.reference_method, {})
    updates = weight_updates(candidate, reference, notes, ctx.progress)
    if updates is None:
        return ["layers.parquet"]
    updates.to_parquet(ctx.folder / "weights.parquet", index=False)
    return ["layers.parquet", "weights.parquet"]


def _scalars(group: dict[int, DriftRun]) -> dict[int, float]:
    return {seed: run.drift for seed, run in group.items()}


def _paired_blocks(candidate: dict[int, DriftRun], reference: dict[int, DriftRun]) -> list[dict[str, Any] | None]:
    """The paired comparison on each disjoint fifth of the probe set: a sensitivity row."""
    count = min((len(run.blocks) for run in [*candidate.values(), *reference.values()]), default=0)
    return [paired(*({s: run.blocks[b] for s, run in group.items()} for group in (candidate, reference))) for b in range(count)]


def _run_row(run: DriftRun, floor: float | None, saturated: float) -> dict[str, Any]:
    plain, chance, sd = (run.profile(m) for m in ("cka_plain", "cka_chance_mean", "cka_chance_sd"))
    return {
        "step": run.step.id,
        "method": run.method,
        "role": run.role,
        "seed": run.seed,
        "learning_rate": run.step.inputs.get("learning_rate") or run.step.outputs.get("learning_rate"),
        "scored_step": run.scored_step,
        "drift": run.drift,
        "blocks": list(run.blocks),
        "saturated": run.drift > saturated,
        "below_resolution": None if floor is None else run.drift <= floor,
        "early": float(thirds(run.profile())[0].mean()),
        "late": float(thirds(run.profile())[1].mean()),
        "cka_plain": float(plain.mean()),
        "chance_mean": float(chance.mean()),
        "chance_z": _chance_z(plain, chance, sd),
        "series": {str(step): value for step, value in run.series().items()},
    }


def _chance_z(plain: Array, chance: Array, sd: Array) -> list[float | None]:
    """Per layer, how many sds plain CKA lies above its row-permutation mean (null: base and tuned are unrelated)."""
    return [float((p - c) / s) if s > 0 else None for p, c, s in zip(plain, chance, sd, strict=True)]


def _method_row(runs: list[DriftRun], saturated: float) -> dict[str, Any]:
    profiles = np.array([run.profile() for run in runs])
    mean = profiles.mean(axis=0)
    early, late = thirds(mean)
    return {
        "drift": summary(np.array([run.drift for run in runs])),
        "saturated": bool(np.mean([run.drift for run in runs]) > saturated),
        "profile_mean": [float(v) for v in mean],
        "profile_sd": [float(v) for v in profiles.std(axis=0, ddof=1)] if len(runs) > 1 else None,
        "early": float(early.mean()),
        "late": float(late.mean()),
        "critical_layers": critical_layers(mean),
    }


def layer_contrast(candidate: dict[int, DriftRun], reference: dict[int, DriftRun]) -> list[dict[str, Any]]:
    """Candidate minus reference per layer: mean, simultaneous band, and the max-statistic p over layers."""
    seeds = sorted(candidate.keys() & reference.keys())
    if not seeds:
        return []
    differences = np.array([candidate[s].profile() - reference[s].profile() for s in seeds])
    low, high = simultaneous_band(differences)
    p = max_statistic(differences)
    return [
        {
            "layer": k + 1,
            "difference": float(differences[:, k].mean()),
            "band": [float(low[k]), float(high[k])] if np.isfinite(low[k]) else None,
            "band_level": BAND_LEVEL,
            "p_max": float(p[k]),
        }
        for k in range(differences.shape[1])
    ]


def layer_table(finals: list[DriftRun], pooling: str) -> pd.DataFrame:
    """A compact copy for figures: every measure per layer and step of the final runs, primary pooling, whole probe set."""
    columns = ["method", "seed", "step", "scored", "layer", "measure", "value"]
    parts = []
    for run in finals:
        t = run.table[(run.table["block"] == WHOLE) & (run.table["pooling"] == pooling)]
        parts.append(t.assign(method=run.method, seed=run.seed)[columns])
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)


def _notes(found: dict[str, Any], groups: Groups, base: BaseProbe | None, checks: list[dict[str, Any]]) -> list[str]:
    """Red flags and gaps in words."""
    notes = [_falling(run) for group in groups.values() for run in group.values()]
    computed = {str(run.step.outputs.get("precision")) for group in groups.values() for run in group.values()}
    if len(computed) > 1:
        notes.append(
            f"runs were trained in different precisions ({', '.join(sorted(computed))}), which `auto` takes from each machine: "
            "methods may differ in more than the method; set training.precision and run again"
        )
    for method, row in found["methods"].items():
        if row["early"] > row["late"]:
            notes.append(f"{method}: early layers drift more than late ones ({row['early']:.3g} > {row['late']:.3g})")
    if found["layers"] and all(row["difference"] > 0 for row in found["layers"]):
        notes.append(f"{found['candidate_method']} drifts more than {found['reference_method']} in every layer")
    if found["paired"] is None:
        notes.append(f"no seed has both {found['candidate_method']} and {found['reference_method']}: nothing is paired")
    if base is None:
        notes.append("no base-probe step: step-0 states are unchecked and the noise floor is unknown")
    for check in checks:
        if not check["ok"]:
            notes.append(
                f"{check['step']}: step-0 states differ from the base probe by {check['max_drift']:.2g} at layer {check['layer']}, "
                f"above the noise floor {check['floor']:.2g}"
            )
    return [note for note in notes if note]


def _falling(run: DriftRun) -> str:
    series = {step: value for step, value in run.series().items() if step > 0}
    if len(series) < 2:
        return ""
    top, last = max(series, key=lambda step: series[step]), max(series)
    if series[last] >= FALLING * series[top]:
        return ""
    return f"{run.step.id}: drift falls over training, from {series[top]:.3g} at step {top} to {series[last]:.3g} at step {last}"


def _metrics(found: dict[str, Any]) -> list[Metric]:
    rows = [(f"drift/{method}", row["drift"]["mean"], "1 - CKA", row["drift"]["n"]) for method, row in found["methods"].items()]
    pairs = found["paired"]
    if pairs:
        n = pairs["difference"]["n"]
        rows.append(("drift_difference", pairs["difference"]["mean"], "1 - CKA", n))
        rows.append(("drift_sign_flip_p", pairs["sign_flip"]["p"], "probability", n))
        if pairs["reduction"]:
            rows.append(("drift_reduction", pairs["reduction"]["mean"], "fraction", n))
    better = {"drift_reduction": True, "drift_sign_flip_p": None}
    return [Metric(name=m, value=v, unit=u, split="probe", n=n, higher_is_better=better.get(m, False)) for m, v, u, n in rows]


def _write_json(path: Path, value: Any) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=True, allow_nan=False))
    os.replace(partial, path)
