"""The loop, the states and the store, over fake steps."""

import json
import os
import signal
from dataclasses import asdict

import pytest

from fake_steps import Inline
from simulated_store import small_study
from tunescope import steps
from tunescope.data import manifest
from tunescope.data.prepare import prepare
from tunescope.errors import PrerequisiteError
from tunescope.run.driver import Policy
from tunescope.run.lease import Lease, Process
from tunescope.run.selection import Selection
from tunescope.study.plan import build_plan
from tunescope.study.schema import DataSpec, DriftSpec, Limits, ServingSpec, TaskSpec

TRAIN = "train/sst2/lora/final/seed-42"


def status_of(states, step_id):
    return states[step_id].status


def test_every_step_runs_once_and_needs_come_first(bench):
    states = bench.run()
    assert {s.status for s in states.values()} == {"done"}
    order = bench.calls()
    assert sorted(order) == sorted(states)
    for i, step_id in enumerate(order):
        step = states[step_id].step
        assert {*step.needs, *step.selects_from} <= set(order[:i])


def test_a_second_run_starts_nothing(bench):
    first = bench.run()
    bench.calls()
    second = bench.run()
    assert bench.calls() == []
    assert [s.digest for s in first.values()] == [s.digest for s in second.values()]


def test_the_chosen_setting_reaches_the_final_runs(bench):
    states = bench.run()
    inputs = states[TRAIN].finished.inputs
    assert inputs["learning_rate"] == 1e-2  # the fakes' selection loss is 1 - rate
    assert inputs["batch_size"] == 16


def test_deleted_result_reruns_alone_when_its_content_comes_back(bench):
    bench.run()
    bench.calls()
    (bench.store.folder(TRAIN) / "result.json").unlink()
    assert status_of(bench.states(), f"{TRAIN}") == "todo"
    assert "its result is kept" in bench.states()["drift/sst2"].why
    bench.run()
    assert bench.calls() == [TRAIN]


def test_deleted_result_with_other_content_reruns_its_dependents_too(bench):
    bench.run()
    bench.calls()
    (bench.store.folder(TRAIN) / "result.json").unlink()
    bench.control(salt={TRAIN: "other machine"})
    bench.run()
    assert sorted(bench.calls()) == ["correlate", "drift/sst2", TRAIN]
    assert "upstream.train/sst2/lora/final/seed-42" in bench.notes[-1]


def test_a_changed_input_is_stale_with_its_differences_and_moves_to_the_attic(bench):
    bench.run()
    bench.calls()
    old = bench.store.record("base-probe/sst2")
    drift = small_study().drift.model_copy(update={"every": 50})
    study = {"drift": drift}
    state = bench.states(**study)["base-probe/sst2"]
    assert (state.status, state.changes) == ("stale", ("drift.every 100 → 50",))
    bench.run(Selection(only=("base-probe/sst2",)), **study)
    assert bench.calls() == ["base-probe/sst2"]
    attic = bench.store.attic() / old.fingerprint[:16] / "base-probe/sst2"
    assert json.loads((attic / "result.json").read_text())["fingerprint"] == old.fingerprint


def test_widening_the_grid_reruns_final_runs_only_when_the_choice_moves(bench):
    bench.run()
    bench.calls()
    methods = small_study().methods
    wider = {
        "full": methods["full"].model_copy(update={"learning_rates": (1e-4, 5e-4, 1e-3)}),
        "lora": methods["lora"].model_copy(update={"learning_rates": (3e-3, 5e-3, 1e-2)}),
    }
    bench.run(methods=wider)
    started = bench.calls()
    assert not [i for i in started if "/final/" in i]
    assert len([i for i in started if "/search-" in i]) == 4


@pytest.mark.parametrize("damage", ["cut", "edit", "missing", "size"])
def test_a_damaged_result_is_not_done_and_says_why(bench, damage):
    bench.run()
    bench.calls()
    folder = bench.store.folder(TRAIN)
    text = (folder / "result.json").read_text()
    if damage == "cut":
        (folder / "result.json").write_text(text[: len(text) // 2])
    elif damage == "edit":
        (folder / "result.json").write_text(text.replace('"value": 0.99', '"value": 0.5'))
    elif damage == "missing":
        (folder / "out.txt").unlink()
    else:
        (folder / "out.txt").write_text("short")
    state = bench.states()[TRAIN]
    expected = {"cut": "cut off", "edit": "digest does not match", "missing": "out.txt is missing", "size": "5 bytes"}
    assert state.status == "todo" and expected[damage] in state.why
    states = bench.run()
    assert bench.calls() == [TRAIN] and states[TRAIN].status == "done"


def test_a_failed_step_blocks_its_dependents_only(bench):
    bench.control(trouble={TRAIN: "user"})
    states = bench.run()
    assert status_of(states, TRAIN) == "failed" and "non-finite loss" in states[TRAIN].why
    assert {i for i, s in states.items() if s.status == "blocked"} == {"drift/sst2", "correlate"}
    assert all(s.status == "done" for i, s in states.items() if i not in (TRAIN, "drift/sst2", "correlate"))
    bench.calls()
    bench.control()
    bench.run()
    assert bench.calls() == []
    states = bench.run(policy=Policy(retry_failed=True))
    assert {s.status for s in states.values()} == {"done"}
    assert sorted(bench.calls()) == ["correlate", "drift/sst2", TRAIN]


def test_user_errors_are_not_retried_and_bugs_are(bench):
    bench.control(trouble={TRAIN: "user", "base-probe/rte": "bug", "baseline/rte": "once"})
    states = bench.run(policy=Policy(retries=2))
    started = bench.calls()
    assert [started.count(i) for i in (TRAIN, "base-probe/rte", "baseline/rte")] == [1, 3, 2]
    assert status_of(states, "baseline/rte") == "done"
    assert "ZeroDivisionError" in states["base-probe/rte"].why
    log = (bench.store.folder("base-probe/rte") / "log.txt").read_text()
    assert log.count("Traceback") == 3
    assert "Traceback" not in (bench.store.folder(TRAIN) / "log.txt").read_text()


def test_a_missing_prerequisite_blocks_and_is_tried_again_by_itself(bench):
    bench.control(trouble={"base-probe/rte": "prerequisite"})
    states = bench.run()
    assert status_of(states, "base-probe/rte") == "blocked" and "pip install" in states["base-probe/rte"].why
    bench.control()
    assert status_of(bench.run(), "drift/rte") == "done"


def test_fail_fast_starts_nothing_after_a_failure(bench):
    bench.control(trouble={"data/rte": "user"})
    bench.run(policy=Policy(fail_fast=True), executor=Inline(capacity=1))
    started = bench.calls()
    assert started[-1] == "data/rte" and len(started) <= 2


def test_a_second_signal_does_not_break_the_ending_of_workers(bench):
    ended = []
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a test before may have run the command line, which has one of its own

    class Slow(Inline):
        def poll(self, timeout_s):
            os.kill(os.getpid(), signal.SIGINT)

        def close(self):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            ended.append("all")

    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt):
        bench.run(executor=Slow())
    assert ended == ["all"] and [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before


def test_serving_runs_alone_and_last(bench):
    executor = Inline(capacity=4)
    bench.run(executor=executor, serving=ServingSpec(arms=("base", "full", "merged")))
    assert executor.beside["serve"] == set()
    assert not [i for i, others in executor.beside.items() if "serve" in others]
    assert bench.calls()[-1] == "serve"


def test_changed_data_are_an_error_and_never_prepared_again(bench):
    bench.run()
    bench.calls()
    (bench.data_dir / "sst2" / "rows.txt").write_text("tampered")
    (bench.data_dir / "rte" / "rows.txt").write_text("tampered too")
    with pytest.raises(PrerequisiteError) as error:
        bench.run()
    assert "sst2/rows.txt" in str(error.value) and "rte/rows.txt" in str(error.value)
    assert bench.calls() == []


def test_a_deleted_data_folder_is_prepared_again_and_nothing_else_runs(bench):
    import shutil

    bench.run()
    bench.calls()
    shutil.rmtree(bench.data_dir / "sst2")
    bench.run()
    assert bench.calls() == ["data/sst2"]


def test_data_prepared_otherwise_by_someone_else_are_noticed(bench):
    bench.run()
    bench.calls()
    (bench.data_dir / "sst2" / "rows.txt").write_text("another preparation")
    manifest.write_entry(bench.data_dir, "sst2", {"source": "fake", "files": manifest.checksums(bench.data_dir / "sst2", bench.data_dir)})
    bench.run()
    assert bench.calls() == ["data/sst2"]
    assert any("another preparation" in note for note in bench.notes)


def test_studies_that_prepare_one_folder_otherwise_cost_each_other_a_preparation_and_nothing_else(bench):
    """Whether a study's first run prepared the data or found them prepared by `tunescope data`, as here."""
    steps.FUNCTIONS["data"] = "tunescope.data.prepare:run_data"
    sample, limits = DataSpec(source="sample"), [Limits(train=n, selection=16, test=16) for n in (32, 48)]
    mine = {"tasks": {"rte": TaskSpec(max_length=512, limits=limits[0])}, "data": sample, "drift": DriftSpec(probe_examples=24)}
    prepare("rte", sample, limits[0], 24, bench.data_dir)
    first = bench.run(**mine)
    prepare("rte", sample, limits[1], 24, bench.data_dir)
    bench.calls()
    again = bench.run(**mine)
    assert bench.calls() == [] and any("another preparation" in note for note in bench.notes)
    assert manifest.read_entry(bench.data_dir, "rte")["parts"]["train"] == 32
    assert {i: (s.status, s.digest) for i, s in again.items()} == {i: ("done", s.digest) for i, s in first.items()}


def test_a_dead_lease_is_taken_over_and_a_live_one_is_seen(bench):
    bench.run()
    folder = bench.store.folder(TRAIN)
    (folder / "result.json").unlink()
    me = Process.current()
    live = Lease(**asdict(me), since=0, beat=0, done=3, total=7, text="step 3")
    (folder / "lease.json").write_text(json.dumps(asdict(live)))
    assert status_of(bench.states(), TRAIN) == "running"
    dead = Lease(host=me.host, pid=me.pid, started=me.started - 1000, since=0, beat=0)
    (folder / "lease.json").write_text(json.dumps(asdict(dead)))
    assert status_of(bench.states(), TRAIN) == "todo"
    assert status_of(bench.run(), TRAIN) == "done"


def test_a_phase_does_not_run_needs_of_another_phase(bench):
    states = bench.run(Selection(phase="2a"))
    assert {i.split("/")[0] for i in bench.calls()} == {"data"}
    assert status_of(states, "correlate") == "todo" and "waits for" in states["correlate"].why


def test_kind_and_seed_bring_their_needs_along(bench):
    bench.run(Selection(kinds=("train",), tasks=("rte",), methods=("lora",), seeds=(1337,)))
    searches = list(build_plan(bench.study())["train/rte/lora/final/seed-1337"].selects_from)
    assert sorted(bench.calls()) == sorted(["data/rte", "train/rte/lora/final/seed-1337", *searches])


def test_data_prepared_otherwise_during_a_run_give_no_number(bench):
    """Two studies with one data folder: the other one's bytes match their manifest, so only the digest tells."""

    class Meddler(Inline):
        def submit(self, step_id, kind, folder):
            if step_id == "baseline/sst2":
                (bench.data_dir / "sst2" / "rows.txt").write_text("another preparation")
                files = manifest.checksums(bench.data_dir / "sst2", bench.data_dir)
                manifest.write_entry(bench.data_dir, "sst2", {"source": "fake", "files": files})
            super().submit(step_id, kind, folder)

    states = bench.run(executor=Meddler())
    assert status_of(states, "baseline/rte") == "done"
    assert status_of(states, "baseline/sst2") == "blocked" and "execution.paths.data" in states["baseline/sst2"].why
    assert status_of(bench.run(), "baseline/sst2") == "done"
