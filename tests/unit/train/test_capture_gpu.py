"""On a GPU: packed and captured steps against plain and padded ones, resuming, determinism."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from tiny_training import PAD, some_rows, tiny
from tunescope.models.loading import decoder_layers
from tunescope.models.lora_utils import apply_adapter
from tunescope.study.schema import AdapterSpec, TrainingSpec
from tunescope.train.attention import varlen_attention
from tunescope.train.batching import Batching, RunDataset, collate, completion_loss, on_device, pack
from tunescope.train.callbacks import LayerWatch
from tunescope.train.capture import CapturedSteps
from tunescope.train.finetune import _determinism
from tunescope.train.precision import Precision, in_fp32, set_storage
from tunescope.train.trainer import CompletionTrainer, build_trainer, training_arguments

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

STEPS = 40


@pytest.fixture(autouse=True)
def _deterministic():
    _determinism(True)
    yield
    torch.use_deterministic_algorithms(False)


class Kill(TrainerCallback):
    """Ends training after a step, as a kill would, with a checkpoint written."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save = control.should_save or state.global_step == self.step
        control.should_training_stop = control.should_training_stop or state.global_step == self.step


def model_of(method: str, precision: Precision, dropout: float = 0.0) -> Any:
    model: Any = tiny(num_hidden_layers=3, hidden_size=64, intermediate_size=96).cuda()
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
    if method == "lora":
        model = apply_adapter(model, AdapterSpec(r=4, lora_dropout=dropout), 3)
    set_storage(model, precision)
    return model


def fit(
    folder: Path, method: str, name: str, *, packed: bool, capture: str, micro: int = 8, dropout: float = 0.0, **run: Any
) -> CompletionTrainer:
    precision = Precision(name, "cuda")  # type: ignore[arg-type]
    rows = some_rows(64)
    spec = TrainingSpec(log_every=5, eval_every=10, checkpoint_every=1000)
    arguments = training_arguments(
        spec, folder=str(folder), device="cuda", steps=STEPS, warmup_steps=2, learning_rate=1e-3, batch=8, seed=1
    )
    model = model_of(method, precision, dropout)
    order = np.resize(np.arange(64), 8 * STEPS)
    watch = LayerWatch(model, decoder_layers(model), spec.log_every)
    batching = Batching(PAD, packed, micro)
    trainer = build_trainer(model, arguments, RunDataset(rows, order), rows[:16], batching, precision, capture=capture, watch=watch)
    if "kill" in run:
        trainer.add_callback(Kill(run["kill"]))
    if run.get("probed"):
        trainer.add_callback(Look())
    trainer.train(resume_from_checkpoint=run.get("resume"))
    return trainer


class Look(TrainerCallback):
    """Runs the model in fp32 every few steps, as a probe does."""

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % 7 == 0:
            with torch.no_grad(), in_fp32(model):
                model(input_ids=torch.arange(9, device="cuda")[None], use_cache=False)
            torch.full((1 << 20,), float("nan"), device="cuda")  # whatever was freed is overwritten


def losses(trainer: CompletionTrainer) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in trainer.state.log_history if "loss" in row}


def weights(trainer: CompletionTrainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().cpu() for name, p in trainer.model.named_parameters() if p.requires_grad}


def assert_same(a: CompletionTrainer, b: CompletionTrainer) -> None:
    assert losses(a) == losses(b)
    for name, weight in weights(a).items():
        assert torch.equal(weight, weights(b)[name]), name


@pytest.mark.parametrize("scaling", [None, 0.25])
@pytest.mark.parametrize("groups", [1, 2])
def test_varlen_attention_equals_sdpa_row_by_row(groups, scaling):
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [5, 1, 130, 64]
    query, key, value = (
        torch.randn(1, heads, sum(lengths), 32, device="cuda", dtype=torch.bfloat16, generator=generator, requires_grad=True)
        for heads in (4, 4 // groups, 4 // groups)
    )
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32, device="cuda")
    got, _ = varlen_attention(torch.nn.Identity(), query, key, value, None, scaling=scaling, cu_seq_lens_q=offsets, max_length_q=256)
    parts = [x.float().split(lengths, dim=2) for x in (query, key, value)]
    expected = torch.cat(
        [
            torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True).transpose(1, 2)
            for q, k, v in zip(*parts, strict=True)
        ],
        dim=1,
    )
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-2)
    weight = torch.randn(got.shape, device="cuda", generator=generator)
    ours = torch.autograd.grad((got.float() * weight).sum(), [query, key, value])
    plain = torch.autograd.grad((expected * weight).sum(), [query, key, value])
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a.float(), b.float(), rtol=3e-2, atol=3e-2)


def test_packed_rows_are_alone():
    """Changing one row leaves the loss terms of the others as they are, to the last bit."""
    precision = Precision("bf16-mixed", "cuda")
    model, rows = model_of("full", precision), some_rows(6)
    other = [*rows[:3], type(rows[3])([1] * len(rows[3].input_ids), rows[3].prompt_length), *rows[4:]]
    found = []
    for chosen in (rows, other):
        batch = on_device(pack(chosen, PAD), "cuda")
        keep = torch.ones_like(batch["targets"], dtype=torch.bool)
        start, end = batch["cu_seqlens"][3:5].tolist()
        keep[(batch["columns"] >= start) & (batch["columns"] < end)] = False
        batch["targets"] = batch["targets"].where(keep, torch.full_like(batch["targets"], -100))
        with precision.context():
            found.append(float(completion_loss(model, batch).detach()))
    assert found[0] == found[1]


@pytest.mark.parametrize("method", ["full", "lora"])
def test_packed_gradients_are_those_of_padded_rows(method):
    precision = Precision("bf16-mixed", "cuda")
    model, rows = model_of(method, precision), some_rows(12)
    found = []
    for batch in (collate(rows, PAD), pack(rows, PAD)):
        with precision.context():
            loss = completion_loss(model, on_device(batch, "cuda"))
        loss.backward()
        found.append((float(loss.detach()), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])))
        model.zero_grad()
    (padded, a), (packed, b) = found
    assert packed == pytest.approx(padded, rel=2e-3)
    assert float((a - b).norm() / a.norm()) < 2e-2


@pytest.mark.parametrize("micro", [8, 3])
@pytest.mark.parametrize(("method", "name"), [("full", "bf16-mixed"), ("full", "bf16"), ("lora", "bf16-mixed")])
def test_captured_steps_are_the_plain_ones_to_the_last_bit(tmp_path, monkeypatch, method, name, micro):
    """With dropout: replayed graphs draw what plain steps draw."""
    captured = fit(tmp_path / "a", method, name, packed=True, capture="always", micro=micro, dropout=0.1)
    assert captured.captured is not None and captured.captured.graphs >= 2
    monkeypatch.setattr("tunescope.train.capture.MOST_GRAPHS", 0)
    assert_same(captured, fit(tmp_path / "b", method, name, packed=True, capture="always", micro=micro, dropout=0.1))


@pytest.mark.parametrize(("method", "name"), [("full", "bf16-mixed"), ("lora", "bf16-mixed")])
def test_fast_steps_stay_near_the_padded_ones(tmp_path, method, name):
    fast = fit(tmp_path / "a", method, name, packed=True, capture="always")
    padded = fit(tmp_path / "b", method, name, packed=False, capture="never")
    for step, loss in losses(padded).items():
        assert losses(fast)[step] == pytest.approx(loss, rel=5e-3)
    exact = fit(tmp_path / "c", method, "fp32", packed=False, capture="never")
    distance = {
        which: sum(float((weights(t)[n] - w).norm()) for n, w in weights(exact).items())
        for which, t in (("fast", fast), ("padded", padded))
    }
    assert distance["fast"] < 2 * distance["padded"], distance  # as far from fp32 as bf16 itself is


@pytest.mark.parametrize("kill", [7, 20])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_resuming_a_captured_run_is_bit_identical(tmp_path, method, kill):
    whole = fit(tmp_path / "a", method, "bf16-mixed", packed=True, capture="always", dropout=0.1)
    fit(tmp_path / "b", method, "bf16-mixed", packed=True, capture="always", dropout=0.1, kill=kill)
    checkpoint = tmp_path / "b" / f"checkpoint-{kill}"
    resumed = fit(tmp_path / "b", method, "bf16-mixed", packed=True, capture="always", dropout=0.1, resume=str(checkpoint))
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name


def test_layer_statistics_of_replayed_steps(tmp_path, monkeypatch):
    seen: dict[str, list[dict[str, float]]] = {"captured": [], "plain": []}
    for name, most in (("captured", 48), ("plain", 0)):
        monkeypatch.setattr("tunescope.train.capture.MOST_GRAPHS", most)
        monkeypatch.setattr(CompletionTrainer, "log", lambda self, logs, start=None, to=seen[name]: to.append(self.watch.take()))
        fit(tmp_path / name, "full", "bf16-mixed", packed=True, capture="always")
    assert seen["captured"] == seen["plain"] and len(seen["plain"][0]) >= 7


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("name", ["bf16-mixed", "bf16"])
def test_probes_between_captured_steps_leave_the_weights_where_they_were(tmp_path, method, name):
    probed = fit(tmp_path / "a", method, name, packed=True, capture="always", probed=True)
    alone = fit(tmp_path / "b", method, name, packed=True, capture="always")
    assert losses(probed) == losses(alone)
    assert all(torch.equal(weights(probed)[k], v) for k, v in weights(alone).items())


def run_buckets(model: Any) -> CapturedSteps:
    """Effective batches of four sizes, each several times: plain, captured and replayed steps in turn."""
    precision, rows, batching = Precision("bf16-mixed", "cuda"), some_rows(64), Batching(PAD, True, 64)

    def loss(batch: dict[str, Any]) -> torch.Tensor:
        with precision.context():
            return completion_loss(model, batch)

    steps = CapturedSteps(model, PAD, 16, loss, None)
    for number, n in enumerate((1, 1, 4, 1, 8, 4, 1, 16, 8, 4, 1, 16, 8, 4)):
        steps.run(batching(rows[number : number + n]), number + 1)
    torch.cuda.synchronize()
    return steps


def test_plain_steps_take_no_memory_beside_that_of_the_graphs():
    model = tiny(hidden_size=512, intermediate_size=1024, vocab_size=16384).cuda()
    copies = sum(2 * p.numel() for p in model.parameters())
    steps = run_buckets(model)
    assert steps.graphs >= 3
    idle: dict[bool, int] = {True: 0, False: 0}
    for segment in torch.cuda.memory_snapshot():
        if segment["stream"] == steps._stream.cuda_stream:  # type: ignore[union-attr]
            idle[tuple(segment["segment_pool_id"]) == steps._pool.id] += segment["total_size"] - segment["allocated_size"]
    # Outside, what is idle is the rounding of gradient buffers to segments; a step's copies are not among it.
    assert idle[True] > copies > idle[False], idle
    before = torch.cuda.memory_reserved()
    steps.close()
    torch.cuda.empty_cache()
    assert before - torch.cuda.memory_reserved() > copies, "a closed runner gives its memory back"


def test_what_a_model_keeps_from_a_plain_step_is_left_alone_by_graphs():
    """As a rotary table that grows with the first longer row would be."""
    model, kept = model_of("full", Precision("bf16-mixed", "cuda")), []

    def keep(*_: Any) -> None:
        if not torch.cuda.is_current_stream_capturing():
            kept.append(torch.full((1 << 16,), float(len(kept)), device="cuda"))

    decoder_layers(model)[0].register_forward_hook(keep)
    steps = run_buckets(model)
    assert len(kept) >= 4 and steps.graphs >= 1
    for number, tensor in enumerate(kept):
        assert torch.equal(tensor, torch.full_like(tensor, number)), f"what plain step {number} left was overwritten"
