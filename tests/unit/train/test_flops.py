"""Operations a token against PyTorch's own count of every matrix product, and the peak they are set against."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tiny_training import PAD, some_rows, tiny
from tunescope.models.loading import decoder_layers, parameter_counts
from tunescope.models.lora_utils import apply_adapter
from tunescope.study.schema import AdapterSpec
from tunescope.train import flops
from tunescope.train.batching import collate, completion_loss

ROWS = [row for row in some_rows(64) if len(row.input_ids) == len(some_rows(64)[0].input_ids)][:6]
"""Rows of one length: no padding, so that every token that is computed is a real one."""


def counted(model, batch) -> dict[str, float]:
    """FLOPs of one forward and backward pass: all, and those of attention scores."""
    with FlopCounterMode(display=False) as counter:
        completion_loss(model, batch).backward()
    found = counter.get_flop_counts()["Global"]
    scores = sum(v for k, v in found.items() if "attention" in str(k) or "bmm" in str(k))
    return {"all": counter.get_total_flops(), "scores": scores}


def matrices(model) -> int:
    """Weights of the decoder layers that are multiplied with activations: all but the norms."""
    return sum(p.numel() for n, p in decoder_layers(model).named_parameters() if p.dim() == 2 and "lora_" not in n)


def shape():
    return tiny(hidden_size=64, intermediate_size=176, num_hidden_layers=3, vocab_size=61)


def test_full_fine_tuning_is_six_n():
    model = shape()
    tokens = sum(len(r.input_ids) for r in ROWS)
    assert len(ROWS) >= 3 and len({len(r.input_ids) for r in ROWS}) == 1
    found = counted(model, collate(ROWS, PAD))
    formula = flops.flops_per_token(model, ROWS, parameter_counts(model)[0], adapted=False) * tokens
    norms = 6 * (sum(p.numel() for p in decoder_layers(model).parameters()) - matrices(model)) * tokens
    assert found["all"] - found["scores"] == round(formula) - norms  # to the last operation
    assert norms < 0.01 * formula


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), "all-linear"])
def test_lora_is_four_n_and_six_of_its_own(targets):
    base = shape()
    model = apply_adapter(base, AdapterSpec(r=4, lora_dropout=0.0, target_modules=targets), 0)
    tokens = sum(len(r.input_ids) for r in ROWS)
    trainable = parameter_counts(model)[0]
    found = counted(model, collate(ROWS, PAD))
    formula = flops.flops_per_token(model, ROWS, trainable, adapted=True) * tokens
    measured = found["all"] - found["scores"]
    # Below the first adapted layer nothing flows back: its q, k, v and its A matrices make no gradient of their input.
    first = decoder_layers(base)[0].self_attn
    spared = [first.q_proj, first.k_proj, first.v_proj]
    saved = sum(
        m.base_layer.weight.numel() + m.lora_A["default"].weight.numel() if hasattr(m, "base_layer") else m.weight.numel() for m in spared
    )
    norms = 4 * (sum(p.numel() for n, p in decoder_layers(base).named_parameters() if p.dim() == 1)) * tokens
    assert measured == round(formula) - norms - 2 * saved * tokens  # to the last operation
    assert measured == pytest.approx(formula, rel=0.1)
    assert measured < 0.8 * counted(shape(), collate(ROWS, PAD))["all"]


def test_mfu_only_against_a_known_peak(monkeypatch):
    assert flops.peak_flops("cpu", "fp32") is None
    for name, precision, peak in [
        ("NVIDIA H200", "bf16-mixed", 989.4e12), ("NVIDIA H200", "fp32", 66.9e12), ("NVIDIA H20", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
    ]:  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert flops.peak_flops("cuda", precision) == peak
