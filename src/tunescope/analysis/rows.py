"""The report's main tables: method x task, baselines, training costs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from tunescope.study.schema import Study, TaskName

from .crossed import Array, Interval, cluster_totals, crossed_t, t_test
from .findings import BaselineRow, CostRow, TaskRow
from .frames import Frames
from .scores import common_ids, groups_of, scalar, scalars, seeds_of, values_matrix

_MEMORY = ("peak_memory_reserved_bytes", "peak_memory_allocated_bytes", "peak_rss_bytes")


def task_rows(frames: Frames, study: Study) -> list[TaskRow]:
    """One row per task and method; a method without finished runs keeps an empty row."""
    return [_task_row(frames, study, task, method) for task in study.tasks for method in study.methods]


def _task_row(frames: Frames, study: Study, task: TaskName, method: str) -> TaskRow:
    steps = list(seeds_of(frames, task, method).values())
    primary = study.analysis.primary_metric.get(task, "accuracy")
    quality, drift = mean_sd(scalars(frames, steps, primary, "test")), mean_sd(scalars(frames, steps, "drift", "probe"))
    trainable, total = _first(frames, steps, "trainable_parameters"), _first(frames, steps, "total_parameters")
    setting: dict[str, Any] = frames.outputs(steps[0]) if steps else {}
    return TaskRow(
        task=task, method=method, n_seeds=len(steps), primary_metric=primary, quality_mean=quality[0], quality_sd=quality[1],
        quality_interval=quality_interval(frames, steps, primary, task), other_metrics=_other_metrics(frames, steps, primary),
        drift_mean=drift[0], drift_sd=drift[1], drift_saturated=drift[0] is not None and drift[0] > study.analysis.saturated_drift,
        trainable_parameters=None if trainable is None else int(trainable),
        trainable_share=trainable / total if trainable and total else None,
        learning_rate=setting.get("learning_rate"), batch_size=setting.get("batch_size"), steps=steps,
    )  # fmt: skip


def mean_sd(values: list[float]) -> tuple[float | None, float | None]:
    """Mean and sd (n - 1) of values; None where there are too few."""
    if not values:
        return None, None
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def _first(frames: Frames, steps: list[str], name: str) -> float | None:
    return next(iter(scalars(frames, steps, name)), None)


def quality_interval(frames: Frames, steps: list[str], metric: str, task: str, level: float = 0.90) -> Interval | None:
    """Limits of a method's mean score over seeds and examples at once; over examples only when there is a single run."""
    ids, _ = common_ids(frames, steps)
    values = values_matrix([frames.scored[s] for s in steps], ids, metric, task) if ids else None
    return None if values is None else _mean_interval(cluster_totals(values, groups_of(frames, steps[0], ids)), level)


def _mean_interval(units_SN: Array, level: float) -> Interval | None:
    if units_SN.shape[1] < 2:
        return None
    test = crossed_t(units_SN) if len(units_SN) > 1 else t_test(units_SN[0])
    limits = test.interval(level)
    return None if limits[0] is None else limits


def _other_metrics(frames: Frames, steps: list[str], primary: str) -> dict[str, tuple[float, float | None]]:
    rows = frames.metrics[frames.metrics.step_id.isin(steps) & (frames.metrics.split == "test") & (frames.metrics.name != primary)]
    found = {}
    for name in dict.fromkeys(rows.name):
        mean, sd = mean_sd([float(v) for v in rows[rows.name == name].value if np.isfinite(v)])
        if mean is not None:
            found[name] = (mean, sd)
    return found


def baseline_rows(frames: Frames, study: Study) -> list[BaselineRow]:
    """Measured baselines with their intervals (random seeds as mean and sd), then published context."""
    return [row for task in study.tasks for step in frames.of_kind("baseline", task) for row in _baselines_of(frames, task, step)]


def _baselines_of(frames: Frames, task: str, step: str) -> Iterator[BaselineRow]:
    outputs = frames.outputs(step)
    rows = frames.metrics[(frames.metrics.step_id == step) & (frames.metrics.source == "metric") & frames.metrics.name.str.contains("/")]
    rows = rows.assign(system=rows.name.str.split("/", n=1).str[0], metric=rows.name.str.split("/", n=1).str[1])
    random = rows[rows.system.str.fullmatch(r"random-\d+")]
    for row in rows[~rows.index.isin(random.index)].itertuples():
        if np.isfinite(row.value):
            sd = (outputs.get("random_sd") or {}).get(row.name) if row.system == "random" else None
            yield _measured(task, step, row, float(row.value), sd, _limits(outputs, row.name))
    for metric in dict.fromkeys(random.metric):
        if not ((rows.system == "random") & (rows.metric == metric)).any():
            group = random[random.metric == metric]
            mean, sd = mean_sd([float(v) for v in group.value if np.isfinite(v)])
            if mean is not None:
                yield _measured(
                    task, step, next(group.itertuples())._replace(system="random"), mean, sd, _limits(outputs, f"random/{metric}")
                )
    for entry in outputs.get("published") or []:
        yield BaselineRow(
            task=task, system=entry["system"], metric=entry["metric"], value=entry["value"], sd=None, interval=None,
            expected=entry.get("expected"), split=entry.get("split") or "", n=None,
            source="; ".join(text for text in (entry.get("source"), entry.get("note")) if text), measured_here=False, steps=[step],
        )  # fmt: skip


def _measured(task: str, step: str, row: Any, value: float, sd: float | None, interval: tuple[float, float] | None) -> BaselineRow:
    return BaselineRow(
        task=task, system=row.system, metric=row.metric, value=value, sd=sd, interval=interval,
        split=row.split if isinstance(row.split, str) else "", n=None if pd.isna(row.n) else int(row.n), source="measured here",
        measured_here=True, steps=[step],
    )  # fmt: skip


def _limits(outputs: dict[str, Any], name: str) -> tuple[float, float] | None:
    limits = (outputs.get("intervals") or {}).get(name)
    if not limits or any(v is None or not np.isfinite(v) for v in limits):
        return None
    return float(limits[0]), float(limits[1])


def cost_rows(frames: Frames, study: Study) -> list[CostRow]:
    """Training costs per task and method, medians over seeds.

    Speed-ups are real tokens a second of training over the reference method's, beside what operations a token promise. Wall time is no
    measure of it: it holds probes and scoring, and stops where early stopping stops.
    """
    return [_cost_row(frames, study, task, method) for task in study.tasks for method in study.methods]


def _cost_row(frames: Frames, study: Study, task: str, method: str) -> CostRow:
    steps = list(seeds_of(frames, task, method).values())
    reference = list(seeds_of(frames, task, study.analysis.reference_method).values())
    speed, reference_speed = _median(frames, steps, "real_tokens_per_s"), _median(frames, reference, "real_tokens_per_s")
    flops, reference_flops = (_median(frames, s, "theoretical_flops_per_token") for s in (steps, reference))
    trainable, total = _first(frames, steps, "trainable_parameters"), _first(frames, steps, "total_parameters")
    by_count = theoretical_speedup(trainable, total, study.methods[method].adapter is not None)
    return CostRow(
        task=task, method=method, wall_s=_median(frames, steps, "wall_s"),
        peak_memory_bytes=next((m for m in (_median(frames, steps, n) for n in _MEMORY) if m), None),
        real_tokens_per_s=speed, mfu=_median(frames, steps, "mfu"), steps_to_best=_median(frames, steps, "best_step"),
        trainable_share=trainable / total if trainable and total else None,
        actual_speedup=speed / reference_speed if speed and reference_speed else None,
        theoretical_speedup=reference_flops / flops if reference_flops and flops else by_count,
        shared_machine=_shared(frames, steps), steps=steps,
    )  # fmt: skip


def _shared(frames: Frames, steps: list[str]) -> bool:
    """Whether one of these steps overlapped in time with another step of its machine."""
    timed = frames.steps[["step_id", "machine", "started", "finished"]].dropna()
    pairs = timed[timed.step_id.isin(steps)].merge(timed, on="machine", suffixes=("", "_other"))
    pairs = pairs[pairs.step_id != pairs.step_id_other]
    return bool(((pairs.started < pairs.finished_other) & (pairs.started_other < pairs.finished)).any())


def theoretical_speedup(trainable: float | None, total: float | None, adapter: bool) -> float | None:
    """FLOPs a token of full fine-tuning over this method's: 6 N against 4 N + 6 a, with N base and a adapter parameters (total = N + a)."""
    if not adapter:
        return 1.0
    if not trainable or not total or total <= trainable:
        return None
    base = total - trainable
    return 6 * base / (4 * base + 6 * trainable)


def _median(frames: Frames, steps: list[str], name: str) -> float | None:
    values = [v for v in (scalar(frames, s, name) for s in steps) if v is not None]
    return float(np.median(values)) if values else None
