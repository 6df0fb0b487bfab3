"""Permutation and bootstrap procedures. Each takes its generator, and each permutation p comes with the smallest it could have been."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator
from scipy import stats

from .crossed import Array, Interval

_TIE = 1e-12
_EXACT_UNITS = 16


@dataclass(frozen=True)
class PermutationTest:
    """A permutation p with `attainable_p`, the smallest p this design could give."""

    statistic: float
    p: float
    attainable_p: float
    draws: int
    exact: bool

    def decides(self, alpha: float) -> bool:
        """Whether any outcome could have fallen at or below alpha."""
        return self.attainable_p <= alpha


def sign_flip(values_n: Array, *, two_sided: bool = False, rng: Generator | None = None, draws: int = 9_999) -> PermutationTest:
    """Sign-flip test that paired differences centre on 0 (subtract a margin first); one-sided towards positive means.

    Exact over all 2^n signs up to n = 16; beyond that, `draws` random signs from `rng` with p = (count + 1) / (draws + 1).
    """
    values_n = np.asarray(values_n, dtype=np.float64)
    n = len(values_n)
    exact = n <= _EXACT_UNITS
    if exact:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        if rng is None:
            raise ValueError(f"{n} units are too many for the exact test: pass a generator")
        signs = rng.choice((-1, 1), size=(draws, n))
    flipped, observed = signs @ values_n / n, float(values_n.mean())
    extreme = np.abs(flipped) >= abs(observed) - _TIE if two_sided else flipped >= observed - _TIE
    count = int(extreme.sum())
    sides = 2 if two_sided else 1
    if exact:
        return PermutationTest(observed, count / 2**n, min(1.0, sides / 2**n), 2**n, True)
    return PermutationTest(observed, (count + 1) / (draws + 1), max(1 / (draws + 1), sides / 2**n), draws, False)


def approximate_randomisation(
    a_NK: Array, b_NK: Array, *, score: Callable[[Array], Array] | None = None, draws: int = 9_999, rng: Generator
) -> PermutationTest:
    """Two-sided randomisation test of score(a) - score(b), swapping the two systems within each example.

    Args:
        a_NK: per-example components of one system (N,) or (N, K); sums over examples enter the score.
        b_NK: the same of the other system.
        score: maps sums (draws, K) to scores (draws,); default the mean of the single component.
        draws: number of random swaps; p = (count + 1) / (draws + 1).
    """
    a_NK, b_NK = (np.asarray(x, dtype=np.float64).reshape(len(x), -1) for x in (a_NK, b_NK))
    n = len(a_NK)
    score = score or (lambda sums: sums[:, 0] / n)
    differs = (a_NK != b_NK).any(axis=1)
    change_DK = (b_NK - a_NK)[differs]
    total_a, total_b = a_NK.sum(axis=0, keepdims=True), b_NK.sum(axis=0, keepdims=True)
    observed = float(score(total_a)[0] - score(total_b)[0])
    count = 0
    for start in range(0, draws, 1000):
        moved = rng.integers(0, 2, size=(min(1000, draws - start), len(change_DK)), dtype=np.int8) @ change_DK
        count += int((np.abs(score(total_a + moved) - score(total_b - moved)) >= abs(observed) - _TIE).sum())
    attainable = max(1 / (draws + 1), min(1.0, 2.0 ** (1 - len(change_DK))))
    return PermutationTest(observed, (count + 1) / (draws + 1), attainable, draws, False)


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Exact limits of a proportion."""
    tail = (1 - level) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def bca_interval(
    values_n: Array, *, statistic: Callable[..., Any] = np.mean, draws: int = 1000, level: float = 0.95, rng: Generator
) -> tuple[float, float]:
    """BCa bootstrap limits of a statistic of one sample; constant 0/1 data fall back to Clopper-Pearson, other constants to a point.

    In simulation its 95 % limits of a mean cover 94 to 96 %: right or wrong answers from 60 on, exponential samples from 30 on.
    """
    values_n = np.asarray(values_n, dtype=np.float64)
    if np.ptp(values_n) == 0:
        value = float(values_n[0])
        return clopper_pearson(int(value) * len(values_n), len(values_n), level) if value in (0, 1) else (value, value)
    result = stats.bootstrap((values_n,), statistic, n_resamples=draws, batch=250, confidence_level=level, method="BCa", rng=rng)
    limits = float(result.confidence_interval.low), float(result.confidence_interval.high)
    if np.isfinite(limits).all():
        return limits
    low, high = np.quantile(result.bootstrap_distribution, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _weights(n: int, draws: int, rng: Generator) -> Array:
    """Bootstrap weights (draws, n): how often each unit was drawn, over n. Counting drawn indices is 20 times faster than multinomials."""
    drawn = rng.integers(0, n, size=(draws, n)) + n * np.arange(draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=draws * n).reshape(draws, n) / n


def multi_bootstrap(
    candidate_SN: Array, reference_SN: Array, *, margin: float, draws: int = 10_000, level: float = 0.90, rng: Generator
) -> tuple[Interval, float]:
    """Ratio of means under a bootstrap over seeds and examples at once: percentile limits and the p of ratio <= margin.

    Source: Sellam et al. (2022), the paired form: both arms share the drawn seeds and examples. With few seeds it is too narrow:
    its 90 % limits over three seeds cover about 82 % where seeds differ.
    """
    n_seeds, n_examples = candidate_SN.shape
    ratios = np.empty(draws)
    for start in range(0, draws, 250):
        size = min(250, draws - start)
        seeds_BS, examples_BN = _weights(n_seeds, size, rng), _weights(n_examples, size, rng)
        top, bottom = ((seeds_BS * (examples_BN @ x.T)).sum(axis=1) for x in (candidate_SN, reference_SN))
        ratios[start : start + size] = np.divide(top, bottom, out=np.full(size, np.nan), where=bottom > 0)
    finite = ratios[np.isfinite(ratios)]
    if len(finite) == 0:
        return (None, None), 1.0
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return (float(low), float(high)), (int((ratios <= margin).sum()) + int(np.isnan(ratios).sum()) + 1) / (draws + 1)
