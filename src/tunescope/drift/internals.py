"""Optional internals: attention of the last prompt token and MLP activations, of as many first examples as fit."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunescope.drift.gram import Array, StatesError
from tunescope.drift.hooks import Batch, base_of, decoder_layers, make_batch
from tunescope.errors import StepError

INTERNAL_BYTES = 256 * 2**20
ATTENTION_NAMES = ("self_attn", "attn", "attention")


def internal_states(model: nn.Module, tokens: list[list[int]], pad: int, batch_size: int, device: str) -> dict[str, Array]:
    """`attention.{k}`: (m, heads, length) attention of the last prompt token, zero beyond the prompt; `mlp.{k}`: (m, width)
    inputs of the MLP's down projection at that token. Needs eager attention, which is switched on for this pass only.
    """
    config = base_of(model).config.get_text_config()
    length = max(len(ids) for ids in tokens)
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    per_example = 4 * len(decoder_layers(model)) * (config.num_attention_heads * length + inner)
    m = max(1, min(len(tokens), INTERNAL_BYTES // per_example))
    kept = _Kept(m, length)
    with _eager(model), _hooked(model, kept):
        for start in range(0, m, batch_size):
            kept.batch = make_batch(list(range(start, min(start + batch_size, m))), tokens, pad, False, device)
            model(**kept.batch.inputs(), use_cache=False, logits_to_keep=1)
    for name, value in kept.arrays.items():
        if not torch.isfinite(value).all():
            raise StatesError(f"{name.replace('.', ' of layer ')}: NaN or infinite values")
    return {name: value.numpy() for name, value in sorted(kept.arrays.items())}


class _Kept:
    """Arrays filled batch by batch."""

    def __init__(self, m: int, length: int):
        self.batch: Batch
        self.arrays: dict[str, Tensor] = {}
        self._m, self._length = m, length

    def attention(self, layer: int, weights: Tensor | None) -> None:
        if weights is None:
            raise StepError("drift.internals: this model returns no attention weights; set drift.internals to false")
        rows, last = self.batch.rows, self.batch.last_B
        width = self.batch.ids_BT.shape[1]
        extra = weights.shape[-2] - width  # virtual prompt tokens are queries too
        chosen = weights[torch.arange(len(rows), device=weights.device), :, last + extra, -width:].float().cpu()
        kept = self.arrays.setdefault(f"attention.{layer}", torch.zeros(self._m, chosen.shape[1], self._length))
        kept[rows, :, :width] = chosen

    def mlp(self, layer: int, activation: Tensor) -> None:
        rows = self.batch.rows
        last = self.batch.last_B + activation.shape[1] - self.batch.ids_BT.shape[1]
        chosen = activation[torch.arange(len(rows), device=activation.device), last].float().cpu()
        self.arrays.setdefault(f"mlp.{layer}", torch.zeros(self._m, chosen.shape[1]))[rows] = chosen


@contextmanager
def _eager(model: nn.Module) -> Iterator[None]:
    base = base_of(model)
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        yield
    finally:
        base.set_attn_implementation(before)


@contextmanager
def _hooked(model: nn.Module, kept: _Kept) -> Iterator[None]:
    def attention(layer: int) -> Callable[..., None]:
        return lambda _m, _args, result: kept.attention(layer, result[1] if isinstance(result, tuple) else None)

    def mlp(layer: int) -> Callable[..., None]:
        return lambda _m, args: kept.mlp(layer, args[0])

    with ExitStack() as stack:
        for k, layer in enumerate(decoder_layers(model), start=1):
            stack.callback(_part(layer, ATTENTION_NAMES).register_forward_hook(attention(k)).remove)
            stack.callback(_down_projection(layer).register_forward_pre_hook(mlp(k)).remove)
        yield


def _part(layer: nn.Module, names: tuple[str, ...]) -> Any:
    for name in names:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise StepError(f"drift.internals: {type(layer).__name__} has none of {', '.join(names)}; set drift.internals to false")


def _down_projection(layer: nn.Module) -> Any:
    return _part(_part(layer, ("mlp",)), ("down_proj", "c_proj", "dense_4h_to_h"))
