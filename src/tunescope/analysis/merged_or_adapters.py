"""K merged engines on one device or one engine with K adapters: time, weights and cache of both, and the break-even K."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunescope.serve.overhead import Cell, Row, common_cells, finished, log_ratios, side_by_side
from tunescope.study.arms import parse_arm

from .crossed import fieller
from .regression import fit_repeats
from .serving_memory import cache_tokens, weights_and_slots

MEASURES = {"time": "time per token", "weights": "bytes of weights and adapter slots", "cache": "tokens of key-value cache"}


@dataclass(frozen=True)
class Choice:
    """One measure of side by side over merged at each K, and the K at which they are equal.

    `ratios` are side by side / merged (geometric mean over launches; time and weights: below 1 is better side by side; cache: above 1).
    The break-even is where a line through the log ratios against log2 K, fitted launch by launch, meets 0; limits are Fieller's.
    """

    measure: str
    counts: tuple[int, ...]
    ratios: tuple[float, ...]
    intervals: tuple[tuple[float, float] | None, ...]
    launches: int
    level: float
    at: float | None
    low: float | None
    high: float | None
    extrapolated: bool
    cells: tuple[Cell, ...]
    text: str


def choices(rows: Sequence[Row], level: float = 0.90) -> list[Choice]:
    """Time, weights and cache, as far as K adapters and K merged engines were measured by the same launches.

    Cells are those that every compared arm shares and whose batch holds all adapters.
    """
    pairs = _pairs(rows)
    arms = [arm for pair in pairs.values() for arm in pair]
    cells = [c for c in common_cells(rows, arms) if c[0] >= max(pairs)] if pairs else []
    by_measure: dict[str, Callable[[str, str], dict[int, float]]] = {
        "time": lambda beside, merged: log_ratios(rows, beside, merged, cells),
        "weights": lambda beside, merged: _logs(rows, beside, merged, weights_and_slots),
        # On a CPU the cache has a fixed size, so it says nothing about what the weights leave over.
        "cache": lambda beside, merged: {} if any(r.get("device") == "cpu" for r in rows) else _logs(rows, beside, merged, cache_tokens),
    }
    found = [
        _choice(name, {k: get(*pair) for k, pair in pairs.items()}, tuple(cells) if name == "time" else (), level)
        for name, get in by_measure.items()
    ]
    return [f for f in found if f is not None]


def _pairs(rows: Sequence[Row]) -> dict[int, tuple[str, str]]:
    """K -> (K adapters, K merged engines) where both were measured; {} without a K above 1, where there is nothing to choose."""
    arms = [parse_arm(name) for name in dict.fromkeys(r["arm"] for r in finished(rows))]
    merged = {arm.engines: arm.name for arm in arms if arm.model == "merged"}
    pairs = {k: (name, merged[k]) for name, k in side_by_side(rows).items() if k in merged}
    return pairs if any(k > 1 for k in pairs) else {}


def _logs(rows: Sequence[Row], arm: str, other: str, value: Callable[[Row], float | None]) -> dict[int, float]:
    a, b = ({r["launch"]: v for r in finished(rows, name) if (v := value(r))} for name in (arm, other))
    return {k: math.log(a[k] / b[k]) for k in sorted(a.keys() & b.keys())}


def _choice(measure: str, logs: Mapping[int, dict[int, float]], cells: tuple[Cell, ...], level: float) -> Choice | None:
    counts = tuple(k for k, values in logs.items() if values)
    launches = sorted(set.intersection(*(set(logs[k]) for k in counts))) if counts else []
    if not launches or max(counts) < 2:
        return None
    y_KP = np.array([[logs[k][launch] for k in counts] for launch in launches])
    intervals = [_interval(y_KP[:, i], level) for i in range(len(counts))]
    at, low, high = _break_even(counts, y_KP, level)
    outside = at is not None and not counts[0] <= at <= counts[-1]
    ratios = tuple(math.exp(v) for v in y_KP.mean(axis=0))
    text = _text(measure, counts, ratios, intervals, (at, low, high), level, outside)
    return Choice(measure, counts, ratios, tuple(intervals), len(launches), level, at, low, high, outside, cells, text)


def _interval(logs_K: np.ndarray[Any, Any], level: float) -> tuple[float, float] | None:
    if len(logs_K) < 2:
        return None
    _, low, high = fit_repeats(np.ones((1, 1)), logs_K[:, None], level).estimate(np.ones(1))
    return math.exp(low), math.exp(high)


def _break_even(counts: Sequence[int], y_KP: np.ndarray[Any, Any], level: float) -> tuple[float | None, float | None, float | None]:
    """The K at which the line of log ratios meets 0, with Fieller limits; None where the slope's interval covers 0."""
    if len(y_KP) < 2 or len(counts) < 2:
        return None, None, None
    fit = fit_repeats(np.column_stack([np.ones(len(counts)), np.log2(counts)]), y_KP, level)
    (a, b), v = fit.coefficients_C, fit.covariance_CC
    if abs(b) < 1e-12:
        return None, None, None
    low, high = fieller(-a, b, v[0, 0], -v[0, 1], v[1, 1], fit.reach)
    if low is None or high is None or max(abs(low), abs(high)) > 10:  # beyond 1,024 adapters nothing can be said
        return None, None, None
    return 2 ** (-a / b), 2**low, 2**high


def _text(
    measure: str, counts: Sequence[int], ratios: Sequence[float], intervals: Sequence[tuple[float, float] | None],
    even: tuple[float | None, float | None, float | None], level: float, outside: bool,
) -> str:  # fmt: skip
    each = ", ".join(
        f"K = {k}: {r:.2f}" + (f" ({i[0]:.2f} to {i[1]:.2f})" if i else "") for k, r, i in zip(counts, ratios, intervals, strict=True)
    )
    said = f"{MEASURES[measure].capitalize()}, one engine with K adapters over K merged engines: {each}."
    below, above = ([test(i) for i in intervals if i] for test in (lambda i: i[1] < 1, lambda i: i[0] > 1))
    better_below = measure != "cache"  # less time and fewer bytes are better, more cache is
    if len(below) == len(intervals) and (all(below) or all(above)):
        return f"{said} {'Side by side' if all(below) == better_below else 'Merging'} is better at every measured K."
    at, low, high = even
    if at is None or low is None or high is None:
        return f"{said} No break-even can be stated: too few launches, or the ratio need not change with K."
    better_later = "side by side" if (ratios[-1] < ratios[0]) == better_below else "merging"
    label = " (extrapolated)" if outside else ""
    where = f"K = {at:.2f}{label}, {level:.0%} limits {low:.2f} to {high:.2f}"
    return f"{said} They are equal at {where}: {better_later} from K = {math.floor(high) + 1} on."
