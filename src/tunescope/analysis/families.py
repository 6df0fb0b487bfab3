"""How p values combine: over tasks, within families, and in the composite hypothesis. A missing p counts as 1."""

import gc
from collections.abc import Sequence


def intersection_union(p_values: Sequence[float | None]) -> float | None:
    """p that all claims hold: the largest one. A missing p counts as 1; None for no claims at all."""
    return max((1.0 if p is None else p) for p in p_values) if p_values else None


def any_of(p_values: Sequence[float | None]) -> float | None:
    """p that at least one claim holds: the smallest times their number (Bonferroni). A missing p counts as 1."""
    return min(1.0, len(p_values) * min((1.0 if p is None else p) for p in p_values)) if p_values else None


def composite(p_quality: float, p_drift: float, p_overhead: float) -> float:
    """p of `quality AND (drift OR overhead)`."""
    return max(p_quality, min(1.0, 2 * min(p_drift, p_overhead)))


def composite_opposite(p_quality: float, p_drift: float, p_overhead: float) -> float:
    """p of its negation, `not quality OR (neither drift nor overhead)`, from opposite one-sided p values."""
    return min(1.0, 2 * min(p_quality, max(p_drift, p_overhead)))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm-adjusted p values. A missing p stays missing and counts as 1 in the family."""
    return _adjusted(p_values, "holm")


def bonferroni(p_values: Sequence[float | None]) -> list[float | None]:
    """Bonferroni-adjusted p values. A missing p stays missing and counts as 1 in the family."""
    return _adjusted(p_values, "bonferroni")


def _adjusted(p_values: Sequence[float | None], method: str) -> list[float | None]:
    from statsmodels.stats.multitest import multipletests  # costs about a second to import

    if not p_values:
        return []
    gc.freeze()  # multipletests collects garbage itself: over a study's tables that takes 0.2 s a call
    try:
        adjusted = multipletests([1.0 if p is None else p for p in p_values], method=method)[1]
    finally:
        gc.unfreeze()
    return [None if p is None else float(q) for p, q in zip(p_values, adjusted, strict=True)]
