"""How overhead grows with the number of adapters, and the break-even: where it reaches a limit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from tunescope.serve.overhead import Cell, Row, common_cells, finished, log_ratios, side_by_side

from .regression import Line, fit_repeated_line
from .regression import break_even as line_break_even


@dataclass(frozen=True)
class OverheadModel(Line):
    """Overhead (time-per-token ratio to the baseline, minus 1) = intercept + slope x adapters.

    Fitted launch by launch, since the overheads of one launch share its baseline.
    """

    fitted_range: tuple[int, int]
    points: tuple[tuple[int, float], ...]
    cells: tuple[Cell, ...]
    apart: tuple[int, ...] = ()
    """Numbers of adapters that were measured, but not in the launches that are fitted."""

    def apart_text(self) -> str:
        """That measured numbers of adapters are not fitted; "" where all are."""
        return f"Not fitted, since measured in other launches: {', '.join(map(str, self.apart))} adapters. " if self.apart else ""

    def predict(self, adapters: float) -> tuple[float, bool]:
        """(overhead, extrapolated): the second is true outside the fitted range, and has to be shown with the number."""
        low, high = self.fitted_range
        return self.intercept + self.slope * adapters, not low <= adapters <= high


def measured_together(rows: Sequence[Row], baseline: str) -> dict[str, int]:
    """The arms `adapters_N` that can be fitted launch by launch -> N: as many as possible that have two launches in common.

    All of them in a study whose launches ended well; an arm that failed, or was measured in other sessions, leaves the others to be fitted.
    Of as many arms the set with the most launches, then the one of the widest range; {} when no two arms have two launches in common.
    """
    counts = side_by_side(rows)
    launches = {arm: {r["launch"] for r in finished(rows, arm)} for arm in (*counts, baseline)}
    sets = [chosen for size in range(2, len(counts) + 1) for chosen in combinations(counts, size)]

    def worth(chosen: tuple[str, ...]) -> tuple[int, int, int]:
        shared = launches[baseline].intersection(*(launches[arm] for arm in chosen))
        return len(chosen) if len(shared) > 1 else 0, len(shared), counts[chosen[-1]] - counts[chosen[0]]

    best = max(sets, key=worth, default=())
    return {arm: counts[arm] for arm in best} if best and worth(best)[0] else {}


def overhead_model(rows: Sequence[Row], baseline: str, cells: Sequence[Cell] | None = None, level: float = 0.90) -> OverheadModel | None:
    """Fit the model to the arms `adapters_N` that were `measured_together`, over the launches that measured all of them.

    The idle engine is no point: enabling and using adapters may cost differently, and the intercept is not the cost of enabling.

    Args:
        cells: default: cells whose batch holds all adapters of every fitted arm. Arms with more adapters than any batch holds (stress arms)
            measure alternation and are not fitted; when no arm's adapters fit a batch, all shared cells of all arms are taken.

    Returns:
        None with fewer than two numbers of adapters or two launches.
    """
    arms = measured_together(rows, baseline)
    apart = tuple(n for arm, n in side_by_side(rows).items() if arm not in arms)
    if cells is None:
        largest = max((c[0] for c in common_cells(rows, [baseline])), default=0)
        arms = {arm: n for arm, n in arms.items() if n <= largest} or arms
        shared = common_cells(rows, [*arms, baseline])
        cells = [c for c in shared if c[0] >= max(arms.values(), default=0)] or shared
    counts, values = list(arms.values()), [log_ratios(rows, arm, baseline, cells) for arm in arms]
    launches = sorted(set.intersection(*(set(v) for v in values))) if values else []
    if len(set(counts)) < 2 or len(launches) < 2:
        return None
    y_KP = np.array([[math.expm1(v[k]) for v in values] for k in launches])
    line = fit_repeated_line(np.array(counts, float), y_KP, level)
    points = tuple((n, float(y)) for n, column in zip(counts, y_KP.T, strict=True) for y in column)
    return OverheadModel(**vars(line), fitted_range=(min(counts), max(counts)), points=points, cells=tuple(cells), apart=apart)


@dataclass(frozen=True)
class BreakEven:
    """The number of adapters at which side-by-side serving reaches an overhead limit, where merging becomes the cheaper choice.

    Below the fewest measured adapters no number is given: a line says nothing there, and fewer than one adapter is no answer.
    """

    limit: float
    adapters: float | None
    """None unless the status is bounded or extrapolated."""
    low: float | None
    """Fieller's; None below the fewest measured adapters."""
    high: float | None
    """Likewise; may lie beyond the most measured adapters, which `text` says."""
    status: Literal["bounded", "extrapolated", "already above", "falling", "unbounded"]
    """bounded: reached within the measured range; extrapolated: beyond it; already above: by the line, at the fewest measured adapters;
    falling: overhead falls as adapters are added; unbounded: the slope's interval covers 0."""
    text: str


def break_even(model: OverheadModel, limit: float) -> BreakEven:
    """The number of adapters at the limit, as far as the measured range can tell, in words too."""
    found, (fewest, most) = line_break_even(model, limit), model.fitted_range
    if found.at is None or found.low is None or found.high is None:
        return BreakEven(limit, None, None, None, "unbounded", _unbounded_text(model, limit))
    if model.slope < 0:
        text = f"Overhead falls as adapters are added ({model.slope:.1%} each), which no cost explains: look at the launches first."
        return BreakEven(limit, None, None, None, "falling", text)
    shown = f"{100 * limit:.6g}%"  # as registered, with all its digits
    low, high = (value if value >= fewest else None for value in (found.low, found.high))
    words = _limits_text(model, low, high)
    if found.at < fewest:
        doubt = "" if high is None else ", so this is not certain"
        text = (
            f"Side by side is above {shown} already at the fewest adapters measured (N = {fewest}: {model.predict(fewest)[0]:.0%} by "
            f"the fitted line); {model.level:.0%} limits of where it reaches {shown}: {words}{doubt}."
        )
        return BreakEven(limit, None, low, high, "already above", text)
    beyond = f" (extrapolated beyond the measured {fewest} to {most})" if found.at > most else ""
    text = f"Side by side reaches an overhead of {shown} at {found.at:.1f} adapters{beyond}, {model.level:.0%} limits {words}."
    return BreakEven(limit, found.at, low, high, "extrapolated" if beyond else "bounded", text)


def _unbounded_text(model: OverheadModel, limit: float) -> str:
    fewest, most = model.fitted_range
    return (
        f"No break-even against {100 * limit:.6g}% can be stated: the {model.level:.0%} interval of the slope covers 0, so overhead need "
        f"not change with the number of adapters (by the fitted line {model.predict(fewest)[0]:.0%} with {fewest} and "
        f"{model.predict(most)[0]:.0%} with {most}, the fewest and the most measured)."
    )


def _limits_text(model: OverheadModel, low: float | None, high: float | None) -> str:
    fewest, most = model.fitted_range
    few = f"fewer than {fewest}"
    if high is None:
        return few
    return f"{few if low is None else f'{low:.1f}'} to {high:.1f}{f', beyond the {most} measured' if high > most else ''}"
