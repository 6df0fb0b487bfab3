"""The plan: what depends on what, and what never changes a fingerprint."""

import pytest

from tunescope.records import FinishedStep
from tunescope.study import outline
from tunescope.study.identity import canonical, differences, fingerprint
from tunescope.study.load import load_study
from tunescope.study.plan import build_plan
from tunescope.study.selection import choose


@pytest.fixture(scope="module")
def plan():
    file = load_study("lora_vs_full")
    return build_plan(file.study, file.execution.placement)


def test_counts_of_the_whole_plan(plan):
    kinds = [s.kind for s in plan.steps]
    # 4 tasks x 2 methods x (2 rates x 2 batch sizes searched + 5 seeds)
    assert kinds.count("train") == 4 * 2 * (4 + 5)
    assert [kinds.count(k) for k in ("data", "baseline", "base-probe", "drift", "serve", "correlate")] == [4, 4, 4, 4, 1, 1]
    assert len({s.id for s in plan.steps}) == len(plan.steps)


def test_needs_come_first(plan):
    seen = set()
    for step in plan.steps:
        assert set(step.needs) | set(step.selects_from) <= seen
        seen.add(step.id)


def test_phase_1_needs_nothing_outside_phase_1(plan):
    phase = {s.id: s.phase for s in plan.steps}
    assert all(phase[n] == "1" for s in plan.steps for n in s.needs)


def test_machines_follow_the_placement(plan):
    where = {s.id: s.machine for s in plan.steps}
    assert where["train/sst2/lora/final/seed-42"] == "vm1"
    assert where["train/rte/full/final/seed-42"] == "vm2" == where["serve"]
    assert where["baseline/mrpc"] == "vm3" == where["correlate"]
    assert where["data/mrpc"] is None


def test_serving_reads_five_trained_models(plan):
    needs = [n for n in plan["serve"].needs if n.startswith("train/")]
    assert needs == [f"train/{t}/lora/final/seed-42" for t in ("mrpc", "sst2", "rte", "squad_v2")] + ["train/sst2/full/final/seed-42"]


def test_widening_a_grid_changes_no_existing_search_run():
    narrow = build_plan(load_study("quickstart").study)
    wider = ["methods.full.learning_rates=[5e-4,1e-3,2e-3]", "methods.lora.learning_rates=[3e-3,1e-2,3e-2]"]
    wide = build_plan(load_study("quickstart", wider).study)
    same = [s for s in narrow.steps if s.role == "search"]
    assert same and all(fingerprint(s.inputs) == fingerprint(wide[s.id].inputs) for s in same)


def test_final_runs_wait_for_the_search_and_take_its_choice():
    plan = build_plan(load_study("quickstart").study)
    final = plan["train/sst2/lora/final/seed-1337"]
    assert plan.resolve(final, {}) is None
    loss = {0.0005: 0.9, 0.001: 0.5, 0.003: 0.7, 0.01: 0.8}
    results = {i: finished(i, loss[plan[i].inputs.learning_rate]) for i in final.selects_from}
    resolved = plan.resolve(final, results)
    assert (resolved.learning_rate, resolved.batch_size) == (0.003, 16)
    assert differences(final.inputs, resolved) == ["batch_size null → 16", "learning_rate null → 0.003"]


def finished(step_id, loss):
    row = {"name": "selection_loss", "value": loss, "unit": "nats/token", "split": "selection", "n": 1, "higher_is_better": False}
    return FinishedStep(step_id, None, {}, {"metrics": [row], "resources": [], "outputs": {}})


def test_one_batch_size_for_both_arms():
    losses = {
        ("full", 1e-5, 8): 0.50,
        ("full", 1e-5, 16): 0.40,
        ("lora", 1e-4, 8): 0.30,
        ("lora", 1e-4, 16): 0.60,
        ("lora", 3e-4, 16): 0.35,
    }
    # batch 16: (0.40 + 0.35) / 2 = 0.375 beats batch 8: (0.50 + 0.30) / 2 = 0.40
    assert choose(losses) == (16, {"full": 1e-5, "lora": 3e-4})


def test_outline_names_every_group(plan):
    text = "\n".join([*outline.graph(plan), *outline.cost(plan)])
    assert "after the search of all methods" in text and "arms" not in "\n".join(outline.graph(plan))
    for name in ("train/rte/lora/search", "correlate", "drift/squad_v2", "Phase 2b", "vm3", "serve: 170 launches (17 arms x 10), and 9 of"):
        assert name in text


def test_hours_are_training_tokens_over_the_measured_rates(plan):
    """SST-2: 66,349 rows x 25 tokens x 3 epochs; full 10,121, LoRA 22,023 real tokens a second."""
    tokens = 66_349 * 25 * 3
    assert outline.training_seconds(plan.study, plan["train/sst2/full/final/seed-42"]) == pytest.approx(tokens / 10_121)
    assert outline.training_seconds(plan.study, plan["train/sst2/lora/final/seed-42"]) == pytest.approx(tokens / 22_023)
    assert outline.training_seconds(plan.study, plan["serve"]) is None
    hours = sum(outline.training_seconds(plan.study, s) or 0 for s in plan.steps) / 3600
    assert f" {len(plan.steps)}{hours:>12.1f}" in "\n".join(outline.cost(plan))


@pytest.mark.parametrize("model", ["sprout-2m", "someone/Llama-8B", "a/folder"])
def test_models_that_were_not_measured_get_no_hours(model):
    plan = build_plan(load_study("lora_vs_full", [f"model.name={model}"]).study)
    text = outline.cost(plan)
    assert all(outline.training_seconds(plan.study, s) is None for s in plan.steps)
    assert outline.NO_BASIS in text and text[0].split() == ["phase", "machine", "what", "steps"]


def test_fingerprint_is_order_free_and_refuses_nan():
    assert fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    for bad in (float("nan"), {1, 2}, {1: 2}, object()):
        with pytest.raises(ValueError, match=r"canonical|strings"):
            canonical(bad)


def test_differences_read_field_by_field():
    assert differences({"a": {"lr": 1e-4}, "x": 1}, {"a": {"lr": 3e-4}, "y": [2]}) == [
        "a.lr 0.0001 → 0.0003",
        "x 1 → (absent)",
        "y (absent) → [2]",
    ]
