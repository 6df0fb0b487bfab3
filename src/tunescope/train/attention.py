"""Attention over flattened rows: every row attends to itself alone, without a mask, through torch's variable-length kernel.

Legend: T tokens of all rows together, H heads, K key-value heads, D head width.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from tunescope.errors import StudyError

VARLEN = "tunescope_varlen"
_ACCEPTED = inspect.signature(varlen_attn).parameters  # grows from version to version


def varlen_attention(
    module: nn.Module,
    query_1HTD: Tensor,
    key_1KTD: Tensor,
    value_1KTD: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention call for flattened rows; `cu_seq_lens_q` (rows + 1,) int32 says where each begins. Returns (1, T, H, D)."""
    if cu_seq_lens_q is None or max_length_q is None or query_1HTD.shape[0] != 1:
        raise ValueError("variable-length attention takes flattened rows with their offsets; padded batches need sdpa")
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if others.get(name) is not None]
    if unknown:
        raise StudyError(f"training.batching: packed attention has no {', '.join(unknown)}, which this model needs; set it to padded")
    value = value_1KTD[0].transpose(0, 1)
    # Rotary embedding under autocast leaves queries and keys in fp32; sdpa would be cast by autocast, this operator is not.
    query, key = (x[0].transpose(0, 1).to(value.dtype) for x in (query_1HTD, key_1KTD))
    options: dict[str, Any] = {"window_size": (-1 if sliding_window is None else sliding_window - 1, 0)}
    if "scale" in _ACCEPTED:
        options["scale"] = scaling
    elif scaling is not None:
        query = query * (scaling * math.sqrt(query.shape[-1]))
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and "enable_gqa" in _ACCEPTED:
        options["enable_gqa"] = True
    elif groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    out_THD: Any = varlen_attn(query, key, value, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **options)
    return out_THD[None], None


AttentionInterface.register(VARLEN, varlen_attention)


@contextmanager
def isolating(model: Any, batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The extra arguments that keep the rows of a flattened batch apart; none for a padded one.

    On a GPU in half precision: the variable-length kernel, for this call only, because the name of an attention sticks to the model's
    config and everything else (padded batches, generation, probes) needs sdpa. Elsewhere transformers builds a block mask from positions
    that restart at 0 — but only without an attention mask and without a cache object.
    """
    if "cu_seqlens" not in batch:
        yield {}
        return
    positions = {"position_ids": batch["position_ids"]}
    if not (batch["input_ids"].is_cuda and _half_precision(model)):
        yield positions
        return
    config = model.get_decoder().config
    usual = config._attn_implementation
    offsets, longest = batch["cu_seqlens"], batch["longest"]
    config._attn_implementation = VARLEN
    try:
        yield positions | {"cu_seq_lens_q": offsets, "cu_seq_lens_k": offsets, "max_length_q": longest, "max_length_k": longest}
    finally:
        config._attn_implementation = usual


def _half_precision(model: Any) -> bool:
    return torch.is_autocast_enabled("cuda") or model.dtype in (torch.bfloat16, torch.float16)
