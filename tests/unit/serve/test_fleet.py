"""Several merged engines at once: what each is told, how they keep step, and what their rows become together."""

import subprocess
import sys
import threading
import time

import pytest

from tunescope.serve import fleet
from tunescope.serve.arms import cells
from tunescope.study.arms import parse_arm
from tunescope.study.schema import ServingSpec

SPEC = {
    "engines": 2, "gpu_memory_utilization": 0.9, "requests_per_cell": 5, "started": 0.0, "watch_stdin": True, "result": "x", "log": None,
    "cells": [{"batch_size": 4, "output_tokens": 10, "prompt_length": 8, "sampling": "greedy"}],
}  # fmt: skip


def row(ms, requests, seconds, compiled=False, weights=100):
    times = {k: [ms, ms + 1, ms + 2] for k in ("ttft_ms", "tpot_ms", "latency_ms")}
    cell = {"requests": requests, "seconds": seconds, "ms_per_token": ms, **times}
    return {
        "cells": [cell],
        "compiled_during_inference": compiled,
        "kv_blocks": 7,
        "weight_bytes": weights,
        "lora_slot_bytes": 0,
        "check": 1,
    }


def test_an_engine_gets_its_share_of_memory_rows_and_requests(tmp_path):
    told = fleet.member(SPEC, 1, tmp_path)
    assert told["gpu_memory_utilization"] == pytest.approx((0.9 - 0.015) / 2)
    assert told["cells"][0]["batch_size"] == 2 and told["requests_per_cell"] == 3
    assert told["engines"] == 1 and told["barrier"] == {"folder": str(tmp_path), "rank": 1, "parties": 2}
    assert SPEC["cells"][0]["batch_size"] == 4, "the fleet's own spec is left alone"


@pytest.mark.parametrize(("engines", "total_gib"), [(1, 80), (2, 80), (4, 80), (8, 80), (2, 24)])
def test_every_engine_of_a_fleet_finds_its_share_free_when_it_starts(engines, total_gib):
    """vLLM refuses to start unless its whole share is free, and each engine before holds its share and a context beside it."""
    context = min(1.0, 0.02 * total_gib)
    share = fleet.memory_share(0.95, engines) * total_gib
    for before in range(engines):
        assert total_gib - 0.5 - before * (share + context) - context >= share
    assert fleet.memory_share(0.95, 1) == 0.95, "an engine on its own has what the other arms have"


def test_a_fleet_is_as_slow_as_its_slowest_engine_and_as_large_as_all():
    found = fleet.together([row(2.0, 6, 1.0), row(3.0, 6, 2.0)], SPEC["cells"])
    (cell,) = found["cells"]
    assert cell["ms_per_token"] == 3.0 and cell["batch_size"] == 4 and cell["requests"] == 12
    assert cell["tokens_per_s"] == pytest.approx(12 * 10 / 2.0) and cell["ttft_ms"] == [3.0, 4.0, 5.0]
    assert (found["weight_bytes"], found["kv_blocks"], found["compiled_during_inference"]) == (200, 14, False)


def test_a_fleet_with_one_compiling_engine_is_marked_and_unknown_sizes_stay_unknown():
    found = fleet.together([row(1.0, 1, 1.0), row(1.0, 1, 1.0, compiled=True, weights=None)], SPEC["cells"])
    assert found["compiled_during_inference"] and found["weight_bytes"] is None


def test_engines_meet_and_none_goes_ahead(tmp_path):
    passed = []

    def engine(rank, delay):
        time.sleep(delay)
        fleet.meet({"folder": str(tmp_path), "rank": rank, "parties": 2}, "cell-0")
        passed.append(time.monotonic())

    start = time.monotonic()
    threads = [threading.Thread(target=engine, args=(0, 0.0)), threading.Thread(target=engine, args=(1, 0.3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(passed) == 2 and min(passed) - start >= 0.3
    fleet.meet(None, "cell-0")  # an engine on its own waits for nobody


def test_a_sibling_that_never_comes_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "PATIENCE_S", 0.05)
    with pytest.raises(TimeoutError, match="sibling"):
        fleet.meet({"folder": str(tmp_path), "rank": 0, "parties": 2}, "cell-0")


ENGINE = """
import json, pathlib, sys, time
told = json.loads(pathlib.Path(sys.argv[1]).read_text())
folder, rank = pathlib.Path(told["barrier"]["folder"]), told["barrier"]["rank"]
if rank == {fails}:
    pathlib.Path(told["result"]).write_text(json.dumps({{"ok": False, "error": "no memory"}}))
    raise SystemExit(1)
(folder / f"engine-{{rank}}").touch()
while not {alone} and not (folder / "engine-1").exists():
    time.sleep(0.01)
cell = {{"requests": 4, "seconds": 1.0, "ms_per_token": 1.0, "ttft_ms": [1.0], "tpot_ms": [1.0], "latency_ms": [1.0]}}
row = {{"ok": True, "error": None, "cells": [cell], "compiled_during_inference": False, "cold_start_s": 10.0 * (rank + 1)}}
time.sleep(0.3)
pathlib.Path(told["result"]).write_text(json.dumps(row))
"""


def engines(monkeypatch, **how):
    """Stand-ins for the engines' processes."""
    started, real = [], subprocess.Popen

    def popen(command, **kwargs):
        started.append(command)
        return real([sys.executable, "-c", ENGINE.format(**{"fails": -1, "alone": False} | how), command[-1]], **kwargs)

    monkeypatch.setattr(fleet.subprocess, "Popen", popen)
    return started


def test_the_cold_start_of_a_fleet_ends_with_the_last_engines_first_answer_whatever_comes_after(tmp_path, monkeypatch):
    engines(monkeypatch)
    start = time.monotonic()
    found = fleet.run_fleet(SPEC | {"result": str(tmp_path / "row.json"), "started": start})
    assert 20.0 <= found["cold_start_s"] < 20.0 + time.monotonic() - start and found["cells"][0]["requests"] == 8


def test_no_further_engine_is_started_once_one_has_failed(tmp_path, monkeypatch):
    started = engines(monkeypatch, fails=0)
    with pytest.raises(RuntimeError, match="one of 2 engines: no memory"):
        fleet.run_fleet(SPEC | {"result": str(tmp_path / "row.json"), "started": time.monotonic()})
    assert len(started) == 1


def test_a_fleet_measures_only_batches_that_divide_among_its_engines():
    arm = parse_arm("merged_x2")
    assert (arm.model, arm.engines, arm.lora) == ("merged", 2, False)
    sizes = [
        (c["batch_size"], c["note"]) for c in cells(arm, ServingSpec(batch_sizes=(1, 2, 4), prompt_lengths=(8,), sampling=("greedy",)))
    ]
    assert sizes == [
        (2, "2 engines at once, 1 rows each; times of the slowest"),
        (4, "2 engines at once, 2 rows each; times of the slowest"),
    ]
