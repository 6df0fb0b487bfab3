"""The thin Trainer: accumulation, clipping counts, golden losses, gradient flow, storage dtypes."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tiny_training import PAD, some_rows, tiny
from tunescope.errors import StepError
from tunescope.models.loading import decoder_layers
from tunescope.models.lora_utils import apply_adapter, base_sha256
from tunescope.study.schema import AdapterSpec, TrainingSpec
from tunescope.train.batching import Batching, RunDataset
from tunescope.train.callbacks import FlowCallback, LayerWatch, stale_evaluations
from tunescope.train.precision import Precision, in_fp32, resolve_precision, set_storage
from tunescope.train.trainer import build_trainer, training_arguments


def fit(folder: Path, model, *, micro: int, steps: int = 6, rate: float = 1e-3, packed: bool = False, **changes: object):
    """Train on 6 batches of 8 tiny rows; returns the trainer."""
    rows = some_rows(48)
    spec = TrainingSpec(**({"log_every": 1, "eval_every": 3, "checkpoint_every": 100} | changes))
    arguments = training_arguments(spec, folder=str(folder), device="cpu", steps=steps, warmup_steps=1, learning_rate=rate, batch=8, seed=1)
    watch = LayerWatch(model, decoder_layers(model), spec.log_every)
    order = np.arange(48)[: 8 * steps]
    data, batching = RunDataset(rows, order), Batching(PAD, packed, micro)
    trainer = build_trainer(model, arguments, data, some_rows(10, seed=9), batching, Precision("fp32", "cpu"), watch=watch)
    trainer.add_callback(FlowCallback(trainer.window, 3, folder, "fp32"))
    trainer.train()
    return trainer


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_accumulation_changes_nothing(tmp_path):
    whole = fit(tmp_path / "a", tiny(), micro=8)
    split = fit(tmp_path / "b", tiny(), micro=2)
    assert losses(split) == pytest.approx(losses(whole), rel=1e-5)
    for a, b in zip(whole.model.parameters(), split.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
    tokens = [[r["real_tokens"] for r in t.state.log_history if "loss" in r] for t in (whole, split)]
    assert tokens[0] == tokens[1] and sum(tokens[0]) == sum(len(r.input_ids) for r in some_rows(48))


@pytest.mark.parametrize("packed", [False, True])
def test_golden_losses(tmp_path, packed):
    """Kept through refactorings; rtol covers other CPUs and BLAS builds."""
    trainer = fit(tmp_path, tiny(), micro=8, rate=1e-2, packed=packed)
    assert losses(trainer) == pytest.approx(GOLDEN, rel=2e-4)


GOLDEN = [4.099822, 4.144354, 4.12634, 4.106751, 4.157045, 4.115553]


def test_clipped_steps_and_layer_statistics_are_counted(tmp_path):
    free = fit(tmp_path / "a", tiny(), micro=4, max_grad_norm=1e6)
    bound = fit(tmp_path / "b", tiny(), micro=4, max_grad_norm=1e-6)
    assert sum(r.get("clipped_steps", 0) for r in free.state.log_history) == 0
    assert sum(r.get("clipped_steps", 0) for r in bound.state.log_history) == 6
    values = free.watch.take()
    last = next(r for r in reversed(free.state.log_history) if "loss" in r)
    layers = [values[f"grad_norm/layer_{k}"] for k in range(3)]
    assert np.sqrt(np.square(layers).sum()) == pytest.approx(float(last["grad_norm"]), rel=1e-4)
    assert values["activation_rms/layer_2"] > 0


def test_lora_training_touches_the_adapter_only(tmp_path):
    model = apply_adapter(tiny(), AdapterSpec(r=4, lora_dropout=0.0), 3)
    before = base_sha256(model)
    trainer = fit(tmp_path, model, micro=8, rate=1e-2)
    assert base_sha256(trainer.model) == before
    assert all("lora_" in n for n, p in trainer.model.named_parameters() if p.requires_grad)
    assert max(float(p.detach().abs().max()) for n, p in trainer.model.named_parameters() if "lora_B" in n) > 0


def test_checkpoints_hold_no_pickled_arguments(tmp_path):
    fit(tmp_path, tiny(), micro=8)
    names = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert "model.safetensors" in names and "seal.json" in names
    assert not names & {"training_args.bin", "pytorch_model.bin"}


def test_schedule_is_linear_to_zero(tmp_path):
    trainer = fit(tmp_path, tiny(), micro=8, rate=1.0)
    rates = [row["learning_rate"] for row in trainer.state.log_history if "learning_rate" in row]
    assert rates == pytest.approx([0.0, 1.0, 0.8, 0.6, 0.4, 0.2])
    assert trainer.lr_scheduler.get_last_lr()[0] == 0


def test_warm_up_must_be_shorter_than_the_run(tmp_path):
    with pytest.raises(StepError, match="not shorter than the run"):
        training_arguments(TrainingSpec(), folder=str(tmp_path), device="cpu", steps=5, warmup_steps=5, learning_rate=1, batch=1, seed=1)


def test_non_finite_selection_loss_stops_the_run(tmp_path):
    model = tiny()
    model.lm_head.weight.data[:] = float("nan")
    with pytest.raises(StepError, match="selection loss is nan at step 3"):
        fit(tmp_path, model, micro=8)


@pytest.mark.parametrize(("history", "stale"), [([], 0), ([3.0], 0), ([3.0, 2.0], 0), ([2.0, 3.0, 2.0], 2), ([2.0, 1.0, 4.0, 5.0], 2)])
def test_patience_is_read_from_the_history(history, stale):
    assert stale_evaluations(history) == stale


def test_precision_on_a_cpu_is_fp32_and_bf16_storage_is_lossless():
    assert resolve_precision("auto", "cpu").name == "fp32"
    assert resolve_precision("bf16-mixed", "cpu").autocast
    model = tiny().to(torch.bfloat16).float()  # what a bf16 checkpoint looks like in fp32
    adapted = apply_adapter(model, AdapterSpec(r=4), 0)
    before, ids = base_sha256(adapted), torch.arange(12)[None]
    wide = adapted.eval()(input_ids=ids).logits
    set_storage(adapted, Precision("bf16-mixed", "cpu"))
    dtypes = {("lora_" in n, p.dtype) for n, p in adapted.named_parameters()}
    assert dtypes == {(True, torch.float32), (False, torch.bfloat16)}
    places = [p.data_ptr() for p in adapted.parameters()]
    with torch.inference_mode(), in_fp32(adapted):
        narrow = adapted(input_ids=ids).logits
    assert torch.equal(narrow, wide) and narrow.dtype == torch.float32
    assert {("lora_" in n, p.dtype) for n, p in adapted.named_parameters()} == dtypes
    assert [p.data_ptr() for p in adapted.parameters()] == places, "captured steps read weights by address"
    assert base_sha256(adapted.float()) == before


def test_pure_bf16_leaves_rotary_frequencies_alone():
    model = tiny()
    set_storage(model, Precision("bf16", "cpu"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32


def test_weights_that_bf16_cannot_hold_stay_fp32():
    adapted = apply_adapter(tiny(), AdapterSpec(r=4), 0)
    set_storage(adapted, Precision("bf16-mixed", "cpu"))
    kept = {n for n, p in adapted.named_parameters() if p.dtype == torch.float32 and "lora_" not in n}
    assert any("q_proj" in n for n in kept)
