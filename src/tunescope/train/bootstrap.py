"""Intervals of scores that are ratios of sums over test examples, resampled by cluster.

Legend: C clusters, D draws, J jackknife rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy import stats

Interval = list[float]
"""Lower and upper limit."""
LEVEL = 0.95
_BATCH = 100


@dataclass(frozen=True)
class Ratio:
    """A score as sum(top) / sum(bottom), one entry a cluster; 0 where the bottom is 0."""

    top_C: np.ndarray
    bottom_C: np.ndarray


def bootstrap_interval(ratios: Sequence[Ratio], draws: int, rng: Generator) -> Interval:
    """95 % BCa interval of the mean of ratios over the same clusters (one ratio a seed).

    Where BCa is undefined its percentile form stands in; where all clusters agree, resampling shows no spread and the interval is
    Clopper-Pearson's for as many trials as the bottoms sum to.
    """
    data = [array for r in ratios for array in (r.top_C, r.bottom_C)]
    if len(data[0]) < 2 or _constant(ratios):
        return _exact(ratios)
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = stats.bootstrap(
                data, _mean_ratio, n_resamples=draws, batch=_BATCH, paired=True, vectorized=True, axis=0,
                confidence_level=LEVEL, method=method, rng=rng,
            ).confidence_interval  # fmt: skip
        if np.isfinite([found.low, found.high]).all():
            return [float(found.low), float(found.high)]
    return _exact(ratios)


def _mean_ratio(*arrays: np.ndarray, axis: int = 0) -> Any:
    total = 0.0
    for top, bottom in zip(arrays[::2], arrays[1::2], strict=True):
        top_sum, bottom_sum = top.sum(axis=axis), bottom.sum(axis=axis)
        total = total + np.divide(top_sum, bottom_sum, out=np.zeros_like(top_sum), where=bottom_sum > 0)
    return total / (len(arrays) // 2)


def _constant(ratios: Sequence[Ratio]) -> bool:
    """Whether every resample would give the same score: in each ratio all clusters have none, or all, of what they could."""
    return all(not r.top_C.any() or np.array_equal(r.top_C, r.bottom_C) for r in ratios)


def _exact(ratios: Sequence[Ratio]) -> Interval:
    top, bottom = (float(np.mean([getattr(r, name).sum() for r in ratios])) for name in ("top_C", "bottom_C"))
    if bottom < 1:
        return [0.0, 1.0]
    found = stats.binomtest(round(top), round(bottom)).proportion_ci(LEVEL, method="exact")
    return [float(found.low), float(found.high)]
