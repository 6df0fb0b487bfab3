"""The serving benchmark's own bookkeeping: what it keeps, when it stops, what it says was asked."""

import argparse
import json

import pytest


@pytest.fixture
def clock(bench, monkeypatch):
    """Seconds since the start, to be set."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "monotonic", lambda: now[0])
    return now


def told_at(clock, told, *events):
    for when, done in events:
        clock[0] = when
        told(done, 4, "arm")


def test_no_launch_is_started_that_would_not_end_in_time(bench, clock, tmp_path):
    told = bench.teller(tmp_path, tmp_path, 0.0, 400)
    told_at(clock, told, (10, 0), (170, 1), (240, 2))  # the first launch took 160 s with preparing, the second 70 s, the third 95 s
    with pytest.raises(bench.OutOfTimeError, match=r"stopped at 3 of 4: another launch of 95 s would not end within 400 s"):
        told_at(clock, told, (335, 3))


def test_an_arm_that_has_compiled_is_expected_to_take_what_it_took_last(bench, clock, tmp_path):
    told = bench.teller(tmp_path, tmp_path, 0.0, 600)
    for now, done, text in ((10, 0, "models"), (170, 1, "merged 1 of launches"), (320, 2, "adapters_2 1 of launches")):
        clock[0] = now
        told(done, 4, text)
    clock[0] = 400
    told(3, 4, "adapters_2 2 of launches")  # 150 s when it compiled, 80 s now
    clock[0] = 530
    with pytest.raises(bench.OutOfTimeError, match="another launch of 130 s"):
        told(3, 4, "merged 2 of launches")


def test_the_last_launch_and_a_session_without_a_limit_are_never_stopped(bench, clock, tmp_path):
    told_at(clock, bench.teller(tmp_path, tmp_path, 0.0, 400), (10, 0), (100, 1), (399, 4))
    told_at(clock, bench.teller(tmp_path, tmp_path, 0.0, None), (10, 0), (9000, 1))


def test_before_any_launch_was_timed_it_needs_time_for_one(bench, clock, tmp_path):
    told_at(clock, bench.teller(tmp_path, tmp_path, 0.0, 200), (40, 0))
    with pytest.raises(bench.OutOfTimeError):
        told_at(clock, bench.teller(tmp_path, tmp_path, 0.0, 200), (60, 0))


def test_finished_launches_of_arms_that_are_not_named_are_not_dropped(bench, tmp_path):
    rows = [{"arm": "base", "launch": 0, "ok": True}, {"arm": "merged", "launch": 0, "ok": False}]
    (tmp_path / "launches.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    spec = bench.ServingSpec(arms=("adapters_2",))
    with pytest.raises(SystemExit, match=r"launches\.jsonl holds finished launches of base, which this command does not name"):
        bench.refuse_forgotten_arms(tmp_path, spec)
    bench.refuse_forgotten_arms(tmp_path, bench.ServingSpec(arms=("adapters_2", "base")))


def test_every_command_is_kept_in_order_and_no_path(bench, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setattr("sys.argv", ["x", "--out", str(tmp_path), "--model", "/some/place/sprout-28m", "--device", "cuda"])
    for launches in (2, 3, 2):
        args = argparse.Namespace(**{**vars(bench.arguments()), "launches": launches})
        said = bench.asked(args, bench.serving_spec(args))
        (tmp_path / "asked.json").write_text(json.dumps(said))
    commands = said["command"].splitlines()
    assert [c.split("--launches ")[1].split()[0] for c in commands] == ["2", "3"]
    assert all(c.startswith("CUDA_VISIBLE_DEVICES=1 python benchmarks/bench_serving.py --model sprout-28m ") for c in commands)
    assert said["model"] == "sprout-28m" and "/some/place" not in said["command"]
