"""Fast paths of the drift table, each with a parity test against `similarity`: row-wise measures in one pass, and a layer on a GPU."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

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


def device_measures(x: Array, y: Array, device: str) -> dict[str, float]:
    """The measures that every probe takes of a layer, by their names in the drift table, in float64 on a device; x is the base.

    Same definitions as `similarity`, for finite states of equal shape (n, d), n >= 4; one copy to the device and one back. Raises
    StatesError on zero rows, constant features, and a U-centred Gram matrix that vanishes.
    """
    check_aligned(checked(x), checked(y), same_width=True)
    sides = [torch.from_numpy(np.ascontiguousarray(side)).to(device).double() for side in (x, y)]
    values = dict(_device_rows(*sides)) | dict(_device_kernel(*sides))
    found = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    if not np.isfinite(list(found.values())).all():
        raise StatesError("a zero row, or a dimension or all features constant: cosine or CKA is undefined")
    return found | {"cka_debiased": 1 - found["cka_drift_debiased"], "cka_plain": 1 - found["cka_drift_plain"]}


def _device_rows(a: Tensor, b: Tensor) -> Iterator[tuple[str, Tensor]]:
    mean = a.mean(dim=0)
    sd = torch.where((a == a[:1]).all(dim=0), torch.nan, a.std(dim=0))  # rounding gives a constant a tiny sd, and any cosine
    for name, p, q in (("raw", a, b), ("centred", a - mean, b - mean), ("standardised", (a - mean) / sd, (b - mean) / sd)):
        yield f"cosine_{name}", ((p * q).sum(dim=1) / ((p * p).sum(dim=1) * (q * q).sum(dim=1)).sqrt()).mean()
    yield "relative_displacement", ((b - a).norm(dim=1) / a.norm(dim=1)).mean()
    yield "mean_shift", (b - a).mean(dim=0).norm() / (a * a).sum(dim=1).mean().sqrt()


def _device_kernel(a: Tensor, b: Tensor) -> Iterator[tuple[str, Tensor]]:
    n = a.shape[0]
    grams = [_gram(side) for side in (a, b)]
    for name, form in (("debiased", _u_centred), ("plain", _unit)):
        p, q = (form(k) for k in grams)
        yield f"cka_drift_{name}", (p - q).square().sum() / 2
    units = [_unit(k) for k in grams]
    participation = [k.trace() ** 2 for k in units]
    excess = [
        (n - 1) / (n - 3) * (n * (n + 1) * k.diagonal().square().sum() - (n - 1) * (p + 2))
        for k, p in zip(units, participation, strict=True)
    ]
    spread = (n - 1 - participation[0]) * (n - 1 - participation[1]) + (n - 3) / (2 * n * (n - 1)) * excess[0] * excess[1]
    yield "cka_chance_mean", (participation[0] * participation[1]).sqrt() / (n - 1)
    yield "cka_chance_sd", (2 * spread / ((n + 1) * (n - 1) ** 2 * (n - 2))).clamp(min=0).sqrt()


def _gram(x: Tensor) -> Tensor:
    z = x - x[:1]  # exact zeros for constant features, whatever the rounding of their mean
    z = z - z.mean(dim=0)
    z = z / z.abs().max()
    return z @ z.T


def _unit(gram: Tensor) -> Tensor:
    return gram / gram.norm()


def _u_centred(gram: Tensor) -> Tensor:
    n = gram.shape[0]
    a = gram - gram.diagonal().diag()
    before, sums = a.norm(), a.sum(dim=1)
    share = sums / (n - 2) - sums.sum() / (2 * (n - 1) * (n - 2))
    a = a - share[:, None] - share[None, :]
    a = a - a.diagonal().diag()
    norm = a.norm()
    return a / torch.where(norm > 32 * torch.finfo(a.dtype).eps * before, norm, torch.nan)
