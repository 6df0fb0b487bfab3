"""What is said on the screen: what fits, which row a step keeps, how long is left, when watching ends."""

from types import SimpleNamespace

import pytest

from tunescope import console, status_text
from tunescope.run.lease import Lease
from tunescope.run.state import StepState
from tunescope.run.validate import TIERS, Check
from tunescope.study.inputs import CorrelateInputs
from tunescope.study.plan import Step
from tunescope.study.schema import AnalysisSpec


def state(step_id: str, status: str, wall_s: float | None = None, **more) -> StepState:
    kind = step_id.split("/")[0]
    step = Step(step_id, kind, CorrelateInputs(analysis=AnalysisSpec()), task="rte", role="final")
    return StepState(step, status, finished=SimpleNamespace(result={"wall_s": wall_s}) if wall_s else None, **more)


def states(*found: StepState) -> dict[str, StepState]:
    return {s.step.id: s for s in found}


def text(flags=(), **more) -> status_text.StatusText:
    return status_text.StatusText(lambda found: flags, lambda verb, *options: " ".join((verb, *options)), **more)


def test_a_small_screen_keeps_the_counts_and_what_runs():
    lines = ["1 running · 1 failed · 20 todo", "running train/x", "failed  train/y", *(f"todo    step-{i}" for i in range(20))]
    shown = status_text.fitting(lines, 8)
    assert len(shown) == 7 and shown[:-1] == lines[:6] and shown[-1].startswith("… 17 more lines")
    assert status_text.fitting(lines, 24) == lines


def test_a_status_says_first_how_it_stands_and_what_to_type_and_flags_last():
    found = states(
        state("train/1", "done", 10.0), state("train/2", "done", 10.0), state("drift/1", "todo", why="waits for train/3"),
        state("train/3", "failed", why="non-finite loss"), state("baseline/1", "todo", fingerprint="ab"),
        state("baseline/2", "todo", fingerprint="cd"), state("train/4", "stale", why="lr 1 → 2", fingerprint="ef"),
    )  # fmt: skip
    flags = [("train/1", "training loss is 0.2 at the end, above 0.1"), ("train/1", "missing records: predictions")]
    flags += [("train/2", "training loss is 0.3 at the end, above 0.1"), ("elsewhere", "adapter weights explode (largest 1e3)")]
    assert text(flags).lines(found, set(found)) == [
        "2 done · 1 stale · 3 todo · 1 failed",
        "failed  train/3  non-finite loss",
        "next    show train/3 says why; run --retry-failed tries again",
        "next    run does what is left",
        "stale   train/4  lr 1 → 2",
        "todo    drift/1  waits for train/3",
        "todo    baseline/rte  2 steps, the first  baseline/1, ready",
        "flags   3, the most severe first; status --flags lists each with its step",
        "        broken   records-missing       1  train/1: missing records: predictions",
        "        doubtful loss-high             2  e.g. train/1: training loss is 0.2 at the end, above 0.1",
    ]
    every = [line for line in text(flags, all_flags=True).lines(found, set(found)) if line.startswith("flag ")]
    assert [line.split()[3] for line in every] == ["train/1", "train/1", "train/2"] and "0.3" in every[2]


def test_when_all_is_done_the_report_is_next():
    found = states(state("train/1", "done", 10.0))
    assert text().lines(found, {"train/1"}) == ["1 done", "next    report writes the report"]
    assert text(report=lambda found: "r.html").lines(found, {"train/1"}) == ["1 done", "next    read r.html"]


def test_a_step_keeps_its_row_while_it_runs_and_new_ones_take_the_first_free():
    rows = console.slot_rows([], ["a", "b", "c"])
    assert rows == ["a", "b", "c"]
    assert console.slot_rows(rows, ["a", "c"]) == ["a", None, "c"]
    assert console.slot_rows(["a", None, "c"], ["c", "d"]) == ["d", None, "c"]


def test_the_time_left_comes_from_medians_and_counts_what_already_ran():
    """Medians: train 20 s, drift 5 s. Left on two slots: a train that ran 8 s, a whole one, a drift."""
    found = states(
        state("train/1", "done", 10.0), state("train/2", "done", 20.0), state("train/3", "done", 90.0), state("drift/1", "done", 5.0),
        state("train/4", "running"), state("train/5", "todo"), state("drift/2", "todo"),
    )  # fmt: skip
    assert console.remaining_s(found, {"train/4": 100.0}, found, 2, 108.0) == pytest.approx(max(20.0, (12 + 20 + 5) / 2))
    assert console.remaining_s(found, {"train/4": 100.0}, found, 1, 108.0) == pytest.approx(37.0)
    assert console.remaining_s({**found, **states(state("serve", "todo"))}, {}, ["serve"], 1, 0.0) is None


def test_the_status_tells_the_time_left_while_steps_run(monkeypatch):
    """A step takes 20 s: two that have run for 8, and two that have not begun, make 64 s of work."""
    monkeypatch.setattr(status_text.time, "time", lambda: 108.0)
    lease = Lease("there", 1, 0.0, 100.0, 107.0)
    done, ran = state("train/1", "done", 20.0), state("train/2", "running", lease=lease)
    found = states(done, ran, state("train/3", "running", lease=lease), state("train/4", "todo"), state("train/5", "todo"))
    assert text().lines(found, set(found))[1] == "time    about 32 s with 2 steps at once, as now"
    assert text().lines(found, {"train/2"})[1] == "time    about 12 s with one step at a time, as now"
    assert text().lines(states(ran), {"train/2"})[1] == "time    known after the first step of each kind"
    assert not any(line.startswith("time") for line in text().lines(states(done, state("train/4", "todo")), {"train/1", "train/4"}))


def test_watching_prints_changes_only_and_ends_when_nothing_is_left(capsys):
    lease = Lease("here", 1, 0.0, 0.0, 0.0, done=3, total=9, text="loss 1.2")
    looks = iter(
        [states(state("train/1", "running", why="on here", lease=lease))] * 3 + [states(state("train/1", "failed", why="non-finite loss"))]
    )
    status_text.watch_status(lambda: next(looks), ["train/1"], text([("train/1", "a flag")]), every_s=0.0)
    out = capsys.readouterr().out
    assert out.count("running train/1  on here  3/9 loss 1.2") == 1
    assert "failed  train/1  non-finite loss" in out and out.count("train/1: a flag") == 2
    assert [line for line in out.splitlines() if line[:2].isdigit() is False and line[0].isdigit()] == ["1 running", "1 failed"]


def test_lines_of_validate_stand_under_their_tier_with_its_claim():
    lines = console.tier_lines([Check("R1", "b", "FAIL", "x"), Check("R0", "a", "PASS", "y"), Check("R1", "c", "SKIP", "z")], TIERS)
    assert lines == [f"R0: {TIERS['R0']}", "PASS  a: y", f"R1: {TIERS['R1']}", "FAIL  b: x", "SKIP  c: z", "1 PASS · 1 FAIL · 1 SKIP"]


@pytest.mark.parametrize(("seconds", "words"), [(0.44, "0.4 s"), (12.2, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_in_words(seconds, words):
    assert console.duration(seconds) == words
