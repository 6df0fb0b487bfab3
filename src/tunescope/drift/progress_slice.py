"""Drift at equal quality: methods differ in learning rate, so equal steps are not equal progress."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Progress(Protocol):
    """A training run as far as it got: selection losses by evaluated step, and mean drift over layers by probed step."""

    def selection_losses(self) -> dict[int, float]: ...

    def series(self) -> dict[int, float]: ...


def equal_quality(candidate: Mapping[int, Progress], reference: Mapping[int, Progress]) -> list[dict[str, Any]]:
    """Per shared seed, both methods' drift when each first reached the weaker method's best selection loss.

    Steps and drift are interpolated linearly between evaluations. Seeds without recorded selection losses are left out.
    """
    rows = []
    for seed in sorted(candidate.keys() & reference.keys()):
        losses = {"candidate": candidate[seed].selection_losses(), "reference": reference[seed].selection_losses()}
        if not all(losses.values()):
            continue
        target = max(min(values.values()) for values in losses.values())
        row: dict[str, Any] = {"seed": seed, "selection_loss": target}
        for side, run in (("candidate", candidate[seed]), ("reference", reference[seed])):
            step = first_step_at(losses[side], target)
            row |= {f"{side}_step": step, f"{side}_drift": drift_at(run.series(), step)}
        rows.append(row)
    return rows


def first_step_at(losses: dict[int, float], target: float) -> float:
    """The step at which a loss curve first reaches `target`, interpolated from the evaluation before."""
    before: int | None = None
    for step in sorted(losses):
        if losses[step] <= target:
            if before is None or losses[before] == losses[step]:
                return float(step)
            share = (losses[before] - target) / (losses[before] - losses[step])
            return before + share * (step - before)
        before = step
    raise ValueError(f"no loss reaches {target}")


def drift_at(series: dict[int, float], step: float) -> float:
    """Drift at a step, interpolated between probes; before training it is 0."""
    points = {0: 0.0, **series}
    steps = sorted(points)
    return float(np.interp(step, steps, [points[s] for s in steps]))
