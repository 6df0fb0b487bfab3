"""AdamW inside the backward pass: the numbers of plain AdamW, without all gradients in memory at once."""

from pathlib import Path

import pytest
import torch

from sample_runs import LORA, essence, sample_data, train, train_inputs
from tiny_training import PAD, some_rows, tiny
from tunescope.errors import StudyError
from tunescope.study.load import load_study
from tunescope.train.batching import collate, completion_loss
from tunescope.train.in_backward import InBackward


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return sample_data(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "changes"),
    [
        (None, {}),  # every step clipped
        (None, {"gradient_checkpointing": True, "max_steps": 4}),
        (LORA, {"max_grad_norm": 20.0}),  # with dropout; some steps clipped, some not
    ],
    ids=["full", "full-recomputed", "lora"],
)
def test_a_run_is_that_of_plain_adamw_bit_for_bit(data, tmp_path, adapter, changes):
    found = {}
    for optimizer in ("adamw", "adamw_in_backward"):
        folder = tmp_path / optimizer
        found[optimizer] = essence(train(data, folder, train_inputs(adapter, optimizer=optimizer, **changes)), folder)
        assert found[optimizer]["outputs"].pop("optimizer") == optimizer
    assert found["adamw"] == found["adamw_in_backward"]
    norms = [row["grad_norm"] for row in found["adamw"]["records"] if "grad_norm" in row]
    assert len(norms) >= 2 and any("grad_norm/layer_6" in row for row in found["adamw"]["records"])


def test_one_gradient_at_a_time():
    """While weights are updated at most one gradient exists; the norm is that of all of them, and hooks go away."""
    model = tiny()
    rows = collate(some_rows(4), PAD)
    completion_loss(model, rows).backward()
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
    model.zero_grad()
    alive: list[int] = []

    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            alive.append(sum(p.grad is not None for p in model.parameters()))

    optimizer = Counting(model.parameters(), lr=0.0)
    inside = InBackward(model, 1.0, lambda: optimizer)
    inside.step(completion_loss(model, rows))
    assert alive == [1] * len(list(model.parameters()))
    torch.testing.assert_close(inside.norm, expected)
    assert all(p.grad is None for p in model.parameters())
    inside.close()
    completion_loss(model, rows).backward()
    assert len(alive) == len(list(model.parameters())) and any(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("setting", ["training.micro_batch=4", "training.micro_tokens=4096"])
def test_accumulation_is_refused(setting):
    with pytest.raises(StudyError, match="an effective batch must be one micro-batch"):
        load_study("quickstart", ["training.optimizer=adamw_in_backward", setting])
    load_study("quickstart", ["training.optimizer=adamw_in_backward", "training.micro_batch=16"])
