"""Every training check passes on the real program, and fails when that program is broken on purpose."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import Trainer

from tunescope import tracking_services
from tunescope.checks import training
from tunescope.checks.bench import Bench
from tunescope.checks.outcome import timed
from tunescope.study.load import load_study
from tunescope.train import finetune
from tunescope.train.trainer import CompletionTrainer

STUDY = load_study("quickstart").study


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(STUDY, "cpu", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("task", STUDY.tasks)
def test_ten_examples_of_every_task_are_learnt_by_heart(bench, task, monkeypatch):
    monkeypatch.setattr(training, "EPOCHS", 30)  # the check allows 50
    check = training.overfit(bench, task, "full")
    assert check.status == "PASS" and "10 of 10 right" in check.found, check
    assert check.details[0].count("→") == 10


@pytest.mark.slow
def test_lora_learns_ten_examples_too(bench):
    assert training.overfit(bench, "sst2", "lora").status == "PASS"


def test_learning_by_heart_fails_when_nothing_is_learnt(bench, monkeypatch):
    monkeypatch.setattr(training, "EPOCHS", 5)
    monkeypatch.setattr(bench, "rate", lambda task, method: 1e-8)
    check = training.overfit(bench, "sst2", "full")
    assert check.status == "FAIL" and "of 10 right" in check.found


def test_the_ten_hold_all_labels_so_that_no_constant_answer_is_right(bench):
    from tunescope.data import load_examples

    for task in ("sst2", "squad_v2"):
        rows = load_examples(bench.ten_examples(task), task, "test")
        kinds = [bool(e.golds) if task == "squad_v2" else e.label for e in rows]
        assert len(rows) == 10 and {kinds.count(k) for k in set(kinds)} == {5}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_gradients_flow_and_are_clipped(bench, method):
    flows: dict = {}
    check = training.flow(bench, "sst2", method, flows)
    assert check.status == "PASS" and ("21,504" if method == "lora" else "2,156,160") in check.found
    assert training.clipping(method, flows[method]).status == "PASS"
    table = list(training.norm_table(flows))
    assert method in table[0] and table[-1].startswith("total") and float(table[-1].split()[1]) > training.CLIP_AT


def test_a_tensor_without_gradient_fails(bench, monkeypatch):
    start = finetune._start

    def cut(run, probe):
        model, recorder, reference = start(run, probe)
        next(p for n, p in model.named_parameters() if "layers.3" in n and "q_proj.weight" in n).register_hook(torch.zeros_like)
        return model, recorder, reference

    monkeypatch.setattr(finetune, "_start", cut)
    check = training.flow(bench, "sst2", "full", {})
    assert check.status == "FAIL" and "1 of 56 trained tensors never get a gradient" in check.found


def test_a_base_that_moves_under_an_adapter_fails(bench, monkeypatch):
    step = CompletionTrainer.training_step

    def leak(self, model, inputs, num_items_in_batch=None):
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if not p.requires_grad).add_(1e-6)
        return step(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(CompletionTrainer, "training_step", leak)
    check = training.flow(bench, "sst2", "lora", {})
    assert check.status == "FAIL" and "the base weights changed" in check.found


def test_clipping_that_only_measures_fails(bench, monkeypatch):
    def measure(self, model):
        return torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]))

    monkeypatch.setattr(Trainer, "_clip_grad_norm", measure)
    flows: dict = {}
    training.flow(bench, "sst2", "lora", flows)
    check = training.clipping("lora", flows["lora"])
    assert check.status == "FAIL" and "steps [1, 2, 3, 4] were not clipped" in check.found


@pytest.mark.parametrize(
    ("before", "after", "share", "problem"),
    [
        ([5.0, 0.5], [1.0, 0.4], 0.5, "steps [2]"),  # a step below the limit must stay as it is
        ([0.5, 0.5], [0.5, 0.5], 0.0, "no step had a gradient above"),
        ([5.0, 0.5], [1.0, 0.5], 1.0, "recorded share"),
    ],
)
def test_clipping_verdict(before, after, share, problem):
    check = training.clip_verdict("lora", before, after, 1.0, share)
    assert check.status == "FAIL" and problem in check.found
    assert training.clip_verdict("lora", [5.0, 0.5], [1.0, 0.5], 1.0, 0.5).status == "PASS"


@pytest.mark.slow
def test_how_a_batch_is_accumulated_does_not_matter(bench):
    check = training.accumulation(bench, "squad_v2", "full")
    assert check.status == "PASS" and "1x8, 4x2, 8x1" in check.found


@pytest.mark.slow
def test_a_mean_of_micro_batch_means_fails(bench, monkeypatch):
    """The classic mistake: every micro-batch counts the same, however many completion tokens it has."""

    def wrong(self, model, inputs, num_items_in_batch=None):
        model.train()
        parts = [(rows, sum(len(r.input_ids) - r.prompt_length for r in rows)) for rows in inputs.parts]
        losses = [self._backward(self.batching.batch(rows), n * len(parts), self.state.global_step + 1) for rows, n in parts]
        return torch.stack(losses).sum()

    monkeypatch.setattr(CompletionTrainer, "training_step", wrong)
    check = training.accumulation(bench, "squad_v2", "full")
    assert check.status == "FAIL" and "the gradient differs" in check.found


def test_accumulation_fails_when_another_micro_batch_was_used(bench):
    run = bench.train("sst2", "full", bench.data("sst2"), max_steps=1)
    check = training.accumulation_verdict("full", {8: run, 2: run}, "sst2")
    assert check.status == "FAIL" and "[8, 2] were asked for, [8, 8] were used" in check.found


@pytest.mark.slow
def test_equal_seeds_give_equal_runs_and_other_seeds_do_not(bench):
    check = training.reproducibility(bench, "sst2", "lora")
    assert check.status == "PASS" and check.found.startswith("3 runs at seed 42")


@pytest.mark.slow
def test_a_start_that_ignores_its_seed_fails(bench, monkeypatch):
    count, seed = itertools.count(), finetune.stream_seed
    monkeypatch.setattr(finetune, "stream_seed", lambda s, stream: seed(s + next(count), stream))
    check = training.reproducibility(bench, "sst2", "lora")
    assert check.status == "FAIL" and "runs of one seed differ in" in check.found


@pytest.mark.slow
def test_a_seed_that_does_nothing_fails(bench, monkeypatch):
    seed = finetune.stream_seed
    monkeypatch.setattr(finetune, "stream_seed", lambda s, stream: seed(0, stream))
    check = training.reproducibility(bench, "sst2", "lora")
    assert check.status == "FAIL" and "seed 43 gives the weights of seed 42" in check.found


def test_data_without_labels_fails(bench, monkeypatch):
    from dataclasses import replace

    from tunescope import data

    assert training.data(bench, ["sst2"]).status == "PASS"
    load = data.load_examples
    monkeypatch.setattr(data, "load_examples", lambda *a: [replace(e, completion=None) for e in load(*a)])
    check = training.data(bench, ["sst2"])
    assert check.status == "FAIL" and "has no label" in check.found


def test_wandb_is_read_back(tmp_path):
    check = training.wandb_logging(tmp_path / "wandb-check")
    assert check.status == "PASS" and "3 records" in check.found


def test_a_record_lost_on_the_way_to_wandb_fails(tmp_path, monkeypatch):
    put, sent = tracking_services.Wandb.put, []

    def lossy(self, action):
        sent.append(action)
        if len(sent) != 3:
            put(self, action)

    monkeypatch.setattr(tracking_services.Wandb, "put", lossy)
    check = training.wandb_logging(tmp_path / "wandb-check")
    assert check.status == "FAIL" and "the offline W&B run holds [3.0, 2.0]" in check.found


def test_wandb_switched_off_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    check = training.wandb_logging(tmp_path / "wandb-check")
    assert check.status == "SKIP" and "WANDB_MODE" in check.found


def test_a_step_that_cannot_go_on_is_a_failed_line(bench, monkeypatch):
    monkeypatch.setattr(bench, "rate", lambda task, method: 1e18)
    monkeypatch.setattr(training, "CLIP_AT", 1e30)
    found = list(timed("gradient flow full", lambda: training.flow(bench, "sst2", "full", {})))
    assert [c.status for c in found] == ["FAIL"] and "lower" in found[0].found and found[0].seconds > 0
