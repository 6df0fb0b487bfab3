"""Figures of quality: the claims against their margins, scores by method and task, training curves, what quality costs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from tunescope.analysis.findings import Claim, TaskRow
from tunescope.analysis.verdicts import comparable

from .drawing import INK, MUTED, PALETTE, Chart, Material, NoData, legend_below, log_axis, mark_cut, panels, percent_axis, stay_near
from .wording import claim_name, decimals, margin_percent, metric_name, percent, percent_interval, plus_minus, task_name

_DIMENSIONS = {"quality": "Quality kept", "drift": "Drift avoided", "overhead": "Serving overhead"}
_VERDICT_MARK = {"supported": "o", "contradicted": "X", "inconclusive": "D"}


def claims(material: Material) -> Chart:
    """Every estimate with its interval against its margin, one panel per claim."""
    every = material.findings.claims
    measured = [c for c in every if c.estimate is not None and c.dimension in _DIMENSIONS]
    rows = [c for c in measured if comparable(c, every)]
    if not rows:
        raise NoData("no claim has an estimate yet" if not measured else "full fine-tuning beats its baselines on no task")
    present = [d for d in _DIMENSIONS if any(c.dimension == d for c in rows)]
    shown = [sorted((c for c in rows if c.dimension == d), key=lambda c: c.task is None) for d in present]
    figure, axes = panels([_DIMENSIONS[d] for d in present], height=max(2.5, 1 + 0.45 * max(map(len, shown))))
    cut = [_forest(ax, mine) for ax, mine in zip(axes, shown, strict=True)]
    found = [(c, f"{percent(c.estimate)} {percent_interval(c.interval)}") for c in rows]
    alt = "; ".join(f"{c.id} {said} against {margin_percent(c.margin)}: {c.verdict}" for c, said in found)
    caption = (
        "Estimates with intervals against the registered margins (dashed), with each verdict under its name. The shaded side is where a "
        f"claim holds.{' Arrow: the interval goes on beyond the axis; the table has its ends.' if any(cut) else ''}"
    )
    if len(rows) < len(measured):
        caption += f" Not drawn, as nothing can be compared there: {'; '.join(claim_name(c.id) for c in measured if c not in rows)}."
    return Chart("claims", "Claims against their margins", caption, f"Claims: {alt}.", _steps(rows), figure)


def _forest(ax: Axes, rows: Sequence[Claim]) -> bool:
    """A panel of claims with one margin, the verdict in words beside each; whether an interval is cut."""
    names = [task_name(c.task) if c.dimension != "overhead" else "registered arms" for c in rows]
    overhead, margin = rows[0].dimension == "overhead", rows[0].margin
    for y, claim in enumerate(rows):
        strong = claim.task is None
        ax.plot(_ends(claim), [y, y], color=PALETTE[1], lw=2.6 if strong else 1.6, solid_capstyle="butt")
        ax.plot(claim.estimate or 0.0, y, _VERDICT_MARK[claim.verdict], color=PALETTE[1], ms=7 if strong else 5.5)
    ax.set_ylim(len(rows) - 0.1, -0.6)  # room for the margin's number under the last row
    ax.margins(x=0.12)
    if margin is not None:
        _margin(ax, margin, below=overhead)
    points = [float(c.estimate or 0.0) for c in rows] + ([] if margin is None else [margin])
    stay_near(ax, points, "x", -1.0 if overhead else -math.inf)
    ax.set_yticks(range(len(rows)), [f"{name}\n{claim.verdict}" for name, claim in zip(names, rows, strict=True)])
    ax.grid(axis="x")
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    percent_axis(ax, "x")
    cut = [mark_cut(ax, y, _ends(claim), PALETTE[1], "x") for y, claim in enumerate(rows)]
    return any(cut)


def _ends(claim: Claim) -> list[float]:
    """The interval; the estimate stands for an end that is not known."""
    return [float((claim.estimate or 0.0) if x is None else x) for x in claim.interval or (None, None)]


def _margin(ax: Axes, margin: float, *, below: bool) -> None:
    """The margin with its number, and the side where the claim holds shaded."""
    ax.axvline(margin, color=INK, ls=(0, (4, 2)), lw=1)
    low, high = ax.get_xlim()
    low, high = min(low, margin - 0.06 * (high - low)), max(high, margin + 0.06 * (high - low))
    ax.axvspan(*((low, margin) if below else (margin, high)), color=PALETTE[2], alpha=0.10, lw=0)
    ax.set_xlim(low, high)
    left = margin > (low + high) / 2
    at: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "xytext": (-3 if left else 3, 3), "textcoords": "offset points"}
    text = f"margin {'≤' if below else '≥'} {margin_percent(margin)}"
    ax.annotate(text, (margin, 0), **at, ha="right" if left else "left", va="bottom", fontsize=7.5)


def performance(material: Material) -> Chart:
    """Primary test metric by task and method with the spread over seeds; majority and base as lines."""
    rows = [r for r in material.findings.table if r.quality_mean is not None]
    if not rows:
        raise NoData("no final run has a test score yet")
    tasks = [t for t in material.tasks if any(r.task == t for r in rows)]
    figure, (ax,) = panels([""], height=3.1)
    methods = [m for m in material.methods if any(r.method == m for r in rows)]
    width = 0.7 / max(len(methods), 1)
    for k, method in enumerate(methods):
        colour, marker, _ = material.look(method)
        mine = [r for r in rows if r.method == method]
        x = [tasks.index(r.task) - 0.35 + width * (k + 0.5) for r in mine]
        for place, row in zip(x, mine, strict=True):
            seeds = _seed_scores(material, row)
            ax.plot(np.full(len(seeds), place + width * 0.28), seeds, ".", color=colour, alpha=0.55, ms=4)
        errors = _errors(mine)
        ax.errorbar(x, [r.quality_mean or 0 for r in mine], yerr=errors, fmt=marker, color=colour, ms=6.5, lw=1.5, label=method)
    used = _baseline_lines(ax, material, tasks)
    ax.set_xticks(range(len(tasks)), [f"{task_name(t)}\n{metric_name(material.primary(t))}" for t in tasks])
    ax.set_xlim(-0.5, len(tasks) - 0.5)
    low, high = ax.get_ylim()
    ax.set_ylim(max(low, 0), min(high, 1))  # scores are shares; an interval over two seeds can reach far beyond
    percent_axis(ax)
    ax.set_ylabel("primary metric, test split")
    legend_below(figure, ax)
    alt = "; ".join(f"{task_name(r.task)} {r.method} {_score(r)} over {r.n_seeds} seeds" for r in rows)
    caption = (
        "Primary test metric: mean over seeds with its interval (standard deviation where there is none), single seeds as dots; "
        "lines: majority class and untuned base model. Bars are cut at 0 and 100 %."
    )
    return Chart("performance", "Quality by task and method", caption, f"Test scores: {alt}.", (*_steps(rows), *used), figure)


def _score(row: TaskRow) -> str:
    return plus_minus(100 * (row.quality_mean or 0), None if row.quality_sd is None else 100 * row.quality_sd, 1) + " %"


def _seed_scores(material: Material, row: TaskRow) -> list[float]:
    m = material.frames.metrics
    chosen = (m.task == row.task) & (m.method == row.method) & (m.role == "final") & (m.split == "test") & (m.name == row.primary_metric)
    return [float(v) for v in m[chosen.fillna(False)].value.dropna()]


def _errors(rows: Sequence[TaskRow]) -> np.ndarray:
    """(2, rows) distances from the mean to the interval's ends, or the sd."""
    ends = []
    for row in rows:
        mean, limits = float(row.quality_mean or 0), row.quality_interval
        if limits and None not in limits:
            ends.append((mean - float(limits[0] or 0), float(limits[1] or 0) - mean))
        else:
            ends.append((row.quality_sd or 0.0, row.quality_sd or 0.0))
    return np.clip(np.array(ends).T, 0, None)


def _baseline_lines(ax: Axes, material: Material, tasks: Sequence[str]) -> list[str]:
    """Draw majority and base where measured; returns their steps."""
    used: list[str] = []
    for system, dash, label in (("majority", (0, (4, 2)), "majority class"), ("base", (0, (1, 1.4)), "untuned base")):
        for row in material.findings.baselines:
            wanted = row.system == system and row.measured_here and row.task in tasks and row.metric == material.primary(row.task)
            if wanted and row.value is not None:
                x = tasks.index(row.task)
                ax.plot([x - 0.42, x + 0.42], [row.value] * 2, color=MUTED, ls=dash, lw=1.3, label=label)
                used += row.steps
    return used


def training_curves(material: Material) -> Chart:
    """Training loss (line, mean over seeds) and selection loss (marks) over optimizer steps, one panel per task."""
    frame = material.frames.series
    frame = frame[frame.role == "final"] if len(frame) else frame
    tasks = [t for t in material.tasks if len(frame) and (frame[frame.task == t].loss.notna()).any()]
    if not tasks:
        raise NoData("no final run has logged a loss yet")
    figure, axes = panels([task_name(t) for t in tasks], height=2.4, sharex=False)
    ends = []
    for ax, task in zip(axes, tasks, strict=True):
        for method in material.methods:
            mine = frame[(frame.task == task) & (frame.method == method)]
            if len(mine):
                ends += _curve(ax, mine, material, method, task)
        ax.set_xlabel("optimizer step")
        ax.set_ylim(bottom=0)
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0].set_ylabel("loss (nats per token)")
    legend_below(figure, axes)
    steps = tuple(sorted(frame[frame.task.isin(tasks)].step_id.unique()))
    caption = "Training loss (line: mean over seeds; band: smallest to largest) and selection loss (marks) of the final runs."
    return Chart("training_curves", "Training curves", caption, f"Lowest mean selection loss: {'; '.join(ends)}.", steps, figure)


def _curve(ax: Axes, frame: pd.DataFrame, material: Material, method: str, task: str) -> list[str]:
    colour, marker, dash = material.look(method)
    loss = frame.dropna(subset=["loss"]).groupby("step").loss.agg(["mean", "min", "max"])
    ax.plot(loss.index, loss["mean"], color=colour, ls=dash, lw=1.3, label=f"{method}, training")  # type: ignore[arg-type]
    ax.fill_between(loss.index, loss["min"], loss["max"], color=colour, alpha=0.15, lw=0)
    selection = frame.dropna(subset=["selection_loss"]).groupby("step").selection_loss.mean()
    if not len(selection):
        return []
    ax.plot(selection.index, selection, marker, color=colour, ms=5, mfc="#ffffff", mew=1.2, label=f"{method}, selection")
    return [f"{task_name(task)} {method} {decimals(float(selection.min()))} at step {int(selection.idxmin())}"]


def tradeoffs(material: Material) -> Chart:
    """Mean quality of each task and method against trainable share, peak memory and drift."""
    rows = [r for r in material.findings.table if r.quality_mean is not None]
    peaks = {(c.task, c.method): c.peak_memory_bytes for c in material.findings.costs}
    measures = {
        "trainable share": [r.trainable_share for r in rows],
        "peak memory (GiB)": [None if (p := peaks.get((r.task, r.method))) is None else p / 2**30 for r in rows],
        "drift (1 − CKA)": [r.drift_mean for r in rows],
    }
    present = {name: values for name, values in measures.items() if any(v is not None for v in values)}
    if not present:
        raise NoData("no final run has both a score and a trainable share, a peak memory or a drift")
    figure, axes = panels(["" for _ in present], height=2.7, sharey=True)
    markers = dict(zip(material.tasks, ("o", "s", "^", "D"), strict=False))
    for ax, (name, values) in zip(axes, present.items(), strict=True):
        for row, x in zip(rows, values, strict=True):
            if x is not None:
                ax.plot(x, row.quality_mean or 0.0, markers[row.task], color=material.look(row.method)[0], ms=6.5, mew=0)
        ax.set_xlabel(name)
        if name == "trainable share":
            log_axis(ax)
            percent_axis(ax, "x")
        ax.margins(0.12)
    percent_axis(axes[0])
    axes[0].set_ylabel("primary metric, test split")
    _key(axes[0], material, rows, markers)
    legend_below(figure, axes[0], 8)
    alt = "; ".join(
        f"{task_name(r.task)} {r.method}: {_score(r)}, share {percent(r.trainable_share)}, drift {decimals(r.drift_mean)}" for r in rows
    )
    caption = "What quality takes: share of trained parameters, peak memory of training, drift of the representations (means over seeds)."
    return Chart("tradeoffs", "Quality against trainable share, memory and drift", caption, alt + ".", _steps(rows), figure)


def _key(ax: Axes, material: Material, rows: Sequence[TaskRow], markers: dict[str, str]) -> None:
    """Legend entries: colour is the method, shape the task."""
    for method in dict.fromkeys(r.method for r in rows):
        ax.plot([], [], "-", color=material.look(method)[0], lw=4, label=method)
    for task in dict.fromkeys(r.task for r in rows):
        ax.plot([], [], markers[task], color=MUTED, label=task_name(task))


def _steps(rows: Sequence[Claim] | Sequence[TaskRow]) -> tuple[str, ...]:
    return tuple(sorted({s for row in rows for s in row.steps}))
