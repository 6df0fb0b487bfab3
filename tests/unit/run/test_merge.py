"""Stores of several hosts brought together: everything that fits, nothing that contradicts."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.run.data_folder import DataFolder
from tunescope.run.files import read_json, write_json
from tunescope.run.merge import merge
from tunescope.run.registration import register
from tunescope.run.selection import Selection
from tunescope.run.session import Session
from tunescope.run.store import Store
from tunescope.study.plan import build_plan
from tunescope.study.registration import registered_plan
from tunescope.study.schema import StudyFile


@pytest.fixture
def hosts(bench, tmp_path):
    """Two hosts that each ran one task, vm2 a little later."""
    for name, task in (("vm1", "sst2"), ("vm2", "rte")):
        bench.root = tmp_path / name
        bench.run(Selection(kinds=("baseline", "base-probe", "train"), tasks=(task,)))
    bench.root = tmp_path / "vm1"
    return tmp_path


def bring(bench, *folders: Path, say=lambda text: None, **changes):
    study = bench.study(**changes)
    file = StudyFile.model_validate({"study": study.model_dump(mode="json"), "execution": {}})
    return merge(Session(file, build_plan(study), bench.store, DataFolder(bench.data_dir)), folders, say)


def digests(root: Path) -> dict[str, str]:
    store, steps = Store(root / "runs"), root / "runs" / "steps"
    found = {i: store.result(i)[0] for i in (str(p.parent.relative_to(steps)) for p in steps.rglob("result.json"))}
    return {i: f.result["digest"] for i, f in found.items() if f}


def test_two_hosts_give_what_one_gives_and_a_second_merge_copies_nothing(bench, hosts):
    done = bring(bench, hosts / "vm2" / "runs")
    assert len(done.copied) == len(digests(hosts / "vm2")) and done.here == []
    assert bring(bench, hosts / "vm2" / "runs").copied == []
    assert not list(bench.store.root.glob(".merging*"))
    bench.calls()
    bench.run()
    started = [i for i in bench.calls() if not i.startswith("data/")]
    assert sorted(started) == ["correlate", "drift/rte", "drift/sst2"], "a merged step ran again"
    bench.root = hosts / "alone"
    bench.run()
    assert digests(hosts / "alone") == digests(hosts / "vm1")


def test_the_registered_plan_is_the_earliest_and_must_be_the_same(bench, hosts):
    mine, other = hosts / "vm1/runs/registration.json", hosts / "vm2/runs/registration.json"
    kept = read_json(other)
    assert kept["sha256"] == read_json(mine)["sha256"]
    write_json(other, {**kept, "registered": "2020-01-01T00:00:00+00:00"})
    bring(bench, hosts / "vm2/runs")
    assert read_json(mine)["registered"].startswith("2020")
    write_json(other, {**kept, "plan": {**kept["plan"], "alpha": 0.1}})
    with pytest.raises(StudyError, match="unreadable or was edited"):
        bring(bench, hosts / "vm2/runs")


def test_hosts_that_registered_different_plans_are_refused_before_anything_is_copied(bench, hosts, tmp_path):
    bench.root = tmp_path / "vm3"
    bench.run(Selection(kinds=("train",), tasks=("rte",)), seeds=(42, 7))
    bench.root = hosts / "vm1"
    before = digests(hosts / "vm1")
    with pytest.raises(StudyError, match=r"another plan was registered there .*seeds"):
        bring(bench, tmp_path / "vm3/runs")
    assert digests(hosts / "vm1") == before


@pytest.mark.parametrize("recorded", [True, False], ids=["registered", "only recorded by the runs"])
def test_a_plan_that_a_driver_fixes_here_while_merging_keeps_final_runs_of_another_out(bench, hosts, recorded):
    """The driver has no finished final run, so it may fix its plan anew: also after merge has looked."""
    if not recorded:
        (hosts / "vm2/runs/registration.json").unlink()
    bench.root = hosts / "vm3"
    bench.run(Selection(only=("baseline/rte",)))
    other = bench.study(seeds=(42, 7))

    def fix_another(text: str) -> None:
        assert text.startswith("merging")
        register(other, bench.store, "train/rte/lora/final/seed-7")

    with pytest.raises(StudyError, match=r"different registered plans|another plan was registered there"):
        bring(bench, hosts / "vm2/runs", say=fix_another)
    assert not any("/final/" in i for i in digests(hosts / "vm3"))
    assert read_json(hosts / "vm3/runs/registration.json")["plan"] == registered_plan(other)
    assert not list(bench.store.root.glob(".merging*"))
    (hosts / "vm3/runs/registration.json").unlink()
    bring(bench, hosts / "vm2/runs", say=lambda text: register(bench.study(), bench.store, "train/rte/lora/final/seed-7"))
    assert any("/final/" in i for i in digests(hosts / "vm3"))


def test_what_is_damaged_or_contradicts_is_named_with_its_folder(bench, hosts):
    folder = hosts / "vm2/runs/steps/base-probe/rte"
    text = (folder / "out.txt").read_text()
    (folder / "out.txt").write_text("0" * len(text))
    with pytest.raises(StudyError, match=r"base-probe/rte: out.txt is not what the step wrote.*copy it again"):
        bring(bench, hosts / "vm2/runs")
    (folder / "out.txt").write_text(text[:-1])
    with pytest.raises(StudyError, match="63 bytes, 64 were recorded"):
        bring(bench, hosts / "vm2/runs")
    (folder / "out.txt").write_text(text)
    other = hosts / "other"
    bench.root = other
    bench.control(salt={"base-probe/sst2": "another machine"})
    bench.run(Selection(only=("base-probe/sst2",)))
    bench.root = hosts / "vm1"
    with pytest.raises(StudyError, match="base-probe/sst2: another result than"):
        bring(bench, hosts / "vm2/runs", other / "runs")
    assert not any(i.endswith("/rte") for i in digests(hosts / "vm1"))


def test_models_at_two_commits_are_refused_and_locks_are_joined(bench, hosts):
    mine, other = hosts / "vm1/runs/model-lock.json", hosts / "vm2/runs/model-lock.json"
    write_json(other, {"a/b@default": "1" * 40})
    bring(bench, hosts / "vm2/runs")
    assert json.loads(mine.read_text()) == {"a/b@default": "1" * 40}
    write_json(mine, {"a/b@default": "2" * 40})
    with pytest.raises(StudyError, match="a/b@default is at 1111"):
        bring(bench, hosts / "vm2/runs")


def test_a_half_done_step_here_gives_way_and_a_running_one_does_not(bench, hosts):
    from tunescope.run.lease import hold

    half, held = bench.store.folder("baseline/rte"), bench.store.folder("base-probe/rte")
    for folder in (half, held):
        folder.mkdir(parents=True)
        (folder / "log.txt").write_text("half")
    with hold(held, None, lambda: None):
        done = bring(bench, hosts / "vm2/runs")
    assert "baseline/rte" in done.copied and (half / "result.json").exists() and "half" not in (half / "log.txt").read_text()
    assert "base-probe/rte" in done.here and not (held / "result.json").exists()


def test_stale_results_are_left_out_and_named_and_give_way_to_those_that_fit(bench, hosts):
    """vm2 ran RTE with other steps between probes; then vm1 has such a result, and vm2 the one that fits."""
    changed = {"drift": bench.study().drift.model_copy(update={"every": 7})}
    notes: list[str] = []
    done = bring(bench, hosts / "vm2/runs", say=notes.append, **changed)
    trained = [i for i in digests(hosts / "vm2") if i.startswith("train/rte/")]
    assert trained and set(trained) <= set(done.stale) and not set(trained) & set(digests(hosts / "vm1"))
    assert "baseline/rte" in done.copied
    assert any(note.startswith("left out, stale: train/rte/lora/search-") and "drift.every 100 → 7" in note for note in notes)
    step = "base-probe/sst2"
    bench.root = hosts / "vm3"
    bench.run(Selection(only=(step,)), **changed)
    mine = hosts / "vm1/runs/steps" / step / "result.json"
    old, new = read_json(mine), read_json(hosts / "vm3/runs/steps" / step / "result.json")
    assert old["fingerprint"] != new["fingerprint"]
    bench.root = hosts / "vm1"
    assert step in bring(bench, hosts / "vm3/runs", **changed).copied
    assert read_json(mine) == new and len(list((hosts / "vm1/runs/attic").glob(f"*/{step}/result.json"))) == 1


def test_a_worker_that_has_only_just_come_keeps_its_folder(bench, hosts):
    """It holds the lock, but its first heartbeat is not written yet."""
    folder = bench.store.folder("baseline/rte")
    folder.mkdir(parents=True)
    with FileLock(folder / "lease.lock"):
        done = bring(bench, hosts / "vm2/runs")
    assert "baseline/rte" in done.here and not (folder / "result.json").exists()
    assert "baseline/rte" in bring(bench, hosts / "vm2/runs").copied


def test_a_folder_without_a_store_says_what_to_name(bench, tmp_path):
    with pytest.raises(PrerequisiteError, match="name another host's runs/"):
        bring(bench, tmp_path)


def test_runs_that_finished_under_another_plan_are_refused_where_no_registration_is_left(bench, hosts, tmp_path):
    bench.root = tmp_path / "vm3"
    bench.run(Selection(kinds=("train",), tasks=("rte",)), seeds=(42, 7))
    (tmp_path / "vm3/runs/registration.json").unlink()
    bench.root = hosts / "vm1"
    before = digests(hosts / "vm1")
    with pytest.raises(StudyError, match="finished runs stand under different registered plans"):
        bring(bench, tmp_path / "vm3/runs")
    assert digests(hosts / "vm1") == before
