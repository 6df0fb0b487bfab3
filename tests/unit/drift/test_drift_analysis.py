"""The drift step on synthetic training records: numbers, checks, red flags, and refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.drift.contrast import critical_layers, thirds
from tunescope.drift.drift_analysis import run_drift
from tunescope.drift.gram import StatesError
from tunescope.drift.progress_slice import drift_at, first_step_at
from tunescope.drift.states import ProbeStates, save_states
from tunescope.drift.table import drift_table, registered_scalar
from tunescope.drift.weights import intruder_dimensions, relative_update_norm
from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import StepContext
from tunescope.study.inputs import DriftInputs
from tunescope.study.schema import DriftSpec

SHA = "a" * 64
SPEC = DriftSpec(probe_examples=40, blocks=2)
INPUTS = DriftInputs(task="sst2", drift=SPEC, reference_method="full", candidate_method="lora", saturated_drift=0.9)
LAYERS, N, D = 3, 40, 8
AMOUNT = {"full": 0.6, "lora": 0.3}


def states(amount=0.0, seed=0, sha=SHA):
    base, move = np.random.default_rng(0), np.random.default_rng(seed)
    kept = {}
    for k in range(LAYERS + 1):
        for pooling in ("last_prompt_token", "mean"):
            x = base.normal(size=(N, D))
            kept[k, pooling] = (x + amount * k * move.normal(size=(N, D))).astype(np.float32)
    return ProbeStates(kept, sha, "sst2")


def write_step(folder, name, inputs, metrics=(), outputs=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "step.json").write_text(json.dumps({"id": name, "inputs": inputs}))
    rows = [{"name": n, "value": v, "split": "probe"} for n, v in metrics]
    (folder / "result.json").write_text(json.dumps({"metrics": rows, "resources": [], "outputs": outputs or {}}))
    return folder


def write_run(root, method, seed, role="final", amounts=None, sha=SHA, task="sst2", losses=None):
    """A training run whose drift grows with `amounts` (per step); the last step is the scored one."""
    name = f"train/{task}/{method}/{role}/seed-{seed}"
    folder = root / name
    amounts = amounts or {0: 0.0, 10: AMOUNT[method] / 2, 20: AMOUNT[method]}
    parts = []
    for step, amount in amounts.items():
        parts.append(drift_table(states(), states(amount, seed), SPEC, scored=False).assign(step=step))
    parts.append(drift_table(states(), states(amounts[max(amounts)], seed), SPEC, scored=True).assign(step=max(amounts)))
    table = pd.concat(parts, ignore_index=True)
    model = {"name": "sprout-2m", "revision": None}
    inputs = {"kind": "train", "task": task, "method": method, "role": role, "seed": seed, "learning_rate": 1e-4, "model": model}
    scalar = registered_scalar(table, "last_prompt_token")
    write_step(folder, name, inputs, [("drift", scalar)], {"probe_sha256": sha})
    table.to_parquet(folder / "drift.parquet")
    (folder / "probe").mkdir(exist_ok=True)
    save_states(folder / "probe" / "step-0.safetensors", states(sha=sha))
    lines = [{"step": s, "time_s": 1.0, "selection_loss": v} for s, v in (losses or {}).items()]
    (folder / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in [*lines, {"step": 5, "loss": 0.5}]))
    return name, folder


def write_base(root, floor=1e-6):
    folder = write_step(root / "base-probe" / "sst2", "base-probe/sst2", {"kind": "base-probe", "task": "sst2"})
    save_states(folder / "probe" / "base.safetensors", states())
    rows = [
        {"condition": c, "layer": k, "pooling": p, "measure": "cka_drift_debiased", "value": floor * scale}
        for c, scale in (("batch_size", 0.1), ("dtype", 1.0))
        for k in range(LAYERS + 1)
        for p in ("last_prompt_token", "mean")
    ]
    pd.DataFrame(rows).to_parquet(folder / "noise.parquet")
    return "base-probe/sst2", folder


def context(tmp_path, upstream):
    folder = tmp_path / "out"
    folder.mkdir(exist_ok=True)
    tracker = SimpleNamespace(log=lambda values, step: None, histogram=None, summary=None)
    return StepContext(folder=folder, data_dir=tmp_path, upstream=upstream, device="cpu", tracker=tracker)


def study(tmp_path, seeds=(1, 2, 3), **options):
    runs = [write_run(tmp_path, m, s, **options) for m in ("full", "lora") for s in seeds]
    return dict([write_base(tmp_path), *runs])


def run(tmp_path, upstream):
    result = run_drift(INPUTS, context(tmp_path, upstream))
    return result, json.loads((tmp_path / "out" / "drift_summary.json").read_text())


def test_the_summary_holds_the_paired_numbers(tmp_path):
    upstream = study(tmp_path)
    result, found = run(tmp_path, upstream)
    drift = {(r["method"], r["seed"]): r["drift"] for r in found["runs"]}
    direct = registered_scalar(drift_table(states(), states(0.3, 2), SPEC, scored=True), "last_prompt_token")
    assert drift["lora", 2] == pytest.approx(direct)
    differences = [drift["lora", s] - drift["full", s] for s in (1, 2, 3)]
    assert found["paired"]["differences"] == pytest.approx(differences)
    assert max(differences) < 0
    assert found["paired"]["sign_flip"] == {"p": 0.25, "p_less": 0.125, "attainable_p": 0.25, "vectors": 8, "exact": True}
    reductions = [1 - drift["lora", s] / drift["full", s] for s in (1, 2, 3)]
    assert found["paired"]["reduction"]["mean"] == pytest.approx(np.mean(reductions))
    assert found["paired"]["reduction"]["sd"] == pytest.approx(np.std(reductions, ddof=1))
    assert len(found["blocks"]) == 2
    assert [row["layer"] for row in found["layers"]] == [1, 2, 3]
    assert all(row["p_max"] >= 0.25 for row in found["layers"])
    assert found["noise_floor"]["scalar"] == pytest.approx(1e-6)
    assert all(r["below_resolution"] is False for r in found["runs"])
    assert all(min(r["chance_z"]) > 2 for r in found["runs"])
    values = {m.name: m.value for m in result.metrics}
    assert values["drift/lora"] == pytest.approx(np.mean([drift["lora", s] for s in (1, 2, 3)]))
    assert values["drift_reduction"] == pytest.approx(np.mean(reductions))
    assert result.notes == []
    assert result.outputs["step_zero_ok"] is True
    assert result.content == ["drift_summary.json", "layers.parquet"]


def test_layers_table_is_the_primary_pooling_of_final_runs(tmp_path):
    upstream = study(tmp_path, seeds=(1,)) | dict([write_run(tmp_path, "lora", 7, role="search", amounts={0: 0.0, 20: 0.4})])
    _, found = run(tmp_path, upstream)
    layers = pd.read_parquet(tmp_path / "out" / "layers.parquet")
    assert {"method", "seed", "step", "layer", "measure", "value"} <= set(layers.columns)
    assert set(layers["seed"]) == {1}
    assert {r["role"] for r in found["runs"]} == {"final", "search"}
    assert found["paired"]["seeds"] == [1]
    assert found["paired"]["difference"]["sd"] is None
    assert found["layers"][0]["band"] is None


def test_equal_quality_compares_drift_at_one_loss(tmp_path):
    losses = {"full": {10: 0.8, 20: 0.4}, "lora": {10: 0.9, 20: 0.6}}
    upstream = dict([write_base(tmp_path)] + [write_run(tmp_path, m, 1, losses=losses[m]) for m in losses])
    _, found = run(tmp_path, upstream)
    row = found["equal_quality"][0]
    series = {r["method"]: {int(k): v for k, v in r["series"].items()} for r in found["runs"]}
    assert row["selection_loss"] == 0.6
    assert (row["candidate_step"], row["reference_step"]) == (20.0, 15.0)
    assert row["reference_drift"] == pytest.approx((series["full"][10] + series["full"][20]) / 2)
    assert row["candidate_drift"] == pytest.approx(series["lora"][20])


def test_red_flags_are_notes(tmp_path):
    falling = {0: 0.0, 10: 0.6, 20: 0.1}
    runs = [write_run(tmp_path, "full", 1, amounts=falling), write_run(tmp_path, "lora", 1)]
    result, _ = run(tmp_path, dict(runs))
    text = "\n".join(result.notes)
    assert "full/final/seed-1: drift falls over training" in text
    assert "lora drifts more than full in every layer" in text
    assert "no base-probe step" in text


def test_runs_of_different_precision_are_flagged(tmp_path):
    upstream = study(tmp_path, seeds=(1,))
    assert not any("precision" in note for note in run(tmp_path, upstream)[0].notes)
    path = upstream["train/sst2/lora/final/seed-1"] / "result.json"
    result = json.loads(path.read_text())
    result["outputs"]["precision"] = "bf16-mixed"
    path.write_text(json.dumps(result))
    assert any("different precisions (None, bf16-mixed)" in note for note in run(tmp_path, upstream)[0].notes)


def test_early_above_late_is_flagged(tmp_path):
    name, folder = write_run(tmp_path, "full", 1)
    table = pd.read_parquet(folder / "drift.parquet")
    table["layer"] = table["layer"].map({0: 0, 1: 3, 2: 2, 3: 1})
    table.to_parquet(folder / "drift.parquet")
    result, found = run(tmp_path, {name: folder})
    assert any("full: early layers drift more than late ones" in note for note in result.notes)
    assert any("no seed has both lora and full" in note for note in result.notes)
    assert found["paired"] is None


def test_step_zero_beyond_the_floor_is_flagged(tmp_path):
    upstream = study(tmp_path, seeds=(1,))
    moved = upstream["train/sst2/lora/final/seed-1"]
    save_states(moved / "probe" / "step-0.safetensors", states(0.05, 1))
    result, found = run(tmp_path, upstream)
    assert result.outputs["step_zero_ok"] is False
    assert [c["ok"] for c in found["step_zero"]] == [True, False]
    assert any("lora/final/seed-1: step-0 states differ from the base probe" in note for note in result.notes)


def test_saturated_and_unresolved_drift_are_marked(tmp_path):
    runs = [write_run(tmp_path, "full", 1, amounts={0: 0.0, 9: 50.0}), write_run(tmp_path, "lora", 1, amounts={0: 0.0, 9: 1e-5})]
    _, found = run(tmp_path, dict([write_base(tmp_path), *runs]))
    marks = {r["method"]: (r["saturated"], r["below_resolution"]) for r in found["runs"]}
    assert marks == {"full": (True, False), "lora": (False, True)}


def test_other_tasks_are_left_out(tmp_path):
    upstream = study(tmp_path, seeds=(1,)) | dict([write_run(tmp_path, "lora", 1, task="rte")])
    _, found = run(tmp_path, upstream)
    assert all("/sst2/" in r["step"] for r in found["runs"])


def test_bad_records_are_refused_by_name(tmp_path):
    upstream = study(tmp_path, seeds=(1,))
    folder = upstream["train/sst2/full/final/seed-1"]
    good = (folder / "drift.parquet").read_bytes()

    def refused(error, match):
        with pytest.raises(error, match=match):
            run(tmp_path, upstream)
        (folder / "drift.parquet").write_bytes(good)

    (folder / "drift.parquet").write_bytes(good[:500])
    refused(PrerequisiteError, r"full/final/seed-1: .*drift\.parquet is missing or damaged")
    (folder / "drift.parquet").unlink()
    refused(PrerequisiteError, r"full/final/seed-1: .*drift\.parquet is missing")
    table = pd.read_parquet(folder / "drift.parquet")
    table.assign(value=table["value"].where(table["layer"] != 2)).to_parquet(folder / "drift.parquet")
    refused(StatesError, r"non-finite .* at layer 2")
    table.assign(value=table["value"] * 2).to_parquet(folder / "drift.parquet")
    refused(StepError, "its result says drift")
    table.drop(columns="block").to_parquet(folder / "drift.parquet")
    refused(PrerequisiteError, r"lacks columns \['block'\]")


def test_different_probe_sets_are_never_compared(tmp_path):
    upstream = study(tmp_path, seeds=(1,))
    name, folder = write_run(tmp_path, "lora", 2)
    result = json.loads((folder / "result.json").read_text())
    result["outputs"]["probe_sha256"] = "b" * 64
    (folder / "result.json").write_text(json.dumps(result))
    with pytest.raises(StatesError, match="lora/final/seed-2: probe set bbbbbbbbbbbb differs from aaaaaaaaaaaa"):
        run(tmp_path, upstream | {name: folder})
    with pytest.raises(PrerequisiteError, match="no finished training run"):
        run(tmp_path, dict([write_base(tmp_path)]))


def test_the_step_is_deterministic(tmp_path):
    upstream = study(tmp_path, seeds=(1, 2))
    run(tmp_path, upstream)
    first = {n: (tmp_path / "out" / n).read_bytes() for n in ("drift_summary.json", "layers.parquet")}
    run(tmp_path, upstream)
    assert all((tmp_path / "out" / n).read_bytes() == content for n, content in first.items())


def test_weight_updates_of_kept_weights(tmp_path):
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    upstream = study(tmp_path, seeds=(1,))
    lora, full = (upstream[f"train/sst2/{m}/final/seed-1"] for m in ("lora", "full"))
    step = json.loads((lora / "step.json").read_text())
    step["inputs"]["model"]["name"] = str(tmp_path / "base")
    (lora / "step.json").write_text(json.dumps(step))
    weights = {k: v.numpy().copy() for k, v in base.state_dict().items()}
    adapted = get_peft_model(LlamaForCausalLM.from_pretrained(tmp_path / "base"), LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj"]))
    for parameter in (p for n, p in adapted.named_parameters() if "lora_B" in n):
        torch.nn.init.normal_(parameter)
    adapted.save_pretrained(lora / "adapter")
    moved = {k: v + np.float32(0.1) * np.random.default_rng(0).normal(size=v.shape).astype(np.float32) for k, v in weights.items()}
    (full / "model").mkdir()
    save_file(moved, full / "model" / "model.safetensors")
    result, _ = run(tmp_path, upstream)
    assert result.content[-1] == "weights.parquet"
    table = pd.read_parquet(tmp_path / "out" / "weights.parquet").set_index(["method", "matrix"])
    name = "model.layers.1.self_attn.q_proj"
    merged = adapted.merge_and_unload().state_dict()[f"{name}.weight"].numpy()
    w = weights[f"{name}.weight"]
    assert table.loc[("lora", name), "relative_update"] == pytest.approx(relative_update_norm(w, merged), rel=1e-5)
    assert table.loc[("lora", name), "intruder_dimensions"] == intruder_dimensions(w, merged)
    assert table.loc[("full", name), "relative_update"] == pytest.approx(relative_update_norm(w, moved[f"{name}.weight"]))
    assert 0 < table.loc[("lora", name), "utilisation"] <= 1
    assert len(table) == 4


def test_small_pieces():
    assert [list(part) for part in thirds(np.arange(7.0))] == [[0, 1], [5, 6]]
    assert [list(part) for part in thirds(np.arange(2.0))] == [[0], [1]]
    assert critical_layers(np.array([0.1, 0.1, 0.1, 0.9])) == [4]
    assert first_step_at({10: 1.0, 20: 0.5, 30: 0.2}, 0.75) == 15
    assert first_step_at({10: 1.0, 20: 0.5}, 1.0) == 10
    assert drift_at({10: 0.2, 20: 0.4}, 5) == pytest.approx(0.1)
