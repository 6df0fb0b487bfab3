"""Flags that need the study beside results: each raised by one set of results and not by its neighbour."""

from pathlib import Path

import pytest

from tunescope.analysis.flag_groups import grouped
from tunescope.analysis.step_flags import FINAL_RECORDS, Results, comparison_flags, finished_flags, missing_records
from tunescope.records import FinishedStep
from tunescope.study.load import load_study
from tunescope.study.schema import Study, TaskSpec

BASE = load_study("quickstart").study


def study(grid: tuple[float, ...] = (1e-4, 3e-4, 1e-3)) -> Study:
    methods = {name: m.model_copy(update={"learning_rates": grid}) for name, m in BASE.methods.items()}
    task = TaskSpec(max_length=512, expect={"full": (0.90, 0.93)})
    return BASE.model_copy(update={"tasks": {"sst2": task}, "methods": methods, "serving": None})


def flags(scores: dict[str, float | None], rate: float = 3e-4, limit: float | None = 0.6, grid: tuple[float, ...] = (1e-4, 3e-4, 1e-3)):
    outputs = {m: {"learning_rate": rate} for m in ("full", "lora")}
    outputs["baseline/sst2"] = {} if limit is None else {"intervals": {"majority/accuracy": [0.4, limit]}}
    results = Results(
        runs=lambda task, method: {42: method} if scores.get(method) is not None else {},
        value=lambda step, metric, split: scores[step] if (metric, split) == ("accuracy", "test") else None,
        outputs=lambda step: outputs.get(step, {}),
    )
    return list(comparison_flags(study(grid), results))


def test_nothing_to_flag():
    assert flags({"full": 0.91, "lora": 0.5}) == []
    assert flags({}) == []


@pytest.mark.parametrize(("score", "raised"), [(0.899, True), (0.90, False), (0.93, False), (0.931, True)])
def test_a_score_outside_its_expected_range(score, raised):
    found = flags({"full": score, "lora": 0.99})  # nothing is expected of lora
    assert [s for s, _ in found] == ["full"] * raised and all("expected 0.9 to 0.93 of full on SST-2" in t for _, t in found)


@pytest.mark.parametrize(
    ("rate", "grid", "raised"),
    [
        (1e-4, (1e-4, 3e-4, 1e-3), True),
        (1e-3, (1e-4, 3e-4, 1e-3), True),
        (3e-4, (1e-4, 3e-4, 1e-3), False),
        (3e-4, (3e-4,), False),  # nothing was searched
        (1e-4, (1e-4, 3e-4), True),  # a grid of two has nothing but edges
    ],
)
def test_a_rate_on_the_edge_of_its_grid(rate, grid, raised):
    texts = [t for _, t in flags({"full": 0.91, "lora": 0.9}, rate=rate, grid=grid)]
    assert len(texts) == 2 * raised and all("on the edge of its grid" in t for t in texts)


@pytest.mark.parametrize(
    ("scores", "limit", "raised"),
    [
        ({"full": 0.6, "lora": 0.55}, 0.6, True),
        ({"full": 0.61, "lora": 0.55}, 0.6, False),  # one method learnt something
        ({"full": 0.55, "lora": 0.61}, 0.6, False),
        ({"full": 0.55, "lora": None}, 0.6, False),  # not known yet
        ({"full": 0.55, "lora": 0.55}, None, False),
    ],
)
def test_neither_score_is_above_the_majority_baselines_interval(scores, limit, raised):
    found = [f for f in flags(scores, limit=limit) if "neither mean score" in f[1]]
    assert [s for s, _ in found] == ["baseline/sst2"] * raised
    assert [(g.severity, g.code) for g in grouped(found)] == [("doubtful", "near-majority")] * raised, "the gate decides, not this"


def test_missing_records_and_notes_of_finished_steps(tmp_path: Path):
    for name in FINAL_RECORDS.values():
        (tmp_path / name).touch()
    inputs = {"kind": "train", "role": "final", "task": "sst2", "method": "lora", "seed": 42}
    result = {"metrics": [], "resources": [], "outputs": {}, "notes": ["training loss did not fall (1.0 to 2.0)"]}
    step = FinishedStep("train/sst2/lora/final/seed-42", tmp_path, inputs, result)
    assert missing_records(step) == ""
    assert finished_flags(study(), {step.id: step}) == [(step.id, "training loss did not fall (1.0 to 2.0)")]
    (tmp_path / "drift.parquet").unlink()
    assert missing_records(step) == "missing records: drift table"
    assert (step.id, "missing records: drift table") in finished_flags(study(), {step.id: step})
    searched = FinishedStep("s", tmp_path, inputs | {"role": "search"}, result | {"notes": []})
    assert finished_flags(study(), {"s": searched}) == []  # a search run keeps none of them
