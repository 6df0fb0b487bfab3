"""Order, batches, and the loss with the head on completion tokens only."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from tiny_training import PAD, some_rows, tiny
from tunescope.models.lora_utils import apply_adapter
from tunescope.study.schema import AdapterSpec
from tunescope.train.batching import (
    Batching,
    Row,
    RunDataset,
    collate,
    completion_loss,
    longest_first,
    micro_batch_size,
    run_length,
    run_order,
    selection_loss,
    stream_seed,
)


def reference_loss(model: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    """One row at a time, all logits, transformers' own labels."""
    total = torch.zeros(())
    for row in rows:
        ids = torch.tensor([row.input_ids])
        labels = ids.clone()
        labels[:, : row.prompt_length] = -100
        total = total + model(input_ids=ids, labels=labels, use_cache=False).loss * (len(row.input_ids) - row.prompt_length)
    return total


@pytest.mark.parametrize("tied", [True, False])
def test_head_on_completion_gives_the_loss_and_gradient_of_full_logits(tied):
    model, rows = tiny(tie_word_embeddings=tied), some_rows(9)
    expected = reference_loss(model, rows)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    loss = completion_loss(model, collate(rows, PAD))
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


def test_head_sees_only_completion_tokens_and_is_released():
    model, rows = tiny(), some_rows(5)
    seen = []
    handle = model.lm_head.register_forward_hook(lambda _m, args, _out: seen.append(tuple(args[0].shape)))
    completion_loss(model, collate(rows, PAD))
    tokens = sum(len(r.input_ids) - r.prompt_length for r in rows)
    assert seen == [(1, tokens, 32)]
    handle.remove()
    assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3, 61)


def test_adapted_model_has_the_same_loss_while_b_is_zero():
    model, rows = tiny(), some_rows(5)
    expected = completion_loss(model, collate(rows, PAD))
    adapted = apply_adapter(model, AdapterSpec(r=4), 0).eval()
    assert torch.equal(completion_loss(adapted, collate(rows, PAD)), expected)


def test_padding_content_never_matters():
    model, rows = tiny(), some_rows(6)
    a, b = completion_loss(model, collate(rows, 0)), completion_loss(model, collate(rows, 60))
    assert torch.equal(a, b)


def test_collate_points_at_the_token_before_each_target():
    batch = collate([Row([5, 6, 7, 8], 2), Row([5, 9], 1)], PAD)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8], [5, 9, 0, 0]]
    assert list(zip(batch["rows"].tolist(), batch["columns"].tolist(), batch["targets"].tolist(), strict=True)) == [
        (0, 1, 7), (0, 2, 8), (1, 0, 9),
    ]  # fmt: skip
    assert batch["real_BT"].tolist() == [[True] * 4, [True, True, False, False]]


def test_selection_loss_is_the_token_mean_whatever_the_batch_size():
    model, rows = tiny().eval().requires_grad_(False), some_rows(17)
    tokens = sum(len(r.input_ids) - r.prompt_length for r in rows)
    expected = float(reference_loss(model, rows)) / tokens
    for size in (1, 4, 17):
        assert selection_loss(model, rows, Batching(PAD, False, size), "cpu") == pytest.approx(expected, rel=1e-5)


@given(st.integers(1, 50), st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_every_epoch_sees_every_row_once(examples, rows, seed):
    order = run_order(examples, rows, seed)
    assert len(order) == rows
    for start in range(0, rows - examples + 1, examples):
        assert sorted(order[start : start + examples]) == list(range(examples))


def test_order_is_shared_over_methods_and_batch_sizes_and_differs_by_seed():
    seed = stream_seed(42, "order")
    assert run_order(100, 250, seed)[:80].tolist() == run_order(100, 80, seed).tolist()  # a shorter run is a prefix
    assert run_order(100, 100, seed).tolist() != run_order(100, 100, stream_seed(1337, "order")).tolist()
    assert len({stream_seed(42, s) for s in ("order", "init", "dropout")}) == 3
    assert stream_seed(42, "order") == 3_644_780_986


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "cap", "expected"),
    [
        (100, 16, 1, None, (7, 100)),
        (100, 16, 3, None, (19, 300)),
        (100, 16, 3, 5, (5, 80)),
        (100, 16, 0.5, None, (4, 50)),
        (96, 16, 3, 100, (18, 288)),
    ],
)
def test_run_length(examples, batch, epochs, cap, expected):
    assert run_length(examples, batch, epochs, cap) == expected


@given(st.integers(1, 64), st.one_of(st.none(), st.integers(1, 64)))
def test_micro_batch_divides_the_effective_batch(batch, wanted):
    micro = micro_batch_size(batch, wanted)
    assert batch % micro == 0 and 1 <= micro <= min(wanted or batch, batch)


def test_sorting_keeps_every_batch_its_examples():
    rows, order = some_rows(30), run_order(30, 75, 5)
    sorted_order = longest_first(order, rows, 8)
    for start in range(0, 75, 8):
        batch = sorted_order[start : start + 8]
        assert sorted(batch) == sorted(order[start : start + 8])
        lengths = [len(rows[i].input_ids) for i in batch]
        assert lengths == sorted(lengths, reverse=True)


def test_run_dataset_follows_the_order():
    rows = some_rows(5)
    data = RunDataset(rows, np.array([4, 0, 4]))
    assert [data[i] for i in range(len(data))] == [rows[4], rows[0], rows[4]]
