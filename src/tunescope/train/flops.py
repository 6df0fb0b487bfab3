"""Arithmetic of a training run: operations a token by method, and the share of the device's peak they reach (MFU)."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from tunescope.models.loading import decoder_layers

from .batching import Row

PEAKS = {
    "NVIDIA H200": (989.4e12, 66.9e12),
    "NVIDIA H100 80GB HBM3": (989.4e12, 66.9e12),
    "NVIDIA H100 PCIe": (756e12, 51.2e12),
    "NVIDIA H100 NVL": (835.5e12, 60e12),
    "NVIDIA A100-SXM4-40GB": (312e12, 19.5e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 19.5e12),
    "NVIDIA A100-PCIE-40GB": (312e12, 19.5e12),
    "NVIDIA A100 80GB PCIe": (312e12, 19.5e12),
    "NVIDIA L40S": (362e12, 91.6e12),
    "NVIDIA L4": (121e12, 30.3e12),
    "NVIDIA A10": (125e12, 31.2e12),
}
"""CUDA device name -> peak FLOP/s in bf16 (dense, tensor cores) and in fp32 (no TF32: it is off here), from NVIDIA's data sheets.

Whole cards only: a slice of one (MIG) has another name, and an unknown name gets no MFU rather than a wrong one.
"""


def peak_flops(device: str, precision: str) -> float | None:
    """Peak FLOP/s of this device in a run's precision; None for a CPU or a device that is not in PEAKS."""
    peaks = PEAKS.get(torch.cuda.get_device_name(device)) if device.startswith("cuda") else None
    return None if peaks is None else peaks[precision == "fp32"]


def flops_per_token(model: Any, rows: Sequence[Row], trainable: int, *, adapted: bool) -> float:
    """Training FLOPs a real token: full 6N, adapters 4N + 6·(adapter parameters), plus the head on the completion tokens alone.

    N counts the base weights of the decoder layers. A multiply and an add are 2: forward 2N, gradients of activations 2N, gradients of
    weights 2N, which frozen weights do not need. Attention scores (2·layers·width·length a token and pass) are left out, as usual for
    short texts; so is what gradient checkpointing computes again (Chowdhery et al. 2022, PaLM, appendix B: model FLOPs, not hardware's).

    Args:
        rows: the training rows, for the share of completion tokens.
        trainable: parameters of the adapter (unused for full fine-tuning).
    """
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = sum(p.numel() for p in decoder_layers(base).parameters() if not adapted or not p.requires_grad)
    head = base.get_output_embeddings().weight.numel()
    completions = sum(len(r.input_ids) - r.prompt_length for r in rows) / sum(len(r.input_ids) for r in rows)
    if not adapted:
        return 6.0 * layers + 6.0 * head * completions
    return 4.0 * layers + 6.0 * trainable + 4.0 * head * completions
