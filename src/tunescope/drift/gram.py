"""Centred Gram matrices: the form in which every kernel measure works (n <= d), built once for the base and reused."""

from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tunescope.errors import StepError

Array = NDArray[np.floating]
SMALL_PRODUCT = 2**25
"""Multiplications (n*n*d) up to which a float64 GEMM costs nothing worth saving."""
INNER_BLOCK = 2**14
"""Values whose float64 copies stay in a core's cache."""
SAFE_AMPLITUDE = 2.0**20
"""Amplitudes outside [1/this, this] are rescaled by a power of two before squaring, which changes no rounding."""


class StatesError(StepError):
    """States from which no measure can be computed: not finite, too few, constant, or not aligned."""


def checked(states: Array, least: int = 4) -> Array:
    """Return `states` as a 2-d float array of at least `least` rows, or raise StatesError."""
    array = np.asarray(states)
    if array.ndim != 2 or array.shape[1] == 0:
        raise StatesError(f"states must have shape (n, d), got {array.shape}")
    if array.shape[0] < least:
        raise StatesError(f"needs at least {least} examples, got n={array.shape[0]}")
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float64 if array.dtype.kind in "iu" else np.float32)
    return array


class Shaped(Protocol):
    """An array or a tensor."""

    @property
    def shape(self) -> Sequence[int]: ...


def check_aligned(x: Shaped, y: Shaped, same_width: bool = False) -> None:
    """Raise StatesError unless both have the same rows (and, when asked, the same width)."""
    if x.shape[0] != y.shape[0]:
        raise StatesError(f"the two sets hold different numbers of examples: {x.shape[0]} and {y.shape[0]}")
    if same_width and x.shape[1] != y.shape[1]:
        raise StatesError(f"row-wise measures need equal widths, got {x.shape[1]} and {y.shape[1]}")


def reject_non_finite(states: Array) -> None:
    """Raise StatesError with the place of the first NaN or infinity."""
    bad = ~np.isfinite(states)
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise StatesError(f"{int(bad.sum())} of {bad.size} values are NaN or infinite (first: example {row}, dimension {column})")


def centred(states: Array, dtype: type = np.float64) -> Array:
    """Subtract the feature mean (taken in float64); the result has the given dtype.

    In float32 the mean is subtracted in two parts, so a dimension of mean 3,000 costs no precision.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        if dtype is np.float64:
            out = states.astype(np.float64)
            out -= out[0].copy()  # exact zeros for constant features, whatever the rounding of their mean
            out -= out.mean(axis=0)
            return out
        mean = np.mean(states, axis=0, dtype=np.float64)
        coarse = mean.astype(np.float32)
        out = np.subtract(states, coarse, dtype=np.float32)
        out -= (mean - coarse).astype(np.float32)
        return out


def inner(a: Array, b: Array) -> float:
    """Sum of products in float64, whatever the inputs' precision."""
    x, y, total = a.ravel(), b.ravel(), 0.0
    for start in range(0, x.size, INNER_BLOCK):
        p = x[start : start + INNER_BLOCK].astype(np.float64, copy=False)
        total += float(np.dot(p, p if a is b else y[start : start + INNER_BLOCK].astype(np.float64, copy=False)))
    return total


class Gram:
    """The centred Gram matrix of one representation, and what the measures need of it.

    `states` has shape (n, d), n >= 4. GEMM in float32 for large float32 states, else float64; sums in float64.
    Raises StatesError on NaN, infinity, or constant features.
    """

    def __init__(self, states: Array):
        x = self.states = checked(states)
        self.n = x.shape[0]
        small = self.n * self.n * x.shape[1] <= SMALL_PRODUCT
        self.dtype: type = np.float64 if small or x.dtype == np.float64 else np.float32
        self._matrix = _product(x, self.dtype)

    @cached_property
    def norm(self) -> float:
        """Frobenius norm of the stored matrix (itself scaled by a power of two)."""
        return float(np.sqrt(inner(self._matrix, self._matrix)))

    @property
    def unit(self) -> Array:
        """The Gram matrix over its Frobenius norm; computed at each call, which is cheap, to halve what a cache holds."""
        return np.divide(self._matrix, self.norm, dtype=np.float64).astype(self.dtype, copy=False)

    @property
    def participation(self) -> float:
        """(tr K)^2 / ||K||^2, the participation ratio of the spectrum."""
        return float((self._matrix.trace(dtype=np.float64) / self.norm) ** 2)

    @property
    def diagonal_share(self) -> float:
        """Sum of K_ii^2 / ||K||^2."""
        return float(np.sum((self._matrix.diagonal().astype(np.float64) / self.norm) ** 2))

    @cached_property
    def debiased(self) -> Array:
        """U-centred Gram matrix over its norm: zero diagonal, zero row sums (Szekely & Rizzo 2014)."""
        return u_centred(self._matrix)

    def block(self, rows: NDArray[np.integer]) -> Array:
        """The unit U-centred Gram matrix of some rows; U-centring needs no new feature mean."""
        return u_centred(self._matrix[np.ix_(rows, rows)])

    def release(self) -> None:
        """Free the U-centred copy; it costs a tenth of the Gram to build again."""
        self.__dict__.pop("debiased", None)


def gram(states: Array) -> Gram:
    """Build the cached Gram object of one representation, shape (n, d)."""
    return Gram(states)


def _product(x: Array, dtype: type) -> Array:
    """K = Xc Xc^T of centred features, rescaled by a power of two when squares could overflow or vanish."""
    z = centred(x, dtype)
    amplitude = max(abs(float(z.max())), abs(float(z.min())))
    if not np.isfinite(amplitude):
        reject_non_finite(x)
        raise StatesError("values are too large to be centred without overflow")
    if amplitude == 0.0:
        raise StatesError(f"features are constant over all {x.shape[0]} examples: similarity is undefined")
    if not 1 / SAFE_AMPLITUDE < amplitude < SAFE_AMPLITUDE:
        z = np.ldexp(z, -int(np.frexp(amplitude)[1])).astype(dtype)
    return z @ z.T


def u_centred(matrix: Array) -> Array:
    """U-centre a symmetric matrix and scale it to norm 1, shape (n, n), n >= 4.

    Subtracts row and column sums over n-2 and adds the total over (n-1)(n-2), off the diagonal; the diagonal is 0.
    Raises StatesError where nothing but rounding is left (for example, all points equally far apart).
    """
    n = matrix.shape[0]
    if n < 4:
        raise StatesError(f"debiased CKA needs at least 4 examples, got n={n}")
    a = matrix.astype(np.float64)
    np.fill_diagonal(a, 0.0)
    before = np.sqrt(inner(a, a))
    sums = a.sum(axis=1)
    share = sums / (n - 2) - sums.sum() / (2 * (n - 1) * (n - 2))
    a -= share[:, None]
    a -= share[None, :]
    np.fill_diagonal(a, 0.0)
    norm = np.sqrt(inner(a, a))
    if norm <= 32 * np.finfo(matrix.dtype).eps * before:
        raise StatesError("the U-centred Gram matrix vanishes: debiased CKA is undefined for these states")
    a /= norm
    return a.astype(matrix.dtype, copy=False)
