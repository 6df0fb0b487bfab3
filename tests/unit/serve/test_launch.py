"""One launch around an engine that only keeps a record: what is warmed before the log is watched, and where a fleet keeps step."""

import json
import sys
import time
import types

import pytest

import tunescope.serve
from tunescope.serve import launch
from tunescope.serve.measure import Timing

CELL = {"batch_size": 2, "prompt_length": 6, "output_tokens": 3, "sampling": "greedy"}
SPEC = {
    "started": 0.0, "adapters": [], "minimum_difference": 0.01, "warmup_calls": 4, "requests_per_cell": 2, "cells": [CELL],
    "switching": None, "lora": None, "device": "cuda",
}  # fmt: skip
SWITCHING = {
    "cells": [], "switching": {"prompt_length": 6, "bytes_moved": {"cpu cache": 10, "disk": 20}},
    "lora": {"max_loras": 2, "max_cpu_loras": 3}, "adapters": [{"name": n, "path": f"/{n}"} for n in "abcd"],
}  # fmt: skip


class Recorder:
    """Answers everything; an engine that has not seen a batch size with that many tokens yet compiles, and says so in the log."""

    def __init__(self, spec):
        self.log, self.seen = spec["log"], set()

    def generate(self, prompts, tokens, sampling, adapters):
        shape = (len(prompts), len(prompts[0]), tokens, tuple(adapters))
        if shape not in self.seen:
            with open(self.log, "a") as log:
                log.write(f"Triton kernel JIT compilation during inference: {shape}\n")
        self.seen.add(shape)
        return [Timing(0.0, 0.1, 0.2, tokens) for _ in prompts]

    def log_probabilities(self, asks, adapters):
        return [-1.0 if a is None else -2.0 - ord(a) for a in adapters]

    def load(self, adapter): ...

    def unload(self, adapter): ...

    def facts(self):
        return {}

    def close(self): ...


@pytest.fixture
def started(tmp_path, monkeypatch):
    """A launch of the record keeper."""
    module = types.ModuleType("tunescope.serve.imports")
    module.VllmEngine, module.SECONDS, module.before_fork = Recorder, 7.0, lambda: 0.0
    monkeypatch.setitem(sys.modules, "tunescope.serve.imports", module)
    monkeypatch.setattr(tunescope.serve, "imports", module, raising=False)
    (tmp_path / "log.txt").touch()
    (tmp_path / "prompts.json").write_text(json.dumps({"pools": {"6": [[1] * 6, [2] * 6]}, "asks": [[1, 2]]}))
    told = SPEC | {"log": str(tmp_path / "log.txt"), "prompts": str(tmp_path / "prompts.json")}
    return lambda **changes: launch.run(told | changes)


def test_what_is_timed_was_warmed_before(started):
    row = started()
    assert row["ok"] and row["cells"][0]["requests"] == 2 and row["compiled_during_inference"] is False


def test_the_cold_start_of_a_fork_counts_the_imports_of_its_server(started, monkeypatch):
    monkeypatch.setattr(sys.modules["tunescope.serve.imports"], "before_fork", lambda: 7.0)
    plain, now = started(started=time.monotonic()), time.monotonic()
    assert plain["import_s"] == 7.0 and 7.0 <= plain["cold_start_s"] < 7.0 + time.monotonic() - now + 5.0


def test_an_engine_on_a_cpu_ends_with_its_process_and_tidies_nothing_up(started, monkeypatch):
    closed = []
    monkeypatch.setattr(Recorder, "close", lambda self: closed.append(1))
    assert started(device="cpu")["ok"] and not closed
    assert started()["ok"] and closed


def test_the_switching_arm_is_warmed_like_the_others_though_it_has_no_cells(started):
    row = started(**SWITCHING)
    assert row["ok"], row["error"]
    assert {r["tier"] for r in row["switching"]} == {"one adapter", "resident", "cpu cache", "disk"}


def test_engines_of_a_fleet_watch_the_log_after_all_have_warmed_up_and_end_after_all_have_been_timed(started, monkeypatch):
    met = []
    monkeypatch.setattr(launch, "meet", lambda barrier, name: met.append(name))
    monkeypatch.setattr(Recorder, "close", lambda self: met.append("closed"))
    monkeypatch.setattr(launch.os.path, "getsize", lambda path: met.append("log watched") or 10**6)
    assert started(barrier={"rank": 0})["ok"]
    assert met == ["engine", "warm", "log watched", "cell-0", "timed", "closed"]
