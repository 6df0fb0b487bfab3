"""How overhead grows with the number of adapters, where it reaches a limit, and what to recommend."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tunescope.analysis.regression import Line, fit_repeated_line
from tunescope.analysis.regression import break_even as line_break_even

from .merging import choices, memory_table
from .overhead import Cell, Row, common_cells, finished, log_ratios, overhead_ratio, tie_check
from .surface import surface

_SIDE_BY_SIDE = re.compile(r"adapters_(\d+)")


@dataclass(frozen=True)
class OverheadModel(Line):
    """Overhead (time-per-token ratio to the baseline, minus 1) = intercept + slope x adapters.

    Fitted launch by launch, since the overheads of one launch share its baseline.
    """

    fitted_range: tuple[int, int]
    points: tuple[tuple[int, float], ...]
    cells: tuple[Cell, ...]

    def predict(self, adapters: float) -> tuple[float, bool]:
        """(overhead, extrapolated): the second is true outside the fitted range, and has to be shown with the number."""
        low, high = self.fitted_range
        return self.intercept + self.slope * adapters, not low <= adapters <= high


def overhead_model(rows: Sequence[Row], baseline: str, cells: Sequence[Cell] | None = None, level: float = 0.90) -> OverheadModel | None:
    """Fit the model to the arms `adapters_N`, over the launches that measured all of them.

    The idle engine is no point: enabling and using adapters may cost differently, and the intercept is not the cost of enabling.

    Args:
        cells: default: cells whose batch holds all adapters of every fitted arm. Arms with more adapters than any batch holds (stress arms)
            measure alternation and are not fitted; when no arm's adapters fit a batch, all shared cells of all arms are taken.

    Returns:
        None with fewer than two numbers of adapters or two launches.
    """
    arms = {r["arm"]: int(m[1]) for r in finished(rows) if (m := _SIDE_BY_SIDE.fullmatch(r["arm"]))}
    if cells is None:
        largest = max((c[0] for c in common_cells(rows, [baseline])), default=0)
        arms = {arm: n for arm, n in arms.items() if n <= largest} or arms
        shared = common_cells(rows, [*arms, baseline])
        cells = [c for c in shared if c[0] >= max(arms.values(), default=0)] or shared
    by_count = sorted(arms, key=lambda arm: arms[arm])
    counts, values = [arms[arm] for arm in by_count], [log_ratios(rows, arm, baseline, cells) for arm in by_count]
    launches = sorted(set.intersection(*(set(v) for v in values))) if values else []
    if len(set(counts)) < 2 or len(launches) < 2:
        return None
    y_KP = np.array([[math.expm1(v[k]) for v in values] for k in launches])
    line = fit_repeated_line(np.array(counts, float), y_KP, level)
    points = tuple((n, float(y)) for n, column in zip(counts, y_KP.T, strict=True) for y in column)
    return OverheadModel(**vars(line), fitted_range=(min(counts), max(counts)), points=points, cells=tuple(cells))


@dataclass(frozen=True)
class BreakEven:
    """The number of adapters at which side-by-side serving reaches an overhead limit, where merging becomes the cheaper choice."""

    limit: float
    adapters: float | None
    low: float | None
    high: float | None
    status: Literal["bounded", "unbounded"]
    extrapolated: bool
    text: str


def break_even(model: OverheadModel, limit: float) -> BreakEven:
    """The number of adapters at the limit, in words too; "unbounded" when the slope's interval covers 0."""
    found = line_break_even(model, limit)
    at, low, high = found.at, found.low, found.high
    if at is None or low is None or high is None:
        text = (
            f"No break-even against {limit:.0%} can be stated: the {model.level:.0%} interval of the slope covers 0, so overhead need not "
            f"change with the number of adapters ({model.fitted_range[0]} to {model.fitted_range[1]} measured)."
        )
        return BreakEven(limit, None, None, None, "unbounded", False, text)
    outside = not model.fitted_range[0] <= at <= model.fitted_range[1]
    return BreakEven(limit, at, low, high, "bounded", outside, _break_even_text(model, limit, at, low, high, outside))


def _break_even_text(model: OverheadModel, limit: float, at: float, low: float, high: float, outside: bool) -> str:
    if model.slope < 0:
        return f"Overhead falls as adapters are added ({model.slope:.1%} each), which no cost explains: look at the launches first."
    if at < 1 and high < 1 and model.fitted_range[0] == 1:
        return f"Side by side is above {limit:.0%} already with one adapter ({model.level:.0%} limits {low:.1f} to {high:.1f} adapters)."
    if high < model.fitted_range[0]:
        return (
            f"Side by side is above {limit:.0%} at every measured number of adapters ({model.fitted_range[0]} to {model.fitted_range[1]})."
        )
    label = f" (extrapolated beyond the measured {model.fitted_range[0]} to {model.fitted_range[1]})" if outside else ""
    return f"Side by side reaches an overhead of {limit:.0%} at {at:.1f} adapters, {model.level:.0%} limits {low:.1f} to {high:.1f}{label}."


def recommendations(rows: Sequence[Row], limit: float, min_launches: int, cpu: bool, baseline: str = "merged") -> list[str]:
    """What to do, in plain words, each with the conditions it holds under."""
    said = ["These are CPU figures of eager engines; they say nothing about a GPU."] if cpu else []
    if tie_check(rows)["ok"] is False:
        why = "Arms of equal shape do not tie, so nothing is recommended: something else ran on the machine. Run the step again alone."
        return [*said, why]
    many = {r["arm"] for r in finished(rows) if _SIDE_BY_SIDE.fullmatch(r["arm"])}
    for arm in sorted(many, key=lambda a: int(a.split("_")[1])):
        said += _advice(rows, arm, baseline, limit, min_launches)
    model = overhead_model(rows, baseline)
    said += [break_even(model, limit).text] if model is not None else []
    chosen = choices(rows)
    # Weights measured with merged engines side by side are told by the choice.
    return said + [choice.text for choice in chosen] + ([] if any(c.measure == "weights" for c in chosen) else _memory_advice(rows))


def _advice(rows: Sequence[Row], arm: str, baseline: str, limit: float, min_launches: int) -> list[str]:
    n = int(arm.split("_")[1])
    cells = [c for c in common_cells(rows, [arm, baseline]) if c[0] >= n]
    estimate = overhead_ratio(rows, arm, baseline, cells)
    if estimate is None:
        return []
    batches = sorted({c[0] for c in cells})
    where = f"batches of {', '.join(map(str, batches))}, {estimate.launches} launches"
    measured = f"{n} adapter{'s' if n > 1 else ''} side by side took {estimate.ratio:.2f} times as long a token as {baseline} ({where})"
    if estimate.low is None or estimate.high is None or estimate.launches < min_launches:
        return [f"{measured}: a first look; {min_launches} launches are needed to decide about a limit of {limit:.0%}."]
    limits = f"{estimate.level:.0%} interval {estimate.low:.2f} to {estimate.high:.2f}"
    if estimate.high <= 1 + limit:
        return [f"{measured}, {limits}: serve them side by side where {limit:.0%} is acceptable."]
    if estimate.low > 1 + limit:
        return [f"{measured}, {limits}: above {limit:.0%}, so merge and run one engine a task where memory allows."]
    return [f"{measured}, {limits}: not decided against a limit of {limit:.0%}; run more launches."]


def _memory_advice(rows: Sequence[Row]) -> list[str]:
    merged = next((r for r in finished(rows, "merged") if r.get("weight_bytes")), None)
    if merged is None:
        return []
    many = [r for r in finished(rows) if _SIDE_BY_SIDE.fullmatch(r["arm"]) and r.get("weight_bytes")]
    return [
        f"Memory: {n} merged models need {n * merged['weight_bytes'] / 2**20:.1f} MiB of weights, one engine with {n} adapters "
        f"{(r['weight_bytes'] + (r.get('lora_slot_bytes') or 0)) / 2**20:.1f} MiB (slots are set aside before any adapter is loaded)."
        for n, r in sorted({len(r["adapters"]): r for r in many}.items())
    ]


def summary(rows: Sequence[Row], limit: float, min_launches: int, cpu: bool, baseline: str = "merged") -> dict[str, Any]:
    """The overhead part of a serving report as JSON types: tie check, model, break-even, recommendations."""
    model = overhead_model(rows, baseline)
    found: dict[str, Any] = {"tie_check": tie_check(rows), "model": _plain(model), "break_even": None}
    if model is not None:
        found["break_even"] = _plain(break_even(model, limit))
    joint = surface(rows, baseline)
    found |= {"surface": joint.plain() if joint else None, "choices": [_plain(c) for c in choices(rows)], "memory": memory_table(rows)}
    return found | {"recommendations": recommendations(rows, limit, min_launches, cpu, baseline)}


def _plain(value: Any) -> Mapping[str, Any] | None:
    return None if value is None else dict(vars(value))
