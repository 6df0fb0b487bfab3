"""The demonstrations of `tunescope check --kind K` on one small real run of all kinds but serving, and what makes each of them fail."""

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from tunescope.checks import demos, planted
from tunescope.checks.demos import Demo
from tunescope.records import FinishedStep, read_step
from tunescope.run.session import Session


@dataclass(frozen=True)
class Shown:
    """A demonstration that ran."""

    session: Session
    done: dict[str, FinishedStep]
    folder: Path


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> Shown:
    folder = tmp_path_factory.mktemp("demo")
    given = Session.open("quickstart", ["execution.device=cpu"])
    demo = Demo(given, folder, ["sst2"], ["full", "lora"])
    session = demo.open("drift", ["sst2"])
    return Shown(session, demo.run(session, "baseline", "drift"), folder)


@pytest.fixture
def copied(shown, tmp_path):
    """A step's folder to spoil: step id -> the step read from a copy."""

    def copy(step: str) -> FinishedStep:
        shutil.copytree(shown.done[step].folder, tmp_path / "copy")
        return read_step(tmp_path / "copy")

    return copy


LORA, FULL = "train/sst2/lora/final/seed-42", "train/sst2/full/final/seed-42"


@pytest.mark.slow
@pytest.mark.parametrize("step", [LORA, FULL])
def test_training_is_shown_with_a_reload(shown, step):
    check = demos.train_verdict(shown.session, "sst2", shown.done[step])
    assert check.status == "PASS" and "loaded again: 100 predictions, largest difference 0" in check.found


@pytest.mark.slow
def test_a_checkpoint_that_is_not_what_was_scored_fails(shown, copied):
    step = copied(LORA)
    path = step.folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({k: v * 1.01 for k, v in tensors.items()}, path, metadata={"format": "pt"})
    check = demos.train_verdict(shown.session, "sst2", step)
    assert check.status == "FAIL" and "after loading again" in check.found


@pytest.mark.slow
def test_a_loss_that_does_not_fall_fails(shown, copied):
    step = copied(FULL)
    for row in step.result["metrics"]:
        if row["name"] == "train_loss_last":
            row["value"] = 99.0
    check = demos.train_verdict(shown.session, "sst2", step)
    assert check.status == "FAIL" and "did not fall" in check.found


@pytest.mark.slow
def test_baselines_are_shown(shown, copied):
    name = "baseline/sst2"
    check = demos.baseline_verdict(shown.session, "sst2", shown.done[name])
    assert check.status == "PASS" and "on 100 examples" in check.found
    step = copied(name)
    for row in step.result["metrics"]:
        if row["name"] == "majority/accuracy":
            row["value"] += 0.01
    check = demos.baseline_verdict(shown.session, "sst2", step)
    assert check.status == "FAIL" and "the constant answer must score" in check.found


@pytest.mark.slow
def test_drift_is_shown_with_a_plot(shown, tmp_path):
    plot = demos._plot(shown.session, tmp_path)
    check = demos.drift_verdict(shown.session, "sst2", shown.done, plot)
    assert check.status == "PASS" and "of 50 probe examples, 2 methods" in check.found and plot is not None and plot.stat().st_size > 10_000
    assert demos.drift_verdict(shown.session, "sst2", shown.done, None).status == "FAIL"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "value", "problem"),
    [(lambda t: t.step == 0, 1e-9, "step 0 is not the base"), (lambda t: t.scored, np.nan, "the scored run shows no drift")],
)
def test_drift_that_cannot_be_fails(shown, copied, rows, value, problem):
    step = copied(LORA)
    table = pd.read_parquet(step.folder / "drift.parquet")
    table.loc[rows(table), "value"] = value
    table.to_parquet(step.folder / "drift.parquet")
    check = demos.drift_verdict(shown.session, "sst2", {**shown.done, LORA: step}, Path("plot.png"))
    assert check.status == "FAIL" and f"lora: {problem}" in check.found


LAUNCHES = [
    {"arm": arm, "ok": True, "cold_start_s": 9.0, "cells": [{"ms_per_token": 5.0}]} for arm in ("base", "merged", "adapters_2", "switching")
]
LAUNCHES[2] |= {"load_s": [0.1, 0.1], "unload_s": [0.01, 0.01]}
LAUNCHES[3] |= {"switching": [{"adapters": 2, "tier": "gpu", "added_ms": 0.1}]}


def served(folder: Path, rows: list[dict], *, correct: bool = True) -> FinishedStep:
    (folder / "launches.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return FinishedStep("serve", folder, {}, {"metrics": [], "resources": [], "outputs": {"correct": correct}})


def test_what_makes_the_serving_demonstration_fail(tmp_path):
    assert demos.serve_verdict(served(tmp_path, LAUNCHES)).status == "PASS"
    broken = {
        "arm merged: no launch": [r for r in LAUNCHES if r["arm"] != "merged"],
        "arm base: engine died": [{**LAUNCHES[0], "ok": False, "error": "engine died"}, *LAUNCHES[1:]],
        "two adapters were not loaded and unloaded": [*LAUNCHES[:2], {**LAUNCHES[2], "unload_s": [0.01]}, LAUNCHES[3]],
        "no switch was measured": [*LAUNCHES[:3], {**LAUNCHES[3], "switching": []}],
    }
    for problem, rows in broken.items():
        check = demos.serve_verdict(served(tmp_path, rows))
        assert check.status == "FAIL" and problem in check.found
    check = demos.serve_verdict(served(tmp_path, LAUNCHES, correct=False))
    assert check.status == "FAIL" and "correctness.json" in check.found


@pytest.mark.slow
def test_statistics_that_miss_what_was_planted_fail(tmp_path, monkeypatch):
    benefit = planted.EFFECTS[0]
    monkeypatch.setattr(planted, "EFFECTS", (benefit, replace(benefit, name="another", verdict="contradicted")))
    check = planted.planted_verdicts(tmp_path)
    assert check.status == "FAIL" and "another was planted, the verdict is supported, not contradicted" in check.found
    assert "a benefit was planted" not in check.found
