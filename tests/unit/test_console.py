"""What is said on the screen: what fits, which row a step keeps, how long is left, when watching ends."""

from types import SimpleNamespace

import pytest

from tunescope import console
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


def test_a_small_screen_keeps_the_counts_and_what_runs():
    lines = [*(f"todo    step-{i}" for i in range(20)), "running train/x", "failed  train/y", "1 running · 1 failed · 20 todo"]
    shown = console.fitting(lines, 8)
    assert len(shown) == 7 and shown[:2] == ["running train/x", "failed  train/y"]
    assert shown[-2].startswith("… 17 more lines") and shown[-1] == lines[-1]
    assert console.fitting(lines, 24) == lines


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


def test_watching_prints_changes_only_and_ends_when_nothing_is_left(capsys):
    lease = Lease("here", 1, 0.0, 0.0, 0.0, done=3, total=9, text="loss 1.2")
    looks = iter(
        [states(state("train/1", "running", why="on here", lease=lease))] * 3 + [states(state("train/1", "failed", why="non-finite loss"))]
    )
    console.watch_status(lambda: next(looks), ["train/1"], lambda found: [("train/1", "a flag")], every_s=0.0)
    out = capsys.readouterr().out
    assert out.count("running train/1  on here  3/9 loss 1.2") == 1
    assert "failed  train/1  non-finite loss" in out and out.count("flag    train/1  a flag") == 2
    assert out.splitlines()[-1] == "1 failed"


def test_lines_of_validate_stand_under_their_tier_with_its_claim():
    lines = console.tier_lines([Check("R1", "b", "FAIL", "x"), Check("R0", "a", "PASS", "y"), Check("R1", "c", "SKIP", "z")], TIERS)
    assert lines == [f"R0: {TIERS['R0']}", "PASS  a: y", f"R1: {TIERS['R1']}", "FAIL  b: x", "SKIP  c: z", "1 PASS · 1 FAIL · 1 SKIP"]


@pytest.mark.parametrize(("seconds", "words"), [(0.44, "0.4 s"), (12.2, "12 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_durations_in_words(seconds, words):
    assert console.duration(seconds) == words
