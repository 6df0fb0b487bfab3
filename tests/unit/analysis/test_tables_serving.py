"""Serving tables over a store with planted launches."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from launch_rows import row
from simulated_store import small_study, write_store
from tunescope.analysis.frames import collect
from tunescope.analysis.serving import open_loop_rows, switching_rows
from tunescope.analysis.statistical_analysis import analyse
from tunescope.analysis.tables import plain
from tunescope.analysis.tables_serving import prefill_decoding_table
from tunescope.study.schema import AnalysisSpec, ServingSpec, TaskSpec


def opened(arm: str, launch: int, scale: float, ok: bool = True) -> dict:
    times = {f"{m}_ms": [scale, 2 * scale, 3 * scale] for m in ("ttft", "tpot", "itl", "e2el")}
    rate = {"request_rate": 4.0, "requests": 100, "completed": 99, "duration_s": 25.0, "requests_per_s": 3.9, "output_tokens_per_s": 1.0}
    return {"arm": arm, "launch": launch, "ok": ok, "rates": [rate | times] if ok else []}


@pytest.fixture(scope="module")
def analysed(tmp_path_factory):
    root: Path = tmp_path_factory.mktemp("runs") / "simulated"
    study = small_study(
        tasks={"sst2": TaskSpec(max_length=512), "squad_v2": TaskSpec(max_length=768)},
        serving=ServingSpec(
            arms=("base", "full", "merged", "adapters_1", "adapters_2", "adapters_4", "switching"), batch_sizes=(2, 4, 8),
            prompt_lengths=(128,), sampling=("greedy",),
        ),
        analysis=AnalysisSpec(overhead_batch_sizes=(2, 4), overhead_prompt_length=128, bootstrap_draws=20, permutation_draws=19),
    )  # fmt: skip
    write_store(root, study, rng=np.random.default_rng(7), n_examples=60, overhead=0.5)
    folder = next(root.rglob("launches.jsonl")).parent
    rows = [opened("merged", 0, 1.0), opened("merged", 1, 3.0), opened("merged", 2, 2.0), opened("base", 0, 9.0, ok=False)]
    (folder / "open_loop.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    frames = collect(root, study)
    return frames, analyse(frames, study, now="2025-01-02T03:04:05+00:00").statistics


def lines(table):
    return [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]


def test_open_loop_percentiles_are_medians_over_good_launches_and_counts_are_summed(analysed):
    frames, statistics = analysed
    (row,) = open_loop_rows(frames)
    assert (row["arm"], row["launches"], row["requests"], row["completed"]) == ("merged", 3, 300, 297)
    assert (row["ttft_p50_ms"], row["e2el_p99_ms"]) == (2.0, 6.0)
    (shown,) = lines(statistics["open_loop"])
    assert shown["e2el p99 (ms)"] == 6.0 and shown["requests/s asked"] == 4.0


def test_switching_is_told_by_tier_and_frequency_with_the_planted_costs(analysed):
    _, statistics = analysed
    found = {(r["tier"], r["requests between switches"]): r for r in lines(statistics["switching"])}
    assert found["cpu cache", 4]["added (ms)"] == pytest.approx(4.0, rel=0.1)
    assert found["disk", 16]["ms a request"] == pytest.approx(40 + 20 / 16, rel=0.05) and found["disk", 1]["launches"] == 10
    assert found["cpu cache", 1]["GB/s"] == pytest.approx(1.0, rel=0.1) and found["disk", 1]["GB/s"] == pytest.approx(0.2, rel=0.1)
    assert found["resident", 1]["GB/s"] is None and switching_rows([]) == []


def test_a_switch_that_one_launch_found_free_has_no_speed():
    entry = {"tier": "disk", "adapters": 4, "switch_every": 4, "ms_per_request": 80.0, "bytes_moved": 4_000_000}
    rows = [row("switching", k, []) | {"switching": [entry | {"added_ms": added}]} for k, added in enumerate((-10.0, 8.0, 9.0))]
    assert switching_rows(rows)[0]["gb_per_s"] is None
    assert switching_rows(rows[1:])[0]["gb_per_s"] == pytest.approx(4 / 8.5)


def test_the_joint_model_finds_the_planted_slope_and_no_effect_of_batch(analysed):
    _, statistics = analysed
    terms = {r["term"]: r for r in lines(statistics["overhead_surface"])}
    # Planted: 0.8, 1.0 and 1.2 x 50 % for 1, 2 and 4 adapters, the same at every batch size.
    assert terms["each adapter"]["overhead"] == pytest.approx(0.0643, abs=0.02)
    assert terms["each doubling of the batch"]["90 % low"] < 0 < terms["each doubling of the batch"]["90 % high"]


def test_prefill_and_decoding_are_told_apart_by_arm_and_batch(analysed):
    _, statistics = analysed
    found = {(r["arm"], r["batch"]): r for r in lines(statistics["prefill_decoding"])}
    assert {arm for arm, _ in found} == {"base", "full", "adapters_1", "adapters_2", "adapters_4"} and {b for _, b in found} == {2, 4, 8}
    planted = found["adapters_2", 4]  # both are scaled alike in these launches
    assert planted["TTFT over"] == pytest.approx(0.5, abs=0.05) and planted["TPOT low"] < 0.5 < planted["TPOT high"]


def test_prefill_is_told_where_answers_have_one_token(analysed):
    frames, statistics = analysed
    rows = [
        {**r, "cells": [{**c, "output_tokens": 1, "tpot_ms": [0.0, 0.0, 0.0]} for c in r["cells"]]}
        for r in frames.documents["serve"]["launches.jsonl"]
    ]
    study = small_study(analysis=AnalysisSpec(overhead_batch_sizes=(2, 4), overhead_prompt_length=128))
    changed = replace(frames, documents={"serve": {**frames.documents["serve"], "launches.jsonl": rows}})
    found = lines(plain(prefill_decoding_table(SimpleNamespace(study=study, frames=changed))))
    assert [(r["arm"], r["TTFT over"]) for r in found] == [(r["arm"], r["TTFT over"]) for r in lines(statistics["prefill_decoding"])]
    assert {r["TPOT over"] for r in found} == {None}


def test_the_memory_of_a_slot_and_the_tie_are_in_the_tables(analysed):
    _, statistics = analysed
    memory = {r["arm"]: r for r in lines(statistics["serving_memory"])}
    assert memory["adapters_4"]["per slot (MiB)"] == pytest.approx(90_112 / 2**20) and memory["base"]["per slot (MiB)"] is None
    assert {r["tie"] for r in lines(statistics["tie_check"])} == {"yes"}
