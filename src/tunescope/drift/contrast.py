"""Candidate against reference, paired by seed: the training run is the unit, so every test flips whole runs."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from tunescope.drift.gram import Array

EXACT_UP_TO = 13
"""Seeds up to which all 2^n sign vectors are taken; beyond that, DRAWS of them."""
DRAWS = 10_000
BAND_LEVEL = 0.95
INTERVAL_LEVEL = 0.90


@dataclass(frozen=True)
class SignFlip:
    """A sign-flip test of a mean of paired differences; two-sided, and one-sided for `candidate below reference`."""

    p: float
    p_less: float
    attainable_p: float
    """The smallest two-sided p this design can give."""
    vectors: int
    exact: bool


def sign_vectors(n: int) -> tuple[Array, bool]:
    """All sign vectors of n pairs (the observed one first), or DRAWS random ones under it: shape (vectors, n), and whether exact."""
    if n <= EXACT_UP_TO:
        bits = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        return 1.0 - 2.0 * bits, True
    drawn = np.random.default_rng(0).choice([-1.0, 1.0], size=(DRAWS, n))
    return np.vstack([np.ones(n), drawn]), False


def sign_flip(differences: Array) -> SignFlip:
    """Sign-flip test of differences (n,). With sampled vectors p = (count + 1) / (draws + 1), which counting the observed one gives."""
    signs, exact = sign_vectors(len(differences))
    sums = signs @ differences
    slack = 1e-12 * np.abs(differences).sum()
    attainable = (2 if exact else 1) / len(signs)
    p = float(np.mean(np.abs(sums) >= abs(sums[0]) - slack))
    return SignFlip(p, float(np.mean(sums <= sums[0] + slack)), min(1.0, attainable), len(signs), exact)


def max_statistic(differences: Array) -> Array:
    """Family-wise two-sided p per layer from differences (seeds, layers), the same sign vector on all layers.

    Statistic: |mean| / root mean square, which orders each layer as Student's t does; the family's is its maximum over layers.
    """
    signs, _ = sign_vectors(differences.shape[0])
    rms = np.sqrt(np.mean(differences**2, axis=0))
    scaled = np.divide(differences, rms, out=np.zeros_like(differences), where=rms > 0)
    statistics = np.abs(signs @ scaled) / len(scaled)
    largest = statistics.max(axis=1)
    return np.mean(largest[:, None] >= statistics[0][None, :] - 1e-12, axis=0)


def simultaneous_band(differences: Array, level: float = BAND_LEVEL) -> tuple[Array, Array]:
    """Bonferroni t band over layers for the mean difference, from (seeds, layers): (low, high); infinite with one seed."""
    n, layers = differences.shape
    mean = differences.mean(axis=0)
    if n < 2:
        return np.full(layers, -np.inf), np.full(layers, np.inf)
    half = stats.t.ppf(1 - (1 - level) / (2 * layers), n - 1) * differences.std(axis=0, ddof=1) / np.sqrt(n)
    return mean - half, mean + half


def paired(candidate: dict[int, float], reference: dict[int, float]) -> dict[str, Any] | None:
    """Differences, log ratios and reductions of the scalar over shared seeds, with mean, sd, t interval and sign-flip test.

    None when no seed is shared. A ratio is None where it is undefined (a drift of zero or below).
    """
    seeds = sorted(candidate.keys() & reference.keys())
    if not seeds:
        return None
    low, high = (np.array([side[s] for s in seeds]) for side in (candidate, reference))
    differences = low - high
    ratios = [float(c / r) if c > 0 and r > 0 else None for c, r in zip(low, high, strict=True)]
    logs = [None if q is None else float(np.log(q)) for q in ratios]
    test = sign_flip(differences)
    return {
        "seeds": seeds,
        "candidate": [float(v) for v in low],
        "reference": [float(v) for v in high],
        "differences": [float(v) for v in differences],
        "difference": summary(differences),
        "log_ratios": logs,
        "log_ratio": None if None in logs else summary(np.array(logs)),
        "reductions": [None if q is None else 1 - q for q in ratios],
        "reduction": None if None in ratios else summary(1 - np.array(ratios)),
        "sign_flip": vars(test),
    }


def summary(values: Array) -> dict[str, Any]:
    """Mean, sd and t interval over runs; sd and interval are None for a single run."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return {"n": n, "mean": mean, "sd": None, "interval": None, "level": INTERVAL_LEVEL}
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + INTERVAL_LEVEL) / 2, n - 1)) * sd / np.sqrt(n)
    return {"n": n, "mean": mean, "sd": sd, "interval": [float(mean - half), float(mean + half)], "level": INTERVAL_LEVEL}


def thirds(profile: Array) -> tuple[Array, Array]:
    """Early and late layers: the first and last third of layers 1..L (at least one layer each)."""
    size = max(1, len(profile) // 3)
    return profile[:size], profile[-size:]


def critical_layers(profile: Array) -> list[int]:
    """Layers (1..L) whose mean drift exceeds the mean over layers by more than one sd over layers."""
    return [int(k) + 1 for k in np.flatnonzero(profile > profile.mean() + profile.std())]
