"""How far weights moved: norms, ranks and intruder dimensions of an update, and LoRA's use of its rank without forming it."""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import eigh, qr, svd, svdvals

from tunescope.drift.gram import Array, StatesError, reject_non_finite


def relative_update_norm(base: Array, tuned: Array) -> float:
    """||W' - W||_F / ||W||_F for matrices (out, in) of equal shape. Raises StatesError on a zero base."""
    w, v = _matrices(base, tuned)
    norm = np.linalg.norm(w)
    if norm == 0:
        raise StatesError("the base weight is all zero: its relative update has no scale")
    return float(np.linalg.norm(v - w) / norm)


def stable_rank(matrix: Array) -> float:
    """||M||_F^2 / ||M||_2^2, in [1, rank]. Raises StatesError on a zero matrix."""
    return _stable_rank(_spectrum(matrix))


def effective_rank(matrix: Array) -> float:
    """exp of the entropy of the normalised singular values, in [1, rank] (Roy & Vetterli 2007). Raises on a zero matrix."""
    return _effective_rank(_spectrum(matrix))


def intruder_dimensions(base: Array, tuned: Array, k: int = 10, threshold: float = 0.5) -> int:
    """How many of the tuned weight's top-k left singular vectors have |cosine| < threshold with every left singular vector
    of the base (Shuttleworth et al. 2024). Matrices (out, in) of equal shape; k at most the smaller side."""
    w, v = _matrices(base, tuned)
    return intruders(left_vectors(w), v, k, threshold)


def left_vectors(base: Array) -> Array:
    """Left singular vectors of a base weight (out, in), shape (out, rank), without its null directions, which are arbitrary."""
    vectors, values, _ = svd(base, full_matrices=False)
    kept = vectors[:, values > values[0] * max(base.shape) * np.finfo(values.dtype).eps]
    if kept.shape[1] == 0:
        raise StatesError("the base weight is all zero: it has no singular vectors to compare with")
    return kept


def intruders(base_vectors: Array, tuned: Array, k: int = 10, threshold: float = 0.5) -> int:
    """`intruder_dimensions` from the base's left singular vectors; only the top k of the tuned weight are computed."""
    v = np.asarray(tuned, dtype=np.float64)
    top = min(k, *v.shape)
    _, vectors = eigh(v @ v.T, subset_by_index=(v.shape[0] - top, v.shape[0] - 1))
    return int((np.abs(base_vectors.T @ vectors).max(axis=0) < threshold).sum())


@dataclass(frozen=True)
class LoraUpdate:
    """The update of one LoRA pair. Ranks and utilisation are None for a zero update (B starts at zero)."""

    norm: float
    """Frobenius norm of scaling * B A."""
    singular_values: tuple[float, ...]
    stable_rank: float | None
    effective_rank: float | None
    utilisation: float | None
    """Effective rank over r, in (0, 1]."""


def lora_update(a: Array, b: Array, scaling: float) -> LoraUpdate:
    """Spectrum of scaling * B A from two thin QRs and an r x r SVD; the (out, in) product is never formed.

    a: (r, in), b: (out, r). B A = Q_b (R_b R_a^T) Q_a^T, so its singular values are those of the r x r middle.
    """
    left, right = np.asarray(b, dtype=np.float64), np.asarray(a, dtype=np.float64).T
    reject_non_finite(left)
    reject_non_finite(right)
    if left.shape[1] != right.shape[1]:
        raise StatesError(f"A has rank {right.shape[1]} but B has rank {left.shape[1]}")
    values = svdvals(scaling * qr(left, mode="r")[0][: left.shape[1]] @ qr(right, mode="r")[0][: right.shape[1]].T)
    norm = float(np.linalg.norm(values))
    spectrum = tuple(float(v) for v in values)
    if norm == 0:
        return LoraUpdate(0.0, spectrum, None, None, None)
    effective = _effective_rank(values)
    return LoraUpdate(norm, spectrum, _stable_rank(values), effective, effective / left.shape[1])


def _matrices(base: Array, tuned: Array) -> tuple[Array, Array]:
    w, v = np.asarray(base, dtype=np.float64), np.asarray(tuned, dtype=np.float64)
    if w.shape != v.shape or w.ndim != 2:
        raise StatesError(f"weights must be two matrices of one shape, got {w.shape} and {v.shape}")
    reject_non_finite(w)
    reject_non_finite(v)
    return w, v


def _spectrum(matrix: Array) -> Array:
    values = svdvals(np.asarray(matrix, dtype=np.float64))
    if values[0] == 0:
        raise StatesError("a zero matrix has no rank to measure")
    return values


def _stable_rank(values: Array) -> float:
    return float(np.sum((values / values[0]) ** 2))


def _effective_rank(values: Array) -> float:
    share = values[values > 0] / values.sum()
    return float(np.exp(-np.sum(share * np.log(share))))
