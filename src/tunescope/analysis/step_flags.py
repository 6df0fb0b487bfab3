"""Red flags that need the study beside a step's result. Cheap, so that `status` shows them as well as the report; imports no tables."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tunescope.records import FinishedStep
from tunescope.study.schema import TASK_NAMES, Study

Flag = tuple[str, str]
"""(step id, what to look at)."""
FINAL_RECORDS = {"predictions": "predictions.parquet", "drift table": "drift.parquet", "training series": "metrics.jsonl"}
"""What every finished final run leaves in its folder."""


@dataclass(frozen=True)
class Results:
    """How flags look up finished results."""

    runs: Callable[[str, str], Mapping[int, str]]
    """(task, method) -> seed -> step id of the finished final runs."""
    value: Callable[[str, str, str | None], float | None]
    """(step id, metric, split) -> value."""
    outputs: Callable[[str], Mapping[str, Any]]
    """step id -> its outputs, {} when it is not finished."""


def comparison_flags(study: Study, results: Results) -> Iterator[Flag]:
    """Scores outside their expected range, rates on the edge of their grid, tasks on which neither method is clear of a constant answer."""
    for task in study.tasks:
        for method in study.methods:
            yield from _unexpected(study, results, task, method)
            yield from _edge(study, results, task, method)
        yield from _near_majority(study, results, task)


def _metric(study: Study, task: str) -> str:
    return study.analysis.primary_metric.get(task, "accuracy")  # type: ignore[call-overload]


def _unexpected(study: Study, results: Results, task: str, method: str) -> Iterator[Flag]:
    expected = study.tasks[task].expect.get(method)  # type: ignore[index]
    if expected is None:
        return
    metric, (low, high) = _metric(study, task), expected
    for step in results.runs(task, method).values():
        value = results.value(step, metric, "test")
        if value is not None and not low <= value <= high:
            yield step, f"test {metric} {value:.3f} is outside the expected {low:g} to {high:g} of {method} on {TASK_NAMES[task]}"


def _edge(study: Study, results: Results, task: str, method: str) -> Iterator[Flag]:
    """Once per method and task: all seeds share the selected rate."""
    grid, step = study.learning_rates(task, method), next(iter(results.runs(task, method).values()), None)  # type: ignore[arg-type]
    rate = results.outputs(step).get("learning_rate") if step else None
    if step and rate is not None and len(grid) > 1 and not min(grid) < rate < max(grid):
        shown = ", ".join(f"{g:g}" for g in grid)
        where = f"{method} on {TASK_NAMES[task]}: the selected learning rate {rate:g}"
        yield step, f"{where} is on the edge of its grid ({shown}); the grid may decide"


def _near_majority(study: Study, results: Results, task: str) -> Iterator[Flag]:
    """Means over seeds of both methods at or below the upper limit of the majority baseline's interval; the gate pairs and may differ."""
    metric, step = _metric(study, task), f"baseline/{task}"
    interval = results.outputs(step).get("intervals", {}).get(f"majority/{metric}")
    methods = (study.analysis.candidate_method, study.analysis.reference_method)
    means = [_mean([results.value(s, metric, "test") for s in results.runs(task, m).values()]) for m in methods]
    if interval is None or any(mean is None or mean > interval[1] for mean in means):
        return
    shown = " and ".join(f"{m} {mean:.3f}" for m, mean in zip(methods, means, strict=True))
    limit = f"the majority baseline's interval (up to {interval[1]:.3f} {metric})"
    yield step, f"{TASK_NAMES[task]}: neither mean score, {shown}, lies above {limit}; the gate says whether anything was learned"


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def finished_flags(study: Study, finished: Mapping[str, FinishedStep]) -> list[Flag]:
    """All flags of finished steps: what each noted itself, missing records, and the comparisons above."""
    runs: dict[tuple[str, str], dict[int, str]] = {}
    for i, step in finished.items():
        if step.inputs.get("kind") == "train" and step.inputs.get("role") == "final":
            runs.setdefault((step.inputs["task"], step.inputs["method"]), {})[step.inputs["seed"]] = i
    results = Results(
        runs=lambda task, method: runs.get((task, method), {}),
        value=lambda i, name, split: finished[i].metric(name, split) if i in finished else None,
        outputs=lambda i: finished[i].outputs if i in finished else {},
    )
    notes = [(i, note) for i, step in finished.items() for note in step.result["notes"]]
    lost = [(i, text) for group in runs.values() for i in group.values() if (text := missing_records(finished[i]))]
    return list(dict.fromkeys([*notes, *lost, *comparison_flags(study, results)]))


def missing_records(step: FinishedStep) -> str:
    """Which records a finished final run lacks; "" when none."""
    lost = [name for name, file in FINAL_RECORDS.items() if not (step.folder / file).is_file()]
    return f"missing records: {', '.join(lost)}" if lost else ""
