"""Response surface of overhead: intercept plus slopes in adapters and in batch size, fitted launch by launch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tunescope.serve.overhead import Cell, Row, common_cells, log_ratios

from .overhead_scaling import measured_together
from .regression import RepeatedFit, fit_repeats

TERMS = ("intercept", "each adapter", "each doubling of the batch")


@dataclass(frozen=True)
class Surface:
    """overhead = intercept + a x adapters + b x log2(batch), over cells whose batch holds all the adapters.

    One fit a launch; means and t limits over launches (launches - 1 degrees of freedom), since cells of one launch share its errors.
    """

    fit: RepeatedFit
    points: tuple[tuple[int, int], ...]
    """(adapters, batch size) of each point."""
    measured: tuple[float, ...]
    """Mean overhead of each point."""
    prompt_length: int
    sampling: str
    launches: int

    def predict(self, adapters: float, batch: float) -> tuple[float, float, float, bool]:
        """(overhead, low, high, extrapolated)."""
        (ns, bs) = zip(*self.points, strict=True)
        outside = not (min(ns) <= adapters <= max(ns) and min(bs) <= batch <= max(bs) and adapters <= batch)
        return *self.fit.estimate(np.array([1.0, adapters, math.log2(batch)])), outside

    def plain(self) -> dict[str, Any]:
        """As JSON types."""
        terms = {name: self.fit.estimate(np.eye(3)[i]) for i, name in enumerate(TERMS)}
        return {
            "terms": {name: {"value": v, "low": low, "high": high} for name, (v, low, high) in terms.items()},
            "level": self.fit.level, "launches": self.launches, "points": [list(p) for p in self.points], "measured": list(self.measured),
            "prompt_length": self.prompt_length, "sampling": self.sampling, "misfit_p": self.fit.misfit_p,
            "worst_miss": self.worst_miss(),
        }  # fmt: skip

    def worst_miss(self) -> dict[str, Any] | None:
        """The point that the fit misses most, on average over launches; None with no more points than terms, which are met exactly."""
        if len(self.points) <= len(TERMS):
            return None
        residuals = self.fit.residuals_KP.mean(axis=0)
        worst = int(np.abs(residuals).argmax())
        return {"adapters": self.points[worst][0], "batch_size": self.points[worst][1], "overhead": float(residuals[worst])}


def surface(rows: Sequence[Row], baseline: str, prompt_length: int | None = None, sampling: str = "greedy") -> Surface | None:
    """Fit the arms `adapters_N` that were measured together; see `Surface`.

    Args:
        prompt_length: default: the one closest to 256 of those measured.

    Returns:
        None with fewer than two launches that measured two arms, or with points that cannot tell adapters from batch.
    """
    arms = measured_together(rows, baseline)
    shared = {arm: [c for c in common_cells(rows, [arm, baseline]) if c[0] >= n and c[2] == sampling] for arm, n in arms.items()}
    lengths = {c[1] for found in shared.values() for c in found}
    if not lengths:
        return None
    length = min(lengths, key=lambda x: abs(x - (prompt_length or 256)))
    places: list[tuple[str, Cell]] = [(arm, c) for arm in arms for c in shared[arm] if c[1] == length]
    points = tuple((arms[arm], c[0]) for arm, c in places)
    values = [log_ratios(rows, arm, baseline, [c]) for arm, c in places]
    launches = sorted(set.intersection(*(set(v) for v in values)))
    y_KP = np.array([[math.expm1(v[k]) for v in values] for k in launches])
    try:
        fit = fit_repeats(np.array([[1.0, n, math.log2(b)] for n, b in points]), y_KP)
    except ValueError:
        return None
    return Surface(fit, points, tuple(map(float, y_KP.mean(axis=0))), length, sampling, len(launches))
