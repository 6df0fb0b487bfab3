"""Paired tables and paired means: McNemar, Tango's score test and limits, two one-sided tests."""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .crossed import Array, Interval, TTest, t_test
from .resampling import clopper_pearson


@dataclass(frozen=True)
class McNemar:
    """Two systems on the same examples; n10 = only the first is right, n01 = only the second."""

    n10: int
    n01: int
    p_exact: float
    p_mid: float
    odds_ratio: float | None
    """n10 / n01; None when n01 is 0."""
    interval: Interval
    """Clopper-Pearson limits carried over to the odds; None is unbounded."""
    attainable_p: float
    """The smallest exact p that this number of discordant pairs can give."""


def mcnemar(n10: int, n01: int, level: float = 0.95) -> McNemar:
    """Exact and mid-p McNemar test (two-sided) with the matched odds ratio.

    Raises:
        ValueError: a negative count.
    """
    if min(n10, n01) < 0:
        raise ValueError(f"counts of discordant pairs are not negative, got {n10} and {n01}")
    n, low = n10 + n01, min(n10, n01)
    if n == 0:
        return McNemar(0, 0, 1.0, 1.0, None, (None, None), 1.0)
    at, below = float(stats.binom.pmf(low, n, 0.5)), float(stats.binom.cdf(low - 1, n, 0.5))
    exact, mid = min(1.0, 2 * (below + at)), min(1.0, 2 * below + at)
    limits = clopper_pearson(n10, n, level)
    odds = tuple(share / (1 - share) if share < 1 else None for share in limits)
    return McNemar(n10, n01, exact, mid, n10 / n01 if n01 else None, (odds[0], odds[1]), min(1.0, 2.0 ** (1 - n)))


@dataclass(frozen=True)
class Tango:
    """Score test and limits of a difference of paired proportions, first less second."""

    difference: float
    interval: tuple[float, float]
    z: float
    p: float
    """One-sided p that the difference lies above `null`."""
    p_opposite: float


def tango(n10: int, n01: int, n: int, *, null: float = 0.0, level: float = 0.90) -> Tango:
    """Tango's score test that P(first right) - P(second right) exceeds `null`, with score limits of the difference.

    With null 0 it is McNemar's test without continuity correction; with null -m the test that the first is at most m worse.

    Args:
        n10: pairs only the first gets right.
        n01: pairs only the second gets right.
        n: all pairs.
        null: difference under the null hypothesis, above -1 and below 1.
        level: of the two-sided limits.

    Raises:
        ValueError: counts that do not fit into n, or a null outside (-1, 1).

    Source: Tango (1998), Equivalence test and confidence interval for the difference in proportions for the paired-sample design,
    Stat. Med. 17.
    """
    if min(n10, n01) < 0 or n < 1 or n10 + n01 > n:
        raise ValueError(f"{n10} and {n01} discordant pairs do not fit into {n}")
    if not -1 < null < 1:
        raise ValueError(f"the null difference lies between -1 and 1, got {null}")
    z, quantile = _score(n10, n01, n, null), float(stats.norm.ppf(0.5 + level / 2))
    estimate = (n10 - n01) / n
    low = -1.0 if n01 == n else _crossing(n10, n01, n, quantile, -1.0, estimate)
    high = 1.0 if n10 == n else _crossing(n10, n01, n, -quantile, estimate, 1.0)
    return Tango(estimate, (low, high), z, float(stats.norm.sf(z)), float(stats.norm.cdf(z)))


def _score(n10: int, n01: int, n: int, null: float) -> float:
    """(n10 - n01 - n null) over its standard error at the constrained maximum-likelihood estimate of P(only second right)."""
    b = -n10 - n01 + (2 * n - n10 + n01) * null
    c = -n01 * null * (1 - null)
    q01 = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance, gap = n * (2 * q01 + null * (1 - null)), n10 - n01 - n * null
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0


def _crossing(n10: int, n01: int, n: int, target: float, low: float, high: float) -> float:
    """Where the score, which falls as the null rises, meets the target; bisection to the last bit that matters."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(n10, n01, n, middle) > target else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Tost:
    """Two one-sided t tests: equivalence is shown at alpha when `p`, the larger of the two, is at most alpha."""

    above_low: TTest
    """Test that the mean lies above the lower margin."""
    below_high: TTest
    """Test that the mean lies below the upper margin."""
    p: float | None
    interval: Interval
    """Limits at level 1 - 2 alpha: equivalence holds at alpha when they lie inside the margins."""


def tost_paired(first_n: Array, second_n: Array | float, low: float, high: float, *, alpha: float = 0.05) -> Tost:
    """Two one-sided paired t tests that the mean of first - second lies between `low` and `high`.

    Raises:
        ValueError: margins in the wrong order, or what `t_test` refuses.

    Source: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15.
    """
    if not low < high:
        raise ValueError(f"the lower margin must lie below the upper, got {low} and {high}")
    differences_n = np.asarray(first_n, dtype=np.float64) - second_n
    above, below = t_test(differences_n - low, "greater"), t_test(differences_n - high, "less")
    both = [test.p for test in (above, below) if test.p is not None]
    return Tost(above, below, max(both) if len(both) == 2 else None, t_test(differences_n).interval(1 - 2 * alpha))
