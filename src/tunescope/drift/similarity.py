"""Similarity of two representations of the same inputs, on arrays of shape (n, d): row i of both is example i.

Every function takes arrays; the kernel measures also take `Gram` objects, so that the base side is computed once.
Nothing is clipped and no epsilon is added: what cannot be computed raises StatesError.
"""

from typing import Literal

import numpy as np
from scipy.linalg import lapack, svdvals

from tunescope.drift.gram import Array, Gram, StatesError, centred, check_aligned, checked, gram, inner, reject_non_finite

__all__ = [
    "Gram",
    "StatesError",
    "cka_chance",
    "cka_drift",
    "cka_standard_error",
    "cosine_similarity",
    "debiased_cka",
    "gram",
    "linear_cka",
    "mean_shift",
    "procrustes",
    "relative_displacement",
]
Representation = Array | Gram
CosineForm = Literal["raw", "centred", "standardised"]


def linear_cka(x: Representation, y: Representation) -> float:
    """Linear CKA, ||Yc^T Xc||^2_F / (||Xc^T Xc||_F ||Yc^T Yc||_F), in [0, 1] (Kornblith et al. 2019).

    Biased upwards when n is not much larger than d: see `cka_chance` and `debiased_cka`.
    """
    return 1.0 - cka_drift(x, y, debiased=False)


def debiased_cka(x: Representation, y: Representation) -> float:
    """CKA from U-centred Grams: unbiased HSIC above and below (Song et al. 2012). At most 1; may be negative."""
    return 1.0 - cka_drift(x, y, debiased=True)


def cka_drift(x: Representation, y: Representation, debiased: bool = True) -> float:
    """1 - CKA as half the squared distance of the unit Grams, ||K/|K| - L/|L| ||^2_F / 2.

    Accurate far below float32's resolution of 1 - CKA, and exactly 0 for equal states. Needs n >= 4.
    """
    a, b = _pair(x, y)
    return unit_distance(a.debiased, b.debiased) if debiased else unit_distance(a.unit, b.unit)


def unit_distance(a: Array, b: Array) -> float:
    """Half the squared Frobenius distance of two matrices of norm 1, which is 1 minus their cosine."""
    difference = a - b
    return 0.5 * inner(difference, difference)


def cka_chance(x: Representation, y: Representation) -> tuple[float, float]:
    """Exact mean and sd of plain linear CKA over all row permutations of one side (Kazi-Aoual et al. 1995).

    O(n^2) from traces of the centred Grams; no permutation is drawn. The null is "the rows are unrelated".
    """
    a, b = _pair(x, y)
    n = a.n
    mean = np.sqrt(a.participation * b.participation) / (n - 1)
    # The published form divides by n-1-participation, which is 0 for white data; here that factor is multiplied out.
    spread = (n - 1 - a.participation) * (n - 1 - b.participation)
    skew = (n - 3) / (2 * n * (n - 1)) * _diagonal_excess(a) * _diagonal_excess(b)
    variance = 2 * (spread + skew) / ((n + 1) * (n - 1) ** 2 * (n - 2))
    return float(mean), float(np.sqrt(variance)) if variance > 0 else 0.0


def _diagonal_excess(g: Gram) -> float:
    n = g.n
    return (n - 1) / (n - 3) * (n * (n + 1) * g.diagonal_share - (n - 1) * (g.participation + 2))


def cka_standard_error(x: Representation, y: Representation) -> float:
    """Jackknife standard error of debiased CKA (and of its drift), over examples. Needs n >= 5.

    All leave-one-out values in closed form: with U-centred A, B of norm 1, leaving out row i changes each inner product
    <A, B> to <A, B> - c (A*B 1)_i, c = 2(n-2)/(n-3). Written in A - B, so that it stays accurate near CKA = 1.
    """
    a, b = _pair(x, y)
    n = a.n
    if n < 5:
        raise StatesError(f"the jackknife of debiased CKA needs at least 5 examples, got n={n}")
    left_out = _leave_one_out_drift(a.debiased.astype(np.float64), b.debiased.astype(np.float64))
    return float(np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2)))


def _leave_one_out_drift(a: Array, b: Array) -> Array:
    """Debiased drift without example i, for every i; a, b U-centred with norm 1."""
    n = a.shape[0]
    c = 2 * (n - 2) / (n - 3)
    difference = a - b
    rows = np.einsum("ij,ij->i", difference, difference)
    p = 1 - c * np.einsum("ij,ij->i", a, a)
    q = 1 - c * np.einsum("ij,ij->i", b, b)
    if min(p.min(), q.min()) <= 1e-12:
        raise StatesError("one example carries all variation: the jackknife is undefined")
    p_minus_q = -c * np.einsum("ij,ij->i", difference, a + b)
    gap = p_minus_q / (np.sqrt(p) + np.sqrt(q))
    return (rows.sum() - c * rows - gap**2) / (2 * np.sqrt(p * q))


def cosine_similarity(x: Array, y: Array, form: CosineForm = "raw") -> float:
    """Mean over examples of the cosine of x_i and y_i, in [-1, 1]; x is the base.

    `centred` subtracts the base's mean from both sides; `standardised` also divides both by the base's sd per dimension.
    Raises StatesError on a zero row, and for `standardised` on a dimension that is constant in the base.
    """
    a, b = _rows(x, y)
    if form != "raw":
        mean = a.mean(axis=0)
        a -= mean
        b -= mean
    if form == "standardised":
        constant = (x == x[:1]).all(axis=0)
        if constant.any():
            raise StatesError(f"{int(constant.sum())} dimensions are constant in the base: standardised cosine is undefined")
        sd = np.sqrt(np.einsum("ij,ij->j", a, a) / (a.shape[0] - 1))
        a /= sd
        b /= sd
    return float(row_cosines(a, b).mean())


def row_cosines(a: Array, b: Array) -> Array:
    """Cosine of each pair of rows, shape (n,); raises StatesError on a zero row."""
    norms = np.sqrt(np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b))
    if (norms == 0).any():
        raise StatesError(f"example {int(np.argmin(norms))} has a zero vector: its cosine is undefined")
    return np.einsum("ij,ij->i", a, b) / norms


def relative_displacement(x: Array, y: Array) -> float:
    """Mean over examples of ||y_i - x_i|| / ||x_i||; x is the base. Raises StatesError on a zero row of x."""
    a, b = _rows(x, y)
    norms = _row_norms(a)
    if (norms == 0).any():
        raise StatesError(f"example {int(np.argmin(norms))} has a zero vector in the base: displacement is undefined")
    b -= a
    return float((_row_norms(b) / norms).mean())


def _row_norms(a: Array) -> Array:
    return np.sqrt(np.einsum("ij,ij->i", a, a))


def mean_shift(x: Array, y: Array) -> float:
    """||mean(y) - mean(x)|| over the base's root-mean-square row norm: the part of drift that CKA cannot see."""
    a, b = _rows(x, y)
    scale = np.sqrt(np.einsum("ij,ij->", a, a) / a.shape[0])
    if scale == 0:
        raise StatesError("all base states are zero: the mean shift has no scale")
    b -= a
    return float(np.linalg.norm(b.mean(axis=0)) / scale)


def procrustes(x: Representation, y: Representation) -> float:
    """Squared distance of the centred, unit-norm states after the best rotation, 2 - 2 ||Xc^T Yc||_* / (|Xc| |Yc|), in [0, 2].

    The nuclear norm is taken in n x n form from Cholesky factors of float64 Grams (features themselves when d <= n).
    """
    a, b = (v.states if isinstance(v, Gram) else checked(v) for v in (x, y))
    check_aligned(a, b)
    left, right = _factor(a), _factor(b)
    if np.array_equal(left, right):
        return 0.0  # the best rotation is the identity; the SVD would only add rounding
    nuclear = svdvals(left.T @ right, check_finite=False, overwrite_a=True).sum()
    return float(2 - 2 * nuclear / np.sqrt(inner(left, left) * inner(right, right)))


def _factor(x: Array) -> Array:
    """F with F F^T = Xc Xc^T in float64, at most n columns, scaled by a power of two."""
    z = centred(x)
    amplitude = float(np.abs(z).max())
    if not np.isfinite(amplitude):
        reject_non_finite(x)
    if amplitude == 0.0:
        raise StatesError("features are constant: the Procrustes distance is undefined")
    z = np.ldexp(z, -int(np.frexp(amplitude)[1]))
    n, d = z.shape
    if d <= n:
        return z
    lower, pivots, rank, _ = lapack.dpstrf(z @ z.T, tol=0.0, lower=1, overwrite_a=1)
    factor = np.empty((n, rank))
    factor[pivots - 1] = np.tril(lower)[:, :rank]
    return factor


def _pair(x: Representation, y: Representation) -> tuple[Gram, Gram]:
    a, b = (v if isinstance(v, Gram) else Gram(v) for v in (x, y))
    check_aligned(a.states, b.states)
    return a, b


def _rows(x: Array, y: Array) -> tuple[Array, Array]:
    """Float64 copies of both sides, checked for row-wise measures; the caller may overwrite them."""
    a, b = checked(x), checked(y)
    check_aligned(a, b, same_width=True)
    for side in (a, b):
        reject_non_finite(side)
    return a.astype(np.float64), b.astype(np.float64)
