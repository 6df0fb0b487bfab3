"""Ablations and convergence from a simulated store, with curves whose answers are known."""

import json

import numpy as np
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis.frames import collect
from tunescope.analysis.statistical_analysis import analyse
from tunescope.study.schema import AdapterSpec, MethodSpec, TaskSpec

METHODS = {
    "full": MethodSpec(warmup_ratio=0.1, learning_rates=(1e-3,)),
    "lora": MethodSpec(warmup_ratio=0.1, learning_rates=(1e-3,), adapter=AdapterSpec()),
    "ia3": MethodSpec(
        warmup_ratio=0.1, learning_rates=(1e-3,),
        adapter=AdapterSpec(peft_type="IA3", target_modules=("k_proj", "down_proj"), options={"feedforward_modules": ["down_proj"]}),
    ),
    "dora": MethodSpec(warmup_ratio=0.1, learning_rates=(1e-3,), adapter=AdapterSpec(r=4, options={"use_dora": True})),
}  # fmt: skip
CURVES = {"full": [1.0, 0.6, 0.5, 0.55], "lora": [1.2, 0.8, 0.54, 0.48], "ia3": [1.5, 1.2, 1.0, 0.9], "dora": [0.5, 0.4, 0.3, 0.2]}


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    study = small_study(methods=METHODS, serving=None, tasks={"sst2": TaskSpec(max_length=64)})
    write_store(root, study, n_examples=60, rng=np.random.default_rng(0))
    for path in root.glob("steps/train/sst2/*/final/*"):
        rows = [{"step": 20 * k, "time_s": k, "selection_loss": v} for k, v in enumerate(CURVES[path.parts[-3]], start=1)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root, study, analyse(collect(root, study), study, now="2026-11-25T00:00:00Z").statistics


def rows_of(entry):
    return {row[1]: dict(zip(entry["columns"], row, strict=True)) for row in entry["rows"]}


def test_convergence_against_full_by_hand(statistics):
    found = rows_of(statistics[2]["convergence"])
    # full falls from 1.0 to 0.5: 90 % is 0.55, 100 % is 0.50
    assert (found["full"]["steps to 90%"], found["full"]["steps to 100%"], found["full"]["loss ratio"]) == (60, 60, 1)
    assert (found["lora"]["steps to 90%"], found["lora"]["steps to 100%"]) == (60, 80)
    assert found["lora"]["loss ratio"] == pytest.approx(0.48 / 0.5)
    assert (found["ia3"]["steps to 90%"], found["ia3"]["runs that reach 90%"]) == (None, 0)
    assert (found["dora"]["steps to 100%"], found["dora"]["runs that reach 100%"]) == (20, 3)


def test_ablation_has_every_method_with_spread_and_what_it_trains(statistics):
    root, study, tables = statistics
    found = rows_of(tables["ablation"])
    assert list(found) == list(METHODS)
    assert (found["full"]["modules"], found["full"]["rank"], found["full"]["quality ratio"]) == ("all weights", None, 1)
    assert (found["dora"]["adapter"], found["dora"]["rank"]) == ("LORA (use_dora=True)", 4)
    assert (found["ia3"]["adapter"], found["ia3"]["rank"], found["ia3"]["alpha"]) == ("IA3", None, None)
    for method, row in found.items():
        values = [
            next(m["value"] for m in json.loads((root / f"steps/train/sst2/{method}/final/seed-{s}/result.json").read_text())["metrics"]
                 if m["name"] == "accuracy")
            for s in study.seeds
        ]  # fmt: skip
        assert row["quality"] == pytest.approx(np.mean(values)) and row["quality sd"] == pytest.approx(np.std(values, ddof=1))
        assert row["seeds"] == 3 and row["learning_rate"] == 1e-3 and row["drift sd"] is not None and row["trainable share"] > 0
