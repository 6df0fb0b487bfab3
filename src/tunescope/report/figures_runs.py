"""Figures over single runs: selection loss against drift, and how the run scalars go together. Drawn from the findings' tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .drawing import INK, MUTED, Chart, Material, NoData, legend_below, panels
from .wording import decimals, metric_name, task_name


def _statistic(material: Material, name: str, lacking: str) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One table of the findings and its steps.

    Raises:
        NoData: there is no such table.
    """
    entry = material.findings.statistics.get(name)
    if not entry or not entry["rows"]:
        raise NoData(lacking)
    return pd.DataFrame(entry["rows"], columns=entry["columns"]), tuple(entry["steps"])


def _measured_runs(material: Material, roles: tuple[str, ...], score: str, lacking: str) -> tuple[pd.DataFrame, list[str], tuple[str, ...]]:
    """Runs that have a drift and a score, the tasks they are on, and the steps behind them."""
    runs, steps = _statistic(material, "frontier", lacking)
    runs = runs[runs.role.isin(roles)].astype({"drift": float, score: float}).dropna(subset=["drift", score])
    tasks = [t for t in material.tasks if (runs.task == t).any()]
    if not tasks:
        raise NoData(lacking)
    return runs, tasks, steps


def frontier(material: Material) -> Chart:
    """Selection loss against drift for search and final runs; the selected marked, the non-dominated joined."""
    runs, tasks, steps = _measured_runs(material, ("search", "final"), "selection_loss", "no run has both a drift and a selection loss yet")
    figure, axes = panels([task_name(t) for t in tasks], height=2.6)
    said = []
    for ax, task in zip(axes, tasks, strict=True):
        mine = runs[runs.task == task]
        best = mine[mine.frontier.astype(bool)].sort_values("drift")
        ax.plot(best.drift, best.selection_loss, color=MUTED, lw=1, ls=(0, (4, 2)), zorder=1, label="not dominated")
        for method in material.methods:
            _points(ax, mine[mine.method == method], material, method)
        ax.set_xlabel("drift (1 − CKA)")
        ax.margins(0.15)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        counts = best[~best.repeated.astype(bool)].method.value_counts()
        said.append(f"{task_name(task)}: not dominated " + ", ".join(f"{counts[m]} of {m}" for m in material.methods if m in counts))
    axes[0].set_ylabel("selection loss (nats/token)")
    legend_below(figure, axes, 3)
    caption = (
        "All runs; lower left is better on both. Filled: final runs; open: search runs; ringed: the search run whose "
        "setting was selected; dashed: runs that no other run beats on both."
    )
    return Chart("frontier", "Quality against drift", caption, "; ".join(said) + ".", steps, figure)


def _points(ax: Axes, runs: pd.DataFrame, material: Material, method: str) -> None:
    colour, marker, _ = material.look(method)
    final, search = runs[runs.role == "final"], runs[runs.role == "search"]
    ax.plot(search.drift, search.selection_loss, marker, color=colour, mfc="#ffffff", mew=1.2, ms=5, label=f"{method}, search")
    ax.plot(final.drift, final.selection_loss, marker, color=colour, ms=5, alpha=0.9, label=f"{method}, final")
    chosen = search[search.selected.astype(bool)]
    ax.plot(chosen.drift, chosen.selection_loss, "o", color=INK, mfc="none", ms=10, mew=1, label="selected setting")


def drift_quality(material: Material) -> Chart:
    """Test quality against drift, a point per final run, with the within-task correlation where there is one."""
    runs, tasks, steps = _measured_runs(material, ("final",), "quality", "no final run has both a test score and a drift yet")
    figure, axes = panels([task_name(t) for t in tasks], height=2.6)
    said = []
    for ax, task in zip(axes, tasks, strict=True):
        for method in material.methods:
            mine, (colour, marker, _) = runs[(runs.task == task) & (runs.method == method)], material.look(method)
            if len(mine):
                ax.plot(mine.drift, 100 * mine.quality, marker, color=colour, ms=5, alpha=0.9, ls="none", label=method)
                means = f"drift {decimals(float(mine.drift.mean()))}, {decimals(100 * float(mine.quality.mean()), 1)} %"
                said.append(f"{task_name(task)} {method} {means}")
        ax.set_xlabel("drift (1 − CKA)")
        ax.margins(0.15)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.yaxis.set_major_locator(MaxNLocator(5))
    axes[0].set_ylabel("primary metric, test (%)")
    legend_below(figure, axes)
    caption = f"Final runs, one point a seed; axes differ between tasks. {_within_task(material)}"
    kept = tuple(s for s in steps if "/final/" in s)
    return Chart("drift_quality", "Test quality against drift, run by run", caption, f"Means: {'; '.join(said)}.", kept, figure)


def _within_task(material: Material) -> str:
    """The repeated-measures correlation of test quality and drift, in words."""
    entry = material.findings.statistics.get("correlations") or {"rows": []}
    row = next((r for r in entry["rows"] if r[0].startswith("test quality") and r[1].startswith("within task (")), None)
    if row is None:
        return "Too few runs for a correlation within tasks."
    _, _, n, r, low, high, *_ = row
    limits = f" ({decimals(low, 2)} to {decimals(high, 2)})" if low is not None and high is not None else ""
    return f"Correlation within tasks over {n} runs: {decimals(r, 2)}{limits}; the methods' contrast is part of it."


def correlations(material: Material) -> Chart:
    """Correlation matrix of the final runs' scalars, as the findings give it; scalars that do not vary are left out."""
    lacking = "too few final runs for a correlation matrix"
    table, steps = _statistic(material, "correlation_matrix", lacking)
    table = table.set_index(table.columns[0]).astype(float)
    table = table[[c for c in table.columns if c in table.index]].reindex(table.columns.intersection(table.index))
    varying = [n for n in table.index if table.loc[n].drop(n).notna().any()]
    if len(varying) < 2:
        raise NoData(lacking)
    matrix = table.loc[varying, varying].to_numpy()
    names = [metric_name(n) for n in varying]
    figure, (ax,) = panels([""], width=5.2, height=3.9)
    _matrix(ax, matrix, names)
    said = [f"{a} with {b} {decimals(float(matrix[i, j]), 2)}" for i, a in enumerate(names) for j, b in enumerate(names) if i < j]
    caption = "Pearson correlations over final runs of both methods, task means removed; a contrast between methods shows up here too."
    return Chart("correlations", "How the run scalars go together", caption, f"{'; '.join(said)}.", steps, figure)


def _matrix(ax: Axes, matrix: np.ndarray, names: Sequence[str]) -> None:
    image = ax.imshow(matrix, cmap="PuOr", vmin=-1, vmax=1)
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), names)
    for i, j in np.ndindex(matrix.shape):
        dark = abs(matrix[i, j]) > 0.6
        ax.text(j, i, decimals(float(matrix[i, j]), 2), ha="center", va="center", fontsize=8, color="#fefefe" if dark else "#111111")
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.85)
    bar.outline.set_visible(False)  # type: ignore[operator]
