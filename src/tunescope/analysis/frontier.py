"""The quality-drift frontier: one point per training run, search and final, from the scalars its result holds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from tunescope.records import FinishedStep
from tunescope.study.schema import AnalysisSpec

from .frames import Frames


@dataclass(frozen=True)
class RunPoint:
    """One training run: how good (selection loss; test quality for final runs) and how far it drifted."""

    step: str
    task: str
    method: str
    role: str
    seed: int
    learning_rate: float | None
    batch_size: int | None
    selection_loss: float | None
    quality: float | None
    """Primary test metric; None for search runs, which never see the test split."""
    drift: float | None
    selected: bool = False
    """Run at the setting the search chose."""
    frontier: bool = False
    """No other run of the task has both a lower (or equal) selection loss and a lower drift."""
    repeated: bool = False
    """A search run whose setting and seed a final run has too, with the same figures to the last bit: one run, counted once."""

    def row(self) -> dict[str, Any]:
        """As a JSON row."""
        return asdict(self)


def frontier(frames: Frames, task: str | None = None, metric: str | None = None) -> list[RunPoint]:
    """Points of all finished training runs (of one task), with the selected and the non-dominated ones marked."""
    rows = frames.steps[frames.steps.kind == "train"]
    rows = rows if task is None else rows[rows.task == task]
    table = frames.metrics[frames.metrics.step_id.isin(rows.step_id)]
    wanted = table[table.name.isin(("drift", "selection_loss")) | (table.split == "test")]
    values = {(s, n, p): float(v) for s, n, p, v in zip(wanted.step_id, wanted.name, wanted.split, wanted.value, strict=True) if v == v}

    def lookup(step: str) -> Callable[[str, str], float | None]:
        return lambda name, split: values.get((step, name, split))

    return _marked([_point(row.step_id, row.inputs, row.outputs, lookup(row.step_id), metric) for row in rows.itertuples()])


def points_of(steps: Sequence[FinishedStep], spec: AnalysisSpec) -> list[RunPoint]:
    """The same from finished steps read from their folders; each task's registered primary metric is its quality."""
    trained = [s for s in steps if s.inputs.get("kind") == "train"]
    return _marked([_point(s.id, s.inputs, s.outputs, s.metric, spec.primary_metric.get(s.inputs["task"])) for s in trained])


def _point(
    step_id: str, inputs: dict[str, Any], outputs: dict[str, Any], metric: Callable[[str, str], float | None], primary: str | None
) -> RunPoint:
    return RunPoint(
        step=step_id, task=inputs["task"], method=inputs["method"], role=inputs["role"], seed=int(inputs["seed"]),
        learning_rate=inputs.get("learning_rate") or outputs.get("learning_rate"),
        batch_size=inputs.get("batch_size") or outputs.get("batch_size"),
        selection_loss=metric("selection_loss", "selection"), quality=metric(primary, "test") if primary else None,
        drift=metric("drift", "probe"),
    )  # fmt: skip


def _marked(points: list[RunPoint]) -> list[RunPoint]:
    finals = [p for p in points if p.role == "final"]
    chosen, again = {_setting(p) for p in finals}, {_figures(p) for p in finals}
    return [
        replace(
            p, selected=_setting(p) in chosen, frontier=not any(_dominates(q, p) for q in points),
            repeated=p.role == "search" and p.selection_loss is not None and _figures(p) in again,
        )
        for p in points
    ]  # fmt: skip


def _setting(p: RunPoint) -> tuple[Any, ...]:
    return p.task, p.method, p.learning_rate, p.batch_size


def _figures(p: RunPoint) -> tuple[Any, ...]:
    return *_setting(p), p.seed, p.selection_loss, p.drift


def _dominates(q: RunPoint, p: RunPoint) -> bool:
    if q.task != p.task or q.drift is None or q.selection_loss is None:
        return False
    if p.drift is None or p.selection_loss is None:
        return True
    no_worse = q.drift <= p.drift and q.selection_loss <= p.selection_loss
    return no_worse and (q.drift < p.drift or q.selection_loss < p.selection_loss)


def frontier_note(points: list[RunPoint], spec: AnalysisSpec) -> list[str]:
    """What the search says beside the claim at the selected rates: the range of ratios, and reference runs that beat the candidate."""
    search = [p for p in points if p.role == "search" and p.drift is not None and p.drift > 0]
    ours = [p for p in search if p.method == spec.candidate_method]
    theirs = [p for p in search if p.method == spec.reference_method]
    if not ours or not theirs:
        return []
    ratios = [(a.drift or 0.0) / (b.drift or 1.0) for a in ours for b in theirs]
    limit = 1 - spec.drift_reduction
    turns = min(ratios) < limit < max(ratios)
    found = [
        f"over the searched learning rates D_{spec.candidate_method} / D_{spec.reference_method} ranges "
        f"from {min(ratios):.2f} to {max(ratios):.2f}" + (f": which side of {limit:g} it falls on depends on the rates" if turns else "")
    ]
    return found + _better_reference(ours, theirs, spec)


def _better_reference(ours: list[RunPoint], theirs: list[RunPoint], spec: AnalysisSpec) -> list[str]:
    best = next((p for p in ours if p.selected), None)
    rivals = [p for p in theirs if best is not None and _dominates(p, best)]
    if best is None or not rivals:
        return []
    rival = min(rivals, key=lambda p: p.drift or 0.0)
    return [
        f"the frontier says otherwise: {spec.reference_method} at {rival.learning_rate:g} has no worse selection loss and less drift "
        f"({rival.drift:.3f}) than {spec.candidate_method} at its selected rate ({best.drift:.3f})"
    ]
