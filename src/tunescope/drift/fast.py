"""The row-wise measures in one pass; a parity test holds it to `similarity`."""

import numpy as np

from tunescope.drift.gram import Array, StatesError, check_aligned, checked, reject_non_finite

ROWS_AT_ONCE = 64
"""Rows whose float64 copies stay in a core's cache."""


def row_measures(x: Array, y: Array, centred: bool = True) -> dict[str, float]:
    """The row-wise measures of `similarity` by their names in the drift table, in one blocked float64 pass; x is the base.

    centred: also `cosine_centred` and `cosine_standardised`, which constant features do not have. Raises StatesError as they do.
    """
    x, y = checked(x), checked(y)
    check_aligned(x, y, same_width=True)
    for side in (x, y):
        reject_non_finite(side)
    mean, sd = x.mean(axis=0, dtype=np.float64), _spread(x) if centred else np.ones(x.shape[1])
    cosines = {"cosine_raw": 0.0} | ({"cosine_centred": 0.0, "cosine_standardised": 0.0} if centred else {})
    shift, moved, power, n = np.zeros(x.shape[1]), 0.0, 0.0, x.shape[0]
    for start in range(0, n, ROWS_AT_ONCE):
        a, b = (side[start : start + ROWS_AT_ONCE].astype(np.float64) for side in (x, y))
        squares = np.einsum("ij,ij->i", a, a)
        step = b - a
        shift += step.sum(axis=0)
        power += squares.sum()
        cosines["cosine_raw"] += _cosines(a, b, start).sum()
        moved += np.sqrt(np.einsum("ij,ij->i", step, step) / squares).sum()
        if centred:
            a -= mean
            b -= mean
            cosines["cosine_centred"] += _cosines(a, b, start).sum()
            a /= sd
            b /= sd
            cosines["cosine_standardised"] += _cosines(a, b, start).sum()
    values = {name: float(total / n) for name, total in cosines.items()}
    return values | {"relative_displacement": float(moved / n), "mean_shift": float(np.linalg.norm(shift / n) / np.sqrt(power / n))}


def _spread(x: Array) -> Array:
    """The base's sd per dimension."""
    constant = (x == x[:1]).all(axis=0)
    if constant.any():
        raise StatesError(f"{int(constant.sum())} dimensions are constant in the base: standardised cosine is undefined")
    return x.std(axis=0, ddof=1, dtype=np.float64)


def _cosines(a: Array, b: Array, first: int) -> Array:
    norms = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    if (norms == 0).any():
        raise StatesError(f"example {first + int(np.argmin(norms))} has a zero vector: its cosine is undefined")
    return np.einsum("ij,ij->i", a, b) / norms
