"""Frames: what is read, what survives damage, what is written."""

import json
import shutil
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis.columns import COLUMNS
from tunescope.analysis.findings import Missing
from tunescope.analysis.frames import collect, load_results
from tunescope.analysis.rows import cost_rows


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    write_store(root, small_study(), n_examples=40, launches=3, rng=np.random.default_rng(0))
    return root


@pytest.fixture
def own_store(store, tmp_path):
    return shutil.copytree(store, tmp_path / "store")


def test_every_finished_step_is_read_once(store):
    frames = collect(store, small_study())
    assert len(frames.steps) == len(frames.planned) == 58 and not frames.problems
    assert frames.predictions.groupby("step_id").size().eq(40).all() and frames.predictions.step_id.nunique() == 24
    assert set(frames.predictions.role) == {"final"}
    assert len(frames.launches) == 3 * 6 * 10 and len(frames.engines) == 3 * 6
    assert set(frames.baselines.system) == {"majority", "base", "random-0", "random-1"}
    assert set(frames.metrics.source) == {"metric", "resource"}
    assert frames.outputs("serve")["cpu_figures"] is True and frames.outputs("no/such/step") == {}
    assert len(frames.documents["serve"]["launches.jsonl"]) == 18


def test_steps_that_overlap_on_one_machine_share_it(own_store):
    """SST-2's LoRA runs beside MRPC's full one on a machine; RTE's run at the same time on another."""
    times = {"sst2/lora": ("a", 100.0, 200.0), "mrpc/full": ("a", 150.0, 250.0), "rte/lora": ("b", 100.0, 200.0)}
    times["sst2/full"] = ("a", 250.0, 300.0)
    for name, (host, started, finished) in times.items():
        folder = own_store / f"steps/train/{name}/final/seed-42"
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"started": started, "finished": finished}))
        (folder / "provenance.json").write_text(json.dumps({"host": host}))
    frames = collect(own_store, small_study())
    assert {(r.task, r.method) for r in cost_rows(frames, small_study()) if r.shared_machine} == {("sst2", "lora"), ("mrpc", "full")}


def test_written_frames_read_back_equal(store, tmp_path):
    frames = collect(store, small_study())
    frames.write(tmp_path / "results")
    again = load_results(tmp_path / "results")
    for name, table in frames.tables().items():
        pd.testing.assert_frame_equal(table, again.tables()[name])
    assert (again.planned, again.documents, again.problems) == (frames.planned, frames.documents, frames.problems)


def test_an_empty_store_gives_typed_empty_frames(tmp_path):
    frames = collect(tmp_path / "nothing", small_study())
    for name, table in frames.tables().items():
        assert len(table) == 0 and list(table.columns) == list(COLUMNS[name])
    frames.write(tmp_path / "results")
    assert len(load_results(tmp_path / "results").planned) == 58


def test_a_step_counts_only_with_its_result(own_store):
    (own_store / "steps/train/sst2/lora/final/seed-42/result.json").unlink()
    frames = collect(own_store, small_study())
    assert "train/sst2/lora/final/seed-42" not in set(frames.steps.step_id)
    assert "train/sst2/lora/final/seed-42" in frames.planned


def test_steps_named_missing_or_not_planned_are_not_read(own_store):
    @dataclass
    class Planned:
        id: str

    stale = Missing(step="train/mrpc/full/final/seed-42", state="stale", why="learning rate changed")
    frames = collect(own_store, small_study(), missing=[stale])
    assert stale.step not in set(frames.steps.step_id) and len(frames.steps) == 57
    assert list(collect(own_store, small_study(), [Planned("serve"), Planned("correlate")]).steps.step_id) == ["serve", "correlate"]


def test_damage_is_named_and_the_rest_is_read(own_store):
    steps = own_store / "steps"
    (steps / "train/rte/full/final/seed-42/predictions.parquet").write_bytes(b"not parquet")
    (steps / "train/rte/lora/final/seed-42/result.json").write_text("{")
    (steps / "base-probe/rte/noise.parquet").unlink()
    with (steps / "serve/launches.jsonl").open("a") as file:
        file.write('{"arm": "base", "laun')
    frames = collect(own_store, small_study())
    named = dict(frames.problems)
    assert set(named) == {"train/rte/full/final/seed-42", "train/rte/lora/final/seed-42", "base-probe/rte"}
    assert "predictions.parquet" in named["train/rte/full/final/seed-42"] and "missing" in named["base-probe/rte"]
    assert len(frames.launches) == 180
    assert "train/rte/full/final/seed-42" in set(frames.drift.step_id)


def test_failed_launches_stay_out_of_the_cells(own_store):
    path = own_store / "steps/serve/launches.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0] |= {"ok": False, "error": "the engine died", "cells": []}
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    frames = collect(own_store, small_study())
    assert len(frames.engines) == 18 and len(frames.launches) == 170
    assert frames.engines[~frames.engines.ok].error.tolist() == ["the engine died"]
