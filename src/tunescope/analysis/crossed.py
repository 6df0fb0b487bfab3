"""The registered tests: crossed random effects over seeds x examples, relative margins with Fieller limits.

Shape legend: S seeds, N examples (or clusters, or probe blocks), n launches. Every test is one-sided and returns its opposite beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]
Alternative = Literal["greater", "less"]
Interval = tuple[float | None, float | None]


@dataclass(frozen=True)
class TTest:
    """A one-sided t test. `p` and `p_opposite` are None when the contrast has no variation at all."""

    estimate: float
    se: float
    df: float
    p: float | None
    p_opposite: float | None
    note: str = ""

    def interval(self, level: float = 0.90) -> Interval:
        """Two-sided limits of the estimate at `level`."""
        if self.p is None:
            return None, None
        half = float(stats.t.ppf(0.5 + level / 2, self.df)) * self.se
        return self.estimate - half, self.estimate + half


@dataclass(frozen=True)
class RatioTest:
    """A one-sided test of candidate mean against `margin` x reference mean, with Fieller limits of the ratio."""

    ratio: float | None
    interval: Interval
    contrast: TTest


@dataclass(frozen=True)
class Squares:
    """Mean squares (or mean products) of a two-way layout without replication."""

    seeds: float
    examples: float
    residual: float


def mean_products(a_SN: Array, b_SN: Array) -> Squares:
    """Mean squares of a crossed layout (a = b), or the mean products of two."""
    n_seeds, n_examples = a_SN.shape
    rows = [x.mean(axis=1, keepdims=True) - x.mean() for x in (a_SN, b_SN)]
    columns = [x.mean(axis=0, keepdims=True) - x.mean() for x in (a_SN, b_SN)]
    rest = [x - x.mean() - r - c for x, r, c in zip((a_SN, b_SN), rows, columns, strict=True)]
    return Squares(
        seeds=n_examples * float((rows[0] * rows[1]).sum()) / (n_seeds - 1),
        examples=n_seeds * float((columns[0] * columns[1]).sum()) / (n_examples - 1),
        residual=float((rest[0] * rest[1]).sum()) / ((n_seeds - 1) * (n_examples - 1)),
    )


@dataclass(frozen=True)
class _Variance:
    """Which terms estimate the variance of the mean, and with what degrees of freedom."""

    form: Literal["crossed", "seeds", "examples", "residual"]
    df: float

    def of(self, squares: Squares, size: int) -> float:
        """Variance of the grand mean from mean squares (covariance from mean products); `size` is S x N."""
        if self.form == "crossed":
            return (squares.seeds + squares.examples - squares.residual) / size
        if self.form == "seeds":
            return squares.seeds / size
        return (squares.examples if self.form == "examples" else squares.residual) / size


_SAME = 1e-9
"""Relative difference below which two mean squares count as equal, so that rounding never picks the form of the test."""


def _variance(squares: Squares, n_seeds: int, n_examples: int, few_columns: bool) -> _Variance:
    """Satterthwaite for the crossed form; the seed term is dropped when it is estimated at or below zero.

    With `few_columns` so is the column term: over five probe blocks a negative one would pull the degrees of freedom far below S - 1.
    """
    at_most = squares.residual * (1 + _SAME)
    if squares.seeds <= at_most:
        return _Variance("examples" if squares.examples >= squares.residual else "residual", n_examples - 1)
    if few_columns and squares.examples <= at_most:
        return _Variance("seeds", n_seeds - 1)
    total = squares.seeds + squares.examples - squares.residual
    spread = squares.seeds**2 / (n_seeds - 1) + squares.examples**2 / (n_examples - 1)
    spread += squares.residual**2 / ((n_seeds - 1) * (n_examples - 1))
    return _Variance("crossed", total**2 / spread)


_DROPPED = {
    "crossed": "",
    "seeds": "block term dropped (estimated at or below zero): a plain t over seeds",
    "examples": "seed term dropped (estimated at or below zero)",
    "residual": "seed term dropped (estimated at or below zero)",
}


def crossed_t(contrast_SN: Array, alternative: Alternative = "greater", *, few_columns: bool = False) -> TTest:
    """Crossed random-effects t test that the mean contrast is above (or below) 0, over seeds and examples at once.

    SE^2 = (MS_s + MS_e - MS_r) / (S N) with Satterthwaite degrees of freedom; when MS_s <= MS_r, max(MS_e, MS_r) / (S N) with N - 1.
    `few_columns` is for probe blocks in place of examples: when MS_e <= MS_r the column term is dropped too, MS_s / (S N) with S - 1.
    In simulation the false-positive rate at a nominal 5 % is 2.5 to 6.5 % from three seeds on, and up to 9 % with two, for whose single
    degree of freedom Satterthwaite's formula is too generous.

    Raises:
        ValueError: fewer than two seeds or examples, or a value that is not finite.
    """
    contrast_SN = checked(contrast_SN)
    n_seeds, n_examples = contrast_SN.shape
    squares = mean_products(contrast_SN, contrast_SN)
    variance = _variance(squares, n_seeds, n_examples, few_columns)
    scale, note = float(np.abs(contrast_SN).max()), _DROPPED[variance.form]
    return _t_test(float(contrast_SN.mean()), variance.of(squares, contrast_SN.size), variance.df, alternative, scale, note)


def checked(values_SN: Array) -> Array:
    """The values as a finite (S, N) matrix with S, N >= 2; ValueError otherwise."""
    values_SN = np.asarray(values_SN, dtype=np.float64)
    if values_SN.ndim != 2 or min(values_SN.shape) < 2:
        raise ValueError(f"a crossed test needs at least 2 seeds and 2 examples, got shape {values_SN.shape}")
    if not np.isfinite(values_SN).all():
        raise ValueError("a crossed test needs finite values")
    return values_SN


def _t_test(estimate: float, variance: float, df: float, alternative: Alternative, scale: float, note: str = "") -> TTest:
    se = math.sqrt(max(variance, 0.0))
    if se <= 1e-12 * max(scale, 1e-300):
        return TTest(estimate, 0.0, df, None, None, "no variation: the test cannot be computed")
    above, below = float(stats.t.sf(estimate / se, df)), float(stats.t.cdf(estimate / se, df))
    p, opposite = (above, below) if alternative == "greater" else (below, above)
    return TTest(estimate, se, df, p, opposite, note)


def t_test(values_n: Array, alternative: Alternative = "greater") -> TTest:
    """One-sample t test of mean 0 over independent units (launches, or seeds).

    Raises:
        ValueError: fewer than two values, or a value that is not finite.
    """
    values_n = np.asarray(values_n, dtype=np.float64)
    if values_n.ndim != 1 or len(values_n) < 2 or not np.isfinite(values_n).all():
        raise ValueError(f"a t test needs at least 2 finite values, got {values_n.tolist()}")
    variance = float(values_n.var(ddof=1)) / len(values_n)
    return _t_test(float(values_n.mean()), variance, len(values_n) - 1, alternative, float(np.abs(values_n).max()))


def relative_test(
    candidate_SN: Array,
    reference_SN: Array,
    *,
    margin: float,
    alternative: Alternative = "greater",
    level: float = 0.90,
    few_columns: bool = False,
) -> RatioTest:
    """Crossed t on `candidate - margin x reference`, and Fieller limits of the ratio of means.

    The limits keep the degrees of freedom and the form of the standard error of the registered contrast, so that a 90 % limit excludes the
    margin exactly when the one-sided 5 % test rejects. In simulation they cover 89 to 94 % at a nominal 90 %. Limits are None where
    Fieller's set is unbounded or the reference mean not positive.
    """
    candidate_SN, reference_SN = checked(candidate_SN), checked(reference_SN)
    contrast_SN = candidate_SN - margin * reference_SN
    contrast = crossed_t(contrast_SN, alternative, few_columns=few_columns)
    top, bottom = float(candidate_SN.mean()), float(reference_SN.mean())
    ratio = top / bottom if bottom > 0 else None
    if contrast.p is None or ratio is None:
        return RatioTest(ratio, (None, None), contrast)
    pairs = ((candidate_SN, candidate_SN), (candidate_SN, reference_SN), (reference_SN, reference_SN))
    products = [mean_products(a, b) for a, b in pairs]
    n_seeds, n_examples = contrast_SN.shape
    form = _variance(mean_products(contrast_SN, contrast_SN), n_seeds, n_examples, few_columns)
    v11, v12, v22 = (form.of(p, candidate_SN.size) for p in products)
    limits = fieller(top, bottom, v11, v12, v22, float(stats.t.ppf(0.5 + level / 2, form.df)))
    return RatioTest(ratio, limits, contrast)


def relative_noninferiority(candidate_SN: Array, reference_SN: Array, retained: float = 0.97) -> RatioTest:
    """Does the candidate keep at least `retained` of the reference's mean score? One-sided, with Fieller 90 % limits."""
    return relative_test(candidate_SN, reference_SN, margin=retained, alternative="greater")


def seed_test(
    candidate_S: Array, reference_S: Array, margin: float, alternative: Alternative = "less", level: float = 0.90
) -> RatioTest:  # fmt: skip
    """Paired t over seeds on candidate - margin x reference, with Fieller limits of the ratio of means."""
    contrast = t_test(candidate_S - margin * reference_S, alternative)
    top, bottom, n = float(candidate_S.mean()), float(reference_S.mean()), len(candidate_S)
    if bottom <= 0:
        return RatioTest(None, (None, None), contrast)
    covariance = np.cov(candidate_S, reference_S) / n
    quantile = float(stats.t.ppf(0.5 + level / 2, n - 1))
    limits = fieller(top, bottom, float(covariance[0, 0]), float(covariance[0, 1]), float(covariance[1, 1]), quantile)
    return RatioTest(top / bottom, limits if contrast.p is not None else (None, None), contrast)


def fieller(top: float, bottom: float, v11: float, v12: float, v22: float, quantile: float) -> Interval:
    """Fieller limits of top / bottom with variances v11, v22 and covariance v12; (None, None) when the set is unbounded.

    Source: Fieller (1954), the roots in r of (top - r bottom)^2 = quantile^2 (v11 - 2 r v12 + r^2 v22).
    """
    square = quantile * quantile  # products overflow to inf where powers raise, and the degrees of freedom may be next to none
    a, b, c = bottom**2 - square * v22, top * bottom - square * v12, top**2 - square * v11
    root = b * b - a * c
    if not math.isfinite(root) or a <= 0 or root < -1e-12 * b * b:
        return None, None
    root = max(root, 0.0)  # rounding, where both variances are next to nothing
    return (b - math.sqrt(root)) / a, (b + math.sqrt(root)) / a


def cluster_totals(values_SN: Array, groups: Sequence[str]) -> Array:
    """Cluster totals of the centred values, rescaled to mean the same: (S, N) examples -> (S, G) clusters.

    w[s, g] = mean + (G / N) sum over the cluster of (y[s, i] - mean). Linear in y, so contrasts may be formed before or after; with one
    example a cluster it returns the values in order of first appearance.
    """
    values_SN = np.asarray(values_SN, dtype=np.float64)
    _, first, codes = np.unique(np.asarray(groups, dtype=str), return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    n_groups, n_examples = len(first), values_SN.shape[1]
    if codes.shape != (n_examples,):
        raise ValueError(f"{len(codes)} group names for {n_examples} examples")
    centre = values_SN.mean()
    totals_SG = np.zeros((len(values_SN), n_groups))
    for row, values in zip(totals_SG, values_SN - centre, strict=True):
        np.add.at(row, order[codes], values)
    return centre + totals_SG * n_groups / n_examples


def f1_pseudo_values(gold_N: NDArray[np.bool_], predicted_SN: NDArray[np.bool_]) -> Array:
    """Jackknife pseudo-values of corpus F1, N F1 - (N - 1) F1 without example i: (S, N). F1 without any positive is 0."""
    gold_N, predicted_SN = np.asarray(gold_N, dtype=bool), np.atleast_2d(np.asarray(predicted_SN, dtype=bool))
    hits_SN = (predicted_SN & gold_N).astype(np.float64)
    sizes_SN = predicted_SN.astype(np.float64) + gold_N
    hits_S1, sizes_S1 = hits_SN.sum(axis=1, keepdims=True), sizes_SN.sum(axis=1, keepdims=True)
    n = predicted_SN.shape[1]
    return n * f1_from_counts(hits_S1, sizes_S1) - (n - 1) * f1_from_counts(hits_S1 - hits_SN, sizes_S1 - sizes_SN)


def f1_from_counts(hits: Array, sizes: Array) -> Array:
    """F1 = 2 true positives / (predicted positives + gold positives); 0 when there are none."""
    return np.divide(2 * hits, sizes, out=np.zeros(np.broadcast(hits, sizes).shape), where=sizes > 0)
