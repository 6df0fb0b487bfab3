"""The drift table's measures on a GPU, of arrays or of tensors that are there already; parity tests hold them to the numpy path."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tunescope.drift.gram import Array, StatesError, check_aligned

BLOCK_VALUES = 2**22
"""Log-probabilities held in float64 at once."""


def device_measures(x: Array | Tensor, y: Array | Tensor, device: str) -> dict[str, float]:
    """The measures that every probe takes of a layer, by their names in the drift table, in float64 on a device; x is the base.

    Same definitions as `similarity`, for finite states of equal shape (n, d), n >= 4; one copy to the device and one back. Raises
    StatesError on zero rows, constant features, and a U-centred Gram matrix that vanishes.
    """
    check_aligned(x, y, same_width=True)
    if x.shape[0] < 4:
        raise StatesError(f"needs at least 4 examples, got n={x.shape[0]}")
    sides = [_there(side, device).double() for side in (x, y)]
    values = dict(_device_rows(*sides)) | dict(_device_kernel(*sides))
    found = dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True))
    if not np.isfinite(list(found.values())).all():
        raise StatesError("a zero row, or a dimension or all features constant: cosine or CKA is undefined")
    return found | {"cka_debiased": 1 - found["cka_drift_debiased"], "cka_plain": 1 - found["cka_drift_plain"]}


def _there(side: Array | Tensor, device: str) -> Tensor:
    return (side if isinstance(side, Tensor) else torch.from_numpy(np.ascontiguousarray(side))).to(device)


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


def device_cosine(x: Array | Tensor, y: Array | Tensor, device: str) -> float:
    """`similarity.cosine_similarity` (raw) on a device."""
    check_aligned(x, y, same_width=True)
    a, b = (_there(side, device).double() for side in (x, y))
    found = float(((a * b).sum(dim=1) / ((a * a).sum(dim=1) * (b * b).sum(dim=1)).sqrt()).mean())
    if not np.isfinite(found):
        raise StatesError("a zero or non-finite row: its cosine is undefined")
    return found


def device_divergence(base: Array | Tensor, tuned: Array | Tensor, device: str) -> tuple[float, float]:
    """`table.output_divergence` on a device."""
    size = max(1, BLOCK_VALUES // base.shape[1])
    total = torch.zeros(2, dtype=torch.float64, device=device)
    for start in range(0, base.shape[0], size):
        p, q = (_there(side[start : start + size], device).double().log_softmax(dim=1) for side in (base, tuned))
        total += torch.stack([(p.exp() * (p - q)).sum(), (p.argmax(dim=1) != q.argmax(dim=1)).sum()])
    divergence, differing = (total / base.shape[0]).tolist()
    if not np.isfinite(divergence):
        raise StatesError("NaN or infinite log-probabilities: their divergence is undefined")
    return divergence, differing
