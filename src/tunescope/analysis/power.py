"""Variance components from stored scores, and the smallest margin a design can confirm. Never from an observed effect."""

import math

from scipy import optimize

from tunescope.study.power import Components, power, t_power

from .crossed import Array, checked, mean_products

TARGET = 0.8
"""Chance of confirming that a design is asked for."""


def components(contrast_SN: Array) -> Components:
    """Variance components of a crossed layout by the method of moments; negative estimates become 0."""
    contrast_SN = checked(contrast_SN)
    n_seeds, n_examples = contrast_SN.shape
    squares = mean_products(contrast_SN, contrast_SN)
    between_seeds = max(0.0, (squares.seeds - squares.residual) / n_examples)
    between_examples = max(0.0, (squares.examples - squares.residual) / n_seeds)
    return Components(between_seeds**0.5, between_examples**0.5, max(0.0, squares.residual) ** 0.5)


def detectable_margin(
    sd: Components, reference: float, n_seeds: int, n_examples: int, *, alpha: float = 0.05, target: float = TARGET
) -> float | None:
    """The smallest relative margin confirmed with probability `target` when the arms are truly equal; None above 100 %.

    `reference` is the reference method's mean score: a margin m is a mean contrast of m x reference.
    """
    gap = lambda m: power(sd, m * reference, n_seeds, n_examples, alpha) - target  # noqa: E731
    if reference <= 0 or gap(1.0) < 0:
        return None
    return float(optimize.brentq(gap, 1e-9, 1.0)) if gap(1e-9) < 0 else 0.0


def detectable_shift(sd: float, n: int, *, alpha: float = 0.05, target: float = TARGET) -> float | None:
    """The smallest true mean that a one-sided t test over n independent units confirms with probability `target`, in units of `sd`'s.

    None above 200 standard errors (two units and an alpha of 0.001, say).
    """
    gap = lambda shift: t_power(shift, n - 1, alpha) - target  # noqa: E731
    return sd / math.sqrt(n) * float(optimize.brentq(gap, 0.0, 200.0)) if gap(200.0) > 0 else None


def seeds_needed(sd: Components, difference: float, n_examples: int, *, alpha: float = 0.05, most: int = 100) -> int | None:
    """The fewest seeds that confirm a true mean contrast with probability 80 % on these examples; None when `most` do not."""
    if power(sd, difference, most, n_examples, alpha) < TARGET:
        return None
    return next(s for s in range(2, most + 1) if power(sd, difference, s, n_examples, alpha) >= TARGET)


def examples_needed(sd: Components, difference: float, n_seeds: int, *, alpha: float = 0.05, most: int = 1_000_000) -> int | None:
    """The fewest examples that confirm a true mean contrast with probability 80 % on these seeds; None when `most` do not."""
    low, high = 2, most
    if power(sd, difference, n_seeds, high, alpha) < TARGET:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(sd, difference, n_seeds, middle, alpha) >= TARGET else (middle + 1, high)
    return low


def units_needed(sd: float, difference: float, *, alpha: float = 0.05, most: int = 1000) -> int | None:
    """The fewest independent units whose one-sided t test confirms a true mean of `difference` with probability 80 %."""
    if sd == 0:
        return 2 if difference > 0 else None
    found = (n for n in range(2, most + 1) if t_power(difference / sd * math.sqrt(n), n - 1, alpha) >= TARGET)
    return next(found, None) if difference > 0 else None
