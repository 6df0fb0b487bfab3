"""The correlate step: relate the quality and drift scalars that training steps wrote. Reads nothing else of them."""

import json
from dataclasses import asdict
from typing import Any

import numpy as np

from tunescope.records import Metric, StepContext, StepResult, read_step
from tunescope.study.inputs import CorrelateInputs

from .effects import Correlation, pooled_correlation, within_correlation
from .frontier import RunPoint, points_of


def run_correlate(inputs: CorrelateInputs, ctx: StepContext) -> StepResult:
    """Write correlations.json: quality against drift within task (repeated measures) and pooled, and the quality-drift frontier.

    Reads result.json of the finished training steps in `ctx.upstream`. With too few runs a correlation is null.
    """
    steps = [read_step(folder) for folder in ctx.upstream.values()]
    points = points_of(steps, inputs.analysis)
    found = correlations(points)
    text = json.dumps({**found, "frontier": [p.row() for p in points]}, indent=1, sort_keys=True, allow_nan=False)
    (ctx.folder / "correlations.json").write_text(text + "\n")
    ctx.progress(1, 1, f"{len(points)} runs related")
    return StepResult(metrics=list(_metrics(found)), outputs={"runs": len(points)}, content=["correlations.json"])


def correlations(points: list[RunPoint]) -> dict[str, Any]:
    """Correlations of quality and drift over final runs and of selection loss and drift over all runs, a repeated one once.

    Within task first; within task and method beside it, because a difference between methods makes a correlation too; pooled last.
    """
    finals = [p for p in points if p.role == "final" and p.quality is not None and p.drift is not None]
    everything = [p for p in points if p.selection_loss is not None and p.drift is not None and not p.repeated]
    return {
        "within": _within(finals, "quality"),
        "within_method": _within(finals, "quality", by_method=True),
        "pooled": _pooled(finals, "quality"),
        "selection_loss_within": _within(everything, "selection_loss"),
        "selection_loss_within_method": _within(everything, "selection_loss", by_method=True),
        "selection_loss_pooled": _pooled(everything, "selection_loss"),
        "steps": sorted(p.step for p in points),
    }


def _within(points: list[RunPoint], name: str, by_method: bool = False) -> dict[str, Any] | None:
    x, y = _columns(points, name)
    return _row(within_correlation(x, y, [f"{p.task} {p.method}" if by_method else p.task for p in points]))


def _pooled(points: list[RunPoint], name: str) -> dict[str, Any] | None:
    return _row(pooled_correlation(*_columns(points, name)))


def _columns(points: list[RunPoint], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([getattr(p, name) for p in points], dtype=np.float64), np.array([p.drift for p in points], dtype=np.float64)


def _row(found: Correlation | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _metrics(found: dict[str, Any]) -> list[Metric]:
    names = {"within": "correlation_within_task", "pooled": "correlation_pooled"}
    rows = [(names[key], found[key]) for key in names if found[key] is not None]
    return [Metric(name=name, value=row["r"], unit="correlation", n=row["n"]) for name, row in rows]
