"""Power of the registered quality test before the runs, and the smallest margin a design can confirm. Never from an observed effect."""

from dataclasses import dataclass

from scipy import optimize, stats

from .inference import Array, checked, mean_products

PLANNED = {
    "rte": {3: (0.19, 0.27), 5: (0.25, 0.32), 10: (0.31, 0.36)},
    "mrpc (dev)": {3: (0.40, 0.53), 5: (0.53, 0.62), 10: (0.64, 0.69)},
    "mrpc": {3: (0.53, 0.88), 5: (0.78, 0.97), 10: (0.94, 0.99)},
    "sst2": {3: (0.97, 1.0), 5: (0.97, 1.0), 10: (0.97, 1.0)},
    "squad_v2": {3: (0.71, 1.0), 5: (0.96, 1.0), 10: (1.0, 1.0)},
}
"""Power at a true difference of 0, margin 3 %, one-sided 0.05, by task and number of seeds, for the official test sets (range over assumed
standard deviations). Superseded by `power` with a pilot's components."""


@dataclass(frozen=True)
class Components:
    """Standard deviations of a contrast between seeds, between examples, and of what is left."""

    seeds: float
    examples: float
    residual: float


def components(contrast_SN: Array) -> Components:
    """Variance components of a crossed layout by the method of moments; negative estimates become 0."""
    contrast_SN = checked(contrast_SN)
    n_seeds, n_examples = contrast_SN.shape
    squares = mean_products(contrast_SN, contrast_SN)
    between_seeds = max(0.0, (squares.seeds - squares.residual) / n_examples)
    between_examples = max(0.0, (squares.examples - squares.residual) / n_seeds)
    return Components(between_seeds**0.5, between_examples**0.5, max(0.0, squares.residual) ** 0.5)


def power(sd: Components, difference: float, n_seeds: int, n_examples: int, alpha: float = 0.05) -> float:
    """Chance that the one-sided crossed t rejects when the true mean contrast is `difference` (noncentral t, expected mean squares)."""
    ms_r = sd.residual**2
    ms_s, ms_e = ms_r + n_examples * sd.seeds**2, ms_r + n_seeds * sd.examples**2
    total = ms_s + ms_e - ms_r
    if total <= 0:
        return 1.0 if difference > 0 else 0.0
    spread = ms_s**2 / (n_seeds - 1) + ms_e**2 / (n_examples - 1) + ms_r**2 / ((n_seeds - 1) * (n_examples - 1))
    df, se = total**2 / spread, (total / (n_seeds * n_examples)) ** 0.5
    shift = difference / se
    if shift > 35:  # the noncentral t of scipy loses accuracy far out, where power is 1 anyway
        return 1.0
    return float(stats.nct.sf(stats.t.ppf(1 - alpha, df), df, shift))


def detectable_margin(
    sd: Components, reference: float, n_seeds: int, n_examples: int, *, alpha: float = 0.05, target: float = 0.8
) -> float | None:
    """The smallest relative margin confirmed with probability `target` when the arms are truly equal; None above 100 %.

    `reference` is the reference method's mean score: a margin m is a mean contrast of m x reference.
    """
    gap = lambda m: power(sd, m * reference, n_seeds, n_examples, alpha) - target  # noqa: E731
    if reference <= 0 or gap(1.0) < 0:
        return None
    return float(optimize.brentq(gap, 1e-9, 1.0)) if gap(1e-9) < 0 else 0.0
