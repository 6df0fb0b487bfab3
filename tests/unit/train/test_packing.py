"""Packed batches: the same loss and gradient as padded ones, no row sees another, shapes filled up change nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tiny_training import PAD, some_rows, tiny
from tunescope.drift.hooks import decoder_layers
from tunescope.models.lora_utils import apply_adapter
from tunescope.study.schema import AdapterSpec
from tunescope.train.batching import (
    IGNORED,
    Batching,
    Row,
    Shape,
    collate,
    completion_loss,
    micro_batches,
    pack,
    selection_loss,
)
from tunescope.train.callbacks import LayerWatch
from tunescope.train.capture import FILLER, MOST_TOKENS, CapturedSteps


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def logits_of(model: torch.nn.Module, batch: dict, places: list[int]) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0, places]


def test_pack_lays_rows_end_to_end():
    batch = pack([Row([5, 6, 7, 8], 2), Row([5, 9], 1)], PAD)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 5, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1]]
    assert batch["cu_seqlens"].tolist() == [0, 4, 6] and batch["cu_seqlens"].dtype == torch.int32
    assert batch["columns"].tolist() == [1, 2, 4] and batch["targets"].tolist() == [7, 8, 9]
    assert batch["longest"] == 4 and bool(batch["real_BT"].all())


def test_filling_up_adds_sequences_of_padding_and_ignored_places():
    batch = pack([Row([5, 6, 7, 8], 2), Row([5, 9], 1)], PAD, Shape(8, 5, 4), longest=100)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 5, 9, PAD, PAD]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 0, 1]]
    assert batch["cu_seqlens"].tolist() == [0, 4, 6, 8, 8, 8]
    assert batch["targets"].tolist() == [7, 8, 9, IGNORED] and batch["longest"] == 100
    assert batch["real_BT"].sum() == 6


@given(st.integers(1, MOST_TOKENS), st.integers(1, 64), st.integers(1, 500))
def test_buckets_hold_what_they_are_for_and_waste_little(tokens, sequences, completions):
    shape = Shape.bucket(tokens, sequences, completions)
    assert 0 <= shape.tokens - tokens < max(32, tokens / 16 + 1) and shape.tokens - tokens <= FILLER
    assert shape.sequences > sequences and shape.completions >= completions
    assert Shape.bucket(shape.tokens, sequences, completions) == shape


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_packed_rows_are_alone_in_every_mode(mode):
    """The trap: with a cache object transformers builds no block mask, and rows see each other."""
    model, rows = getattr(tiny(), mode)(), some_rows(7)
    batch = pack(rows, PAD)
    for row, start in zip(rows, batch["cu_seqlens"].tolist(), strict=False):
        alone = model(input_ids=torch.tensor([row.input_ids]), use_cache=False).logits[0]
        together = logits_of(model, batch, list(range(start, start + len(row.input_ids))))
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_a_row_gets_the_same_gradient_whoever_its_neighbours_are():
    """Contamination in training: only the first row's completion is in the loss, so other rows' token embeddings get no gradient."""
    model = tiny()
    rows = [Row([1, 2, 3, 4], 2), Row([11, 12, 13, 14, 15], 3), Row([21, 22, 23], 1)]
    batch = pack(rows, PAD)
    batch["targets"][2:] = IGNORED
    completion_loss(model, batch).backward()
    assert model.model.embed_tokens.weight.grad[[11, 12, 13, 14, 15, 21, 22, 23]].abs().max() == 0
    assert model.model.embed_tokens.weight.grad[[1, 2, 3]].abs().max() > 0


@pytest.mark.parametrize("shape", [None, Shape(160, 16, 64)])
@pytest.mark.parametrize("adapted", [False, True])
def test_packed_loss_and_gradient_equal_padded_ones(adapted, shape):
    model, rows = tiny(), some_rows(9)
    if adapted:
        model = apply_adapter(model, AdapterSpec(r=4, lora_dropout=0.0), 3)
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p, std=0.1, generator=torch.Generator().manual_seed(1))
    padded = completion_loss(model, collate(rows, PAD))
    padded.backward()
    expected = gradients(model)
    model.zero_grad()
    packed = completion_loss(model, pack(rows, PAD, shape))
    packed.backward()
    torch.testing.assert_close(packed, padded, rtol=1e-6, atol=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=2e-6, msg=name)


def test_selection_loss_is_the_same_packed_and_padded():
    model, rows = tiny().eval(), some_rows(23)
    expected = selection_loss(model, rows, Batching(PAD, False, 5), "cpu")
    for batching in (Batching(PAD, True, 5), Batching(PAD, True, 100), Batching(PAD, True, 100, 40), Batching(PAD, False, 100, 40)):
        assert selection_loss(model, rows, batching, "cpu") == pytest.approx(expected, rel=1e-6)


@given(st.integers(1, 40), st.integers(1, 12), st.one_of(st.none(), st.integers(1, 80)), st.booleans())
def test_micro_batches_keep_rows_order_and_budget(n, most_rows, most_tokens, packed):
    rows = some_rows(n)
    parts = micro_batches(rows, most_rows, most_tokens, packed)
    assert [row for part in parts for row in part] == rows
    for part in parts:
        lengths = [len(r.input_ids) for r in part]
        assert len(part) <= most_rows
        assert most_tokens is None or len(part) == 1 or (sum(lengths) if packed else max(lengths) * len(part)) <= most_tokens


def steps_of(model: torch.nn.Module, watch: LayerWatch | None = None) -> CapturedSteps:
    return CapturedSteps(model, PAD, 16, lambda batch: completion_loss(model, batch), watch)


@pytest.mark.parametrize("most_rows", [2, 3, 8])
def test_filled_shapes_and_shared_gradient_buffers_give_the_plain_gradient(most_rows):
    """What is captured on a GPU, run plainly: two effective batches one after the other, so that stale buffers would show."""
    model = tiny()
    steps = steps_of(model)
    for seed in (0, 1):
        rows = some_rows(8, seed)
        tokens = sum(len(r.input_ids) - r.prompt_length for r in rows)
        expected = torch.autograd.grad(completion_loss(model, collate(rows, PAD)) / tokens, list(model.parameters()))
        loss = steps.run(Batching(PAD, True, most_rows)(rows), step=1)
        assert float(loss) == pytest.approx(float(completion_loss(model, collate(rows, PAD)).detach()) / tokens, rel=1e-5)
        for p, gradient in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=2e-6)
        model.zero_grad()


def test_layer_statistics_count_real_tokens_only():
    model, rows = tiny(), some_rows(6)
    values = []
    for batching in ("padded", "packed", "filled"):
        watch = LayerWatch(model, decoder_layers(model), 1)
        if batching == "filled":
            steps = steps_of(model, watch)
            steps.run(Batching(PAD, True, 8)(rows), step=1)
            steps.close()
        else:
            batch = collate(rows, PAD) if batching == "padded" else pack(rows, PAD)
            watch.look(1, batch)
            completion_loss(model, batch)
        values.append(watch.take())
        for layer in decoder_layers(model):
            layer._forward_hooks.clear()
    hidden = []
    handle = decoder_layers(model)[1].register_forward_hook(lambda _m, _a, out: hidden.append(out[0] if isinstance(out, tuple) else out))
    for row in rows:
        model(input_ids=torch.tensor([row.input_ids]), use_cache=False)
    handle.remove()
    expected = float(torch.cat([h.reshape(-1, 32) for h in hidden]).square().mean().sqrt())
    assert [v["activation_rms/layer_2"] for v in values] == pytest.approx([expected] * 3, rel=1e-5)


def test_a_closed_runner_leaves_no_hooks():
    model = tiny()
    steps = steps_of(model)
    steps.run(Batching(PAD, True, 8)(some_rows(4)), step=1)
    steps.close()
    model.zero_grad()
    completion_loss(model, pack(some_rows(4), PAD)).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert np.isfinite(float(sum(p.grad.sum() for p in model.parameters())))
