"""Figures of drift: over steps and over layers."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .drawing import INK, MUTED, PALETTE, Chart, Material, NoData, legend_below, panels
from .wording import decimals, number, p_value, task_name

MEASURE = "cka_drift_debiased"


def _registered(material: Material) -> pd.DataFrame:
    """Debiased-CKA drift of the final runs, whole probe set, primary pooling."""
    d = material.frames.drift
    if not len(d):
        raise NoData("no run has drift records yet")
    chosen = (d.measure == MEASURE) & (d.block == -1) & (d.pooling == material.study.drift.primary_pooling) & (d.role == "final")
    found = d[chosen.fillna(False)]
    if not len(found):
        raise NoData("no final run has drift records yet")
    return found


def _tasks(material: Material, frame: pd.DataFrame) -> list[str]:
    return [t for t in material.tasks if (frame.task == t).any()]


def _steps(frame: pd.DataFrame) -> tuple[str, ...]:
    return tuple(sorted(str(s) for s in frame.step_id.unique()))


def evolution(material: Material) -> Chart:
    """Mean drift over layers against the optimizer step, mean and range over seeds, one panel per task."""
    frame = _registered(material)
    frame = frame[frame.layer >= 1]
    runs = frame.groupby(["task", "method", "seed", "step"], observed=True).value.mean().reset_index()
    scored = frame[frame.scored].groupby(["task", "method", "seed", "step"], observed=True).value.mean().reset_index()
    tasks = _tasks(material, frame)
    figure, axes = panels([task_name(t) for t in tasks], height=2.4, sharey=True)
    said = []
    for ax, task in zip(axes, tasks, strict=True):
        for method in material.methods:
            mine, ends = (f[(f.task == task) & (f.method == method)] for f in (runs, scored))
            if len(mine):
                _band(ax, mine, material, method)
                ax.plot(ends.step, ends.value, material.look(method)[1], color=material.look(method)[0], ms=5, mfc="#ffffff", mew=1.2)
                if len(ends):
                    said.append(f"{task_name(task)} {method} {decimals(float(ends.value.mean()))}")
        ax.set_xlabel("optimizer step")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("mean drift (1 − CKA)")
    legend_below(figure, axes)
    caption = "Mean over decoder layers and seeds, band from smallest to largest seed; open marks: each seed's scored checkpoint."
    alt = f"Mean drift at the scored checkpoint: {'; '.join(said)}."
    return Chart("drift_evolution", "Drift over training", caption, alt, _steps(frame), figure)


def _band(ax: Axes, runs: pd.DataFrame, material: Material, method: str) -> None:
    colour, _, dash = material.look(method)
    spread = runs.groupby("step").value.agg(["mean", "min", "max"])
    ax.plot(spread.index, spread["mean"], color=colour, ls=dash, label=method)  # type: ignore[arg-type]
    ax.fill_between(spread.index, spread["min"], spread["max"], color=colour, alpha=0.18, lw=0)


def heatmap(material: Material) -> Chart:
    """Drift by layer and step, a panel per task and method, all on one scale."""
    frame = _registered(material)
    tasks = _tasks(material, frame)
    methods = [m for m in material.methods if (frame.method == m).any()]
    figure, axes = panels(["" for _ in range(len(tasks) * len(methods))], height=1.9, columns=len(tasks))
    top, image, said = float(frame.value.max()), None, []
    for k, ax in enumerate(axes):
        method, task = methods[k // len(tasks)], tasks[k % len(tasks)]
        mine = frame[(frame.task == task) & (frame.method == method)]
        seeds = mine.groupby(["layer", "step", "seed"], as_index=False).value.mean()  # a scored step that is a probe step too has two rows
        grid = seeds.pivot_table(index="layer", columns="step", values="value", aggfunc="mean")
        ax.set_title(f"{task_name(task)}, {method}")
        ax.grid(visible=False)
        if not grid.size:
            ax.text(0.5, 0.5, "no run", ha="center", va="center", transform=ax.transAxes, color=MUTED)
            ax.set_xticks([], [])
            ax.set_yticks([], [])
            continue
        image = ax.imshow(grid, origin="lower", aspect="auto", cmap="cividis", vmin=0, vmax=top or 1, interpolation="nearest")
        _cells(ax, grid, last_row=k // len(tasks) == len(methods) - 1, first=k % len(tasks) == 0)
        layer, step = grid.stack().idxmax()
        said.append(f"{task_name(task)} {method} up to {decimals(float(grid.max().max()))} at layer {layer}, step {step}")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.015)
        bar.set_label("drift (1 − CKA)")
        bar.outline.set_visible(False)  # type: ignore[operator]
    caption = "Layer 0 is the embedding output. " if (frame.layer == 0).any() else "Layers are decoder blocks, 1 the first. "
    caption += "Mean over seeds. Columns are the probed steps, not spaced in time; one colour scale."
    return Chart("drift_heatmap", "Drift by layer and step", caption, f"{'; '.join(said)}.", _steps(frame), figure)


def _cells(ax: Axes, grid: pd.DataFrame, *, last_row: bool, first: bool) -> None:
    """Ticks of a heat map: at most six steps and eight layers are named."""
    every, rows = max(1, -(-grid.shape[1] // 6)), max(1, -(-grid.shape[0] // 8))
    ax.set_xticks(range(0, grid.shape[1], every), [str(s) for s in grid.columns[::every]])
    ax.set_yticks(range(0, grid.shape[0], rows), [str(k) for k in grid.index[::rows]])
    ax.tick_params(length=2)
    if last_row:
        ax.set_xlabel("step")
    if first:
        ax.set_ylabel("layer")


def layer_profiles(material: Material) -> Chart:
    """Drift by layer at the scored checkpoint, mean and range over seeds, with the noise floor."""
    frame = _registered(material)
    frame = frame[frame.scored]
    if not len(frame):
        raise NoData("no final run has been probed at its scored checkpoint")
    floors = _noise_floors(material)
    tasks = _tasks(material, frame)
    figure, axes = panels([task_name(t) for t in tasks], height=2.4, sharey=True)
    said, used = [], set(_steps(frame))
    for ax, task in zip(axes, tasks, strict=True):
        for method in material.methods:
            mine = frame[(frame.task == task) & (frame.method == method)]
            if len(mine):
                colour, marker, _ = material.look(method)
                spread = mine.groupby("layer").value.agg(["mean", "min", "max"])
                ax.plot(spread.index, spread["mean"], color=colour, marker=marker, ms=4, label=method)
                ax.fill_between(spread.index, spread["min"], spread["max"], color=colour, alpha=0.18, lw=0)
                said.append(
                    f"{task_name(task)} {method} highest {decimals(float(spread['mean'].max()))} in layer {int(spread['mean'].idxmax())}"
                )
        if task in floors:
            value, step = floors[task]
            ax.axhspan(0, value, color=MUTED, alpha=0.25, lw=0)
            ax.axhline(value, color=MUTED, ls=(0, (1, 1.4)), lw=1, label="noise floor")
            below: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "xytext": (0, -3), "textcoords": "offset points"}
            ax.annotate(f"floor {number(value, 2)}", (0.03, 0), **below, fontsize=7.5, va="top", color=MUTED)
            used.add(step)
        ax.set_xlabel("layer (0: embedding)" if (frame.layer == 0).any() else "layer")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.margins(y=0.16)
    axes[0].set_ylabel("drift (1 − CKA)")
    legend_below(figure, axes)
    caption = (
        "At the scored checkpoint, mean and range over seeds. The noise floor is the largest drift of the untuned model "
        "against itself under another batch size, padding side or precision."
    )
    return Chart("layer_profiles", "Drift by layer", caption, f"{'; '.join(said)}.", tuple(sorted(used)), figure)


def layer_differences(material: Material) -> Chart:
    """Candidate minus reference by layer with the simultaneous band, as the findings' table gives them."""
    entry = material.findings.statistics.get("drift_layers")
    if not entry or not entry["rows"]:
        raise NoData("no task that was learned has a seed with drift records of both methods")
    frame = pd.DataFrame(entry["rows"], columns=entry["columns"])
    low, high = (next(c for c in frame.columns if c.endswith(end)) for end in ("% low", "% high"))
    spec = material.study.analysis
    tasks = _tasks(material, frame)
    figure, axes = panels([task_name(t) for t in tasks], height=2.4, sharey=True)
    said = []
    for ax, task in zip(axes, tasks, strict=True):
        mine = frame[frame.task == task]
        ax.axhline(0, color=INK, lw=0.8)
        ax.fill_between(
            mine.layer, mine[low].astype(float), mine[high].astype(float), color=PALETTE[2], alpha=0.2, lw=0, label=f"{low[:-4]} band"
        )
        ax.plot(
            mine.layer, mine.difference, color=PALETTE[2], marker="D", ms=3.5, label=f"{spec.candidate_method} − {spec.reference_method}"
        )
        ax.set_xlabel("layer")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        furthest = mine.loc[mine.difference.abs().idxmax()]
        said.append(
            f"{task_name(task)} {decimals(furthest.difference)} in layer {int(furthest.layer)}, smallest p {p_value(mine['p max'].min())}"
        )
    axes[0].set_ylabel("difference in drift")
    legend_below(figure, axes)
    caption = (
        f"{spec.candidate_method} minus {spec.reference_method} at the scored checkpoint, mean over paired seeds; the band holds on all "
        "layers of a task at once. Below zero the first drifts less."
    )
    return Chart(
        "layer_differences",
        "Difference in drift by layer",
        caption,
        f"Largest difference: {'; '.join(said)}.",
        tuple(entry["steps"]),
        figure,
    )


def _noise_floors(material: Material) -> dict[str, tuple[float, str]]:
    """Task -> (largest drift of the base model against itself, its step)."""
    n = material.frames.noise
    found: dict[str, tuple[float, str]] = {}
    for task in material.tasks:
        rows = n[(n.task == task) & (n.measure == MEASURE) & (n.pooling == material.study.drift.primary_pooling)] if len(n) else n
        values = rows.value.dropna() if len(rows) else []
        if len(values):
            found[task] = max(float(np.max(np.abs(values))), 0.0), str(rows.step_id.iloc[0])
    return found
