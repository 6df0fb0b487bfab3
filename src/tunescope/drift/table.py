"""The drift table: every measure of one probe against the base, as long rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_softmax

from tunescope.drift import similarity
from tunescope.drift.fast import row_measures
from tunescope.drift.gram import Array, StatesError, check_aligned, reject_non_finite
from tunescope.drift.states import ProbeStates, check_probe
from tunescope.study.schema import DriftSpec

WHOLE = -1
OUTPUT_LAYER = -1
"""`layer` of measures of the model's output distribution."""
EXTRA_POOLINGS = dict.fromkeys(("attention", "mlp", "log_probs"), "last_prompt_token") | {"tokens": "token", "text_nll": "held_out_text"}
BLOCK_VALUES = 2**20
"""Log-probabilities held in float64 at once."""


class Row(NamedTuple):
    """One row of drift.parquet, without its step."""

    scored: bool
    layer: int
    pooling: str
    measure: str
    block: int
    value: float
    n: int


def drift_table(base_states: ProbeStates, states: ProbeStates, spec: DriftSpec, scored: bool, device: str = "cpu") -> pd.DataFrame:
    """Every measure of `states` against `base_states`, one row per layer, pooling, measure and block.

    The costly ones (Procrustes, jackknife error, blocks, internals) are taken at the scored probe only. The others are computed on
    `device` where that is a GPU (there `states` may still hold tensors), else with numpy, which needs no torch.
    Raises StatesError naming run and layer for states that cannot be compared.
    """
    check_probe(states.probe_sha256, base_states.probe_sha256, states.source)
    if base_states.layers.keys() != states.layers.keys():
        raise StatesError(f"{states.source}: layers and poolings differ from those of {base_states.source}")
    rows: list[Row] = []
    for layer, pooling in sorted(states.layers):
        with naming(base_states, states, f"layer {layer}, {pooling}"):
            rows += _layer_rows(base_states, states, layer, pooling, spec, scored, device)
    rows += _extra_rows(base_states, states, scored, device)
    return pd.DataFrame(rows, columns=list(Row._fields))


@contextmanager
def naming(base: ProbeStates, tuned: ProbeStates, part: str) -> Iterator[None]:
    """Put the two runs and the part of their states before the message of a StatesError."""
    try:
        yield
    except StatesError as error:
        raise StatesError(f"{tuned.source} against {base.source}, {part}: {error}") from error


def registered_scalar(table: pd.DataFrame, pooling: str, block: int = WHOLE) -> float:
    """Mean over decoder layers 1..L of debiased-CKA drift at the scored probe: the one number fixed before the runs."""
    chosen = table[
        table["scored"]
        & (table["layer"] > 0)
        & (table["pooling"] == pooling)
        & (table["measure"] == "cka_drift_debiased")
        & (table["block"] == block)
    ]
    if chosen.empty:
        raise StatesError(f"no scored cka_drift_debiased rows for pooling {pooling}, block {block}")
    return float(chosen["value"].mean())


def _layer_rows(
    base: ProbeStates, tuned: ProbeStates, layer: int, pooling: str, spec: DriftSpec, scored: bool, device: str
) -> list[Row]:  # fmt: skip
    x, y = base.layers[layer, pooling], tuned.layers[layer, pooling]
    # All prompts of a task end in the same token, so its embedding is one constant vector: CKA is undefined there, not 0 or 1.
    defined = not (layer == 0 and _constant(x) and _constant(y))
    blocks: list[tuple[int, float, int]] = []
    if defined and not scored and device != "cpu":
        from tunescope.drift.on_device import device_measures

        values = device_measures(x, y, device)
    else:
        y = y if isinstance(y, np.ndarray) else y.cpu().numpy()
        values = row_measures(x, y, centred=defined)
        if defined:
            a, b = base.gram(layer, pooling), similarity.gram(y)
            values |= dict(_kernel(a, b, scored))
            if scored and pooling == spec.primary_pooling:
                blocks = list(block_drifts(a, b, spec.blocks))
            a.release()
            if scored:  # a run's last probe
                base.forget(layer, pooling)
    rows = [Row(scored, layer, pooling, name, WHOLE, value, x.shape[0]) for name, value in values.items()]
    return rows + [Row(scored, layer, pooling, "cka_drift_debiased", index, value, n) for index, value, n in blocks]


def _constant(states: Array) -> bool:
    return bool((states == states[:1]).all())


def _kernel(a: similarity.Gram, b: similarity.Gram, scored: bool) -> Iterator[tuple[str, float]]:
    debiased, plain = similarity.cka_drift(a, b), similarity.cka_drift(a, b, debiased=False)
    yield from {
        "cka_debiased": 1 - debiased,
        "cka_plain": 1 - plain,
        "cka_drift_debiased": debiased,
        "cka_drift_plain": plain,
    }.items()
    mean, sd = similarity.cka_chance(a, b)
    yield from {"cka_chance_mean": mean, "cka_chance_sd": sd}.items()
    if scored:
        yield "cka_standard_error", similarity.cka_standard_error(a, b)
        yield "procrustes", similarity.procrustes(a, b)


def block_drifts(a: similarity.Gram, b: similarity.Gram, blocks: int) -> Iterator[tuple[int, float, int]]:
    """Debiased drift on disjoint blocks (example i in block i mod `blocks`): (block, drift, examples)."""
    if a.n // blocks < 4:
        raise StatesError(f"{a.n} probe examples give blocks of fewer than 4; take more probe examples or fewer than {blocks} blocks")
    for index in range(blocks):
        rows = np.arange(index, a.n, blocks)
        yield index, similarity.unit_distance(a.block(rows), b.block(rows)), len(rows)


def _extra_rows(base: ProbeStates, tuned: ProbeStates, scored: bool, device: str) -> Iterator[Row]:
    """Measures of what both probes kept besides pooled states."""
    for name in sorted(base.extras.keys() & tuned.extras.keys()):
        kind, _, layer = name.partition(".")
        x, y = base.extras[name], tuned.extras[name]
        with naming(base, tuned, f"layer {layer}, {kind}" if layer else kind):
            check_aligned(x, y)
            if isinstance(y, np.ndarray):  # what is on the device is checked there
                reject_non_finite(y)
            for measure, value in _extra_values(kind, x, y, device):
                yield Row(scored, int(layer or OUTPUT_LAYER), EXTRA_POOLINGS[kind], measure, WHOLE, value, x.shape[0])


def _extra_values(kind: str, x: Array, y: Array, device: str) -> Iterator[tuple[str, float]]:
    if kind == "tokens":
        yield "token_cosine", _token_cosine(x, y, device)
    elif kind == "attention":
        yield "attention_js", jensen_shannon(x, y)
    elif kind == "mlp":
        yield "mlp_cosine", similarity.cosine_similarity(x, y)
        yield "mlp_displacement", similarity.relative_displacement(x, y)
    elif kind == "text_nll":
        tuned, base = float(y.mean(dtype=np.float64)), float(x.mean(dtype=np.float64))
        yield from {"text_nll": tuned, "text_perplexity": float(np.exp(tuned)), "forgetting": tuned - base}.items()
    elif kind == "log_probs":
        yield from zip(("next_token_kl", "top1_disagreement"), _divergence(x, y, device), strict=True)


def _token_cosine(x: Array, y: Array, device: str) -> float:
    if device == "cpu":
        return similarity.cosine_similarity(x, y)
    from tunescope.drift.on_device import device_cosine

    return device_cosine(x, y, device)


def _divergence(x: Array, y: Array, device: str) -> tuple[float, float]:
    if device == "cpu":
        return output_divergence(x, y)
    from tunescope.drift.on_device import device_divergence

    return device_divergence(x, y, device)


def output_divergence(base: Array, tuned: Array) -> tuple[float, float]:
    """Mean KL(base || tuned) in nats and share of differing top-1 tokens, from log-probabilities (n, vocabulary).

    Runs over blocks of examples, so that float64 copies stay small whatever the vocabulary; normalised again, as fp32
    log-probabilities sum to 1 + 1e-7.
    """
    total, differing, size = 0.0, 0, max(1, BLOCK_VALUES // base.shape[1])
    for start in range(0, base.shape[0], size):
        p, q = (log_softmax(side[start : start + size].astype(np.float64), axis=1) for side in (base, tuned))
        total += float(np.einsum("ij,ij->", np.exp(p), p - q))
        differing += int((p.argmax(axis=1) != q.argmax(axis=1)).sum())
    return total / base.shape[0], differing / base.shape[0]


def jensen_shannon(p: Array, q: Array) -> float:
    """Mean Jensen-Shannon divergence in bits, in [0, 1], of distributions along the last axis (zeros allowed)."""
    a, b = p.astype(np.float64), q.astype(np.float64)
    m = (a + b) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(a > 0, a * np.log2(a / m), 0.0) + np.where(b > 0, b * np.log2(b / m), 0.0)
    return float(terms.sum(axis=-1).mean() / 2)
