"""Statistics tables that set methods side by side: ablations, and how soon each gets as far as full fine-tuning."""

from typing import Any

import numpy as np
import pandas as pd

from .findings import TaskRow
from .scores import seeds_of
from .tables import Material, Table, table

LEVELS = (0.9, 1.0)
"""Shares of the reference's fall in selection loss, from its first evaluation to its best, that a run has to reach."""


def ablation_table(m: Material, rows_of: list[TaskRow]) -> Table:
    """Every method against the reference method: what it adapts, quality and drift over seeds, what it trains.

    No ratio where the gate failed (quality) or nothing was learned (drift).
    """
    reference = {r.task: r for r in rows_of if r.method == m.study.analysis.reference_method}
    rows = []
    for r in rows_of:
        base = reference.get(r.task)
        relative = r.quality_mean / base.quality_mean if r.quality_mean and base and base.quality_mean and r.task in m.passing else None
        ratio = r.drift_mean / base.drift_mean if r.drift_mean and base and base.drift_mean and r.task in m.learned else None
        head = (r.task, r.method, *_setting(m, r.method), r.learning_rate, r.n_seeds)
        rows.append(
            (*head, r.quality_mean, r.quality_sd, relative, r.drift_mean, r.drift_sd, ratio, r.trainable_parameters, r.trainable_share)
        )
    columns = ["task", "method", "adapter", "rank", "alpha", "modules", "learning_rate", "seeds"]
    columns += ["quality", "quality sd", "quality ratio", "drift", "drift sd", "drift ratio", "trainable", "trainable share"]
    note = (
        "Ratios to the reference method's mean over seeds, none where the gate failed; descriptive. Only the registered candidate carries "
        "a claim."
    )
    return table("Methods and ablations", columns, rows, note, (s for r in rows_of for s in r.steps))


def _setting(m: Material, method: str) -> tuple[Any, ...]:
    """(adapter with its further options, rank, alpha, modules); a PEFT type without rank shows none."""
    adapter = m.study.methods[method].adapter
    if adapter is None:
        return None, None, None, "all weights"
    options = ", ".join(f"{k}={v}" for k, v in adapter.options.items() if k != "feedforward_modules")
    name = f"{adapter.peft_type} ({options})" if options else adapter.peft_type
    modules = adapter.target_modules if isinstance(adapter.target_modules, str) else ", ".join(adapter.target_modules)
    return name, *((adapter.r, adapter.lora_alpha) if adapter.peft_type == "LORA" else (None, None)), modules


def convergence_table(m: Material) -> Table:
    """Steps until a run's selection loss is as low as the reference's at the same seed, and how much lower or higher it ends."""
    rows: list[tuple[Any, ...]] = []
    steps: list[str] = []
    reference_name = m.study.analysis.reference_method
    for task in m.study.tasks:
        reference = seeds_of(m.frames, task, reference_name)
        curves = {seed: _selection_losses(m, step) for seed, step in reference.items()}
        for method in m.study.methods:
            runs = {seed: step for seed, step in seeds_of(m.frames, task, method).items() if len(curves.get(seed, ()))}
            pairs = [(_selection_losses(m, step), curves[seed]) for seed, step in runs.items()]
            pairs = [(own, other) for own, other in pairs if len(own)]
            if pairs:
                rows.append(
                    (task, method, len(pairs), *_reached(pairs), float(np.median([own.min() / other.min() for own, other in pairs])))
                )
                steps += [*runs.values(), *(reference[seed] for seed in runs)]
    columns = ["task", "method", "seeds"]
    for level in LEVELS:
        columns += [f"steps to {level:.0%}", f"runs that reach {level:.0%}"]
    note = (
        f"Share of {reference_name}'s fall in selection loss from its first evaluation to its best, paired by seed; median over the runs "
        "that reach it, at the resolution of the evaluations. Loss ratio: best selection loss over the reference's."
    )
    return table("Convergence against the reference method", [*columns, "loss ratio"], rows, note, steps)


def _selection_losses(m: Material, step: str) -> pd.Series:
    """Selection loss by optimizer step of one run."""
    rows = m.frames.series[(m.frames.series.step_id == step) & m.frames.series.selection_loss.notna()]
    return pd.Series(rows.selection_loss.to_numpy(), index=rows.step.to_numpy())


def _reached(pairs: list[tuple[pd.Series, pd.Series]]) -> list[float | int | None]:
    """For each level: median first step at or below it, and how many runs get there."""
    found: list[float | int | None] = []
    for level in LEVELS:
        targets = [other.iloc[0] - level * (other.iloc[0] - other.min()) for _, other in pairs]
        first = [own.index[own.to_numpy() <= target + 1e-12] for (own, _), target in zip(pairs, targets, strict=True)]
        hits = [int(steps[0]) for steps in first if len(steps)]
        found += [float(np.median(hits)) if hits else None, len(hits)]
    return found
