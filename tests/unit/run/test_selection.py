"""Which steps a command means."""

import pytest

from simulated_store import small_study
from tunescope.errors import StudyError
from tunescope.run.selection import Selection, select, step_named
from tunescope.study.plan import build_plan

PLACEMENT = {
    "vm1": {"train": ("mrpc", "sst2"), "drift": ("mrpc", "sst2")},
    "vm2": {"train": ("squad_v2", "rte"), "drift": ("squad_v2", "rte"), "serve": "all"},
    "vm3": {"baseline": "all", "base-probe": "all", "correlate": "all"},
}


@pytest.fixture(scope="module")
def plan():
    return build_plan(small_study(), PLACEMENT)


def test_no_filter_means_everything(plan):
    chosen = select(plan, Selection())
    assert chosen.named == chosen.run == chosen.needed == {s.id for s in plan.steps}


def test_machines_share_phase_1_without_overlap_but_data(plan):
    runs = [select(plan, Selection(phase="1", machine=vm)) for vm in ("vm1", "vm2", "vm3")]
    work = [{i for i in r.run if not i.startswith("data/")} for r in runs]
    assert set.union(*work) == {s.id for s in plan.steps if s.phase == "1" and s.kind != "data"}
    assert sum(map(len, work)) == len(set.union(*work))
    assert {i for i in runs[0].run if i.startswith("data/")} == {"data/mrpc", "data/sst2"}
    assert len([i for i in runs[2].run if i.startswith("data/")]) == 4


def test_phase_2a_runs_only_its_own_steps(plan):
    chosen = select(plan, Selection(phase="2a", machine="vm2"))
    assert {i for i in chosen.run if not i.startswith("data/")} == {"drift/squad_v2", "drift/rte", "serve"}
    assert "train/sst2/lora/final/seed-42" in chosen.needed - chosen.run


def test_only_crosses_slashes_and_brings_needs(plan):
    chosen = select(plan, Selection(only=("train/sst2/lora/final/*",)))
    assert chosen.named == {f"train/sst2/lora/final/seed-{s}" for s in (42, 1337, 2024)}
    assert "train/sst2/full/search-lr0.0005-bs16/seed-42" in chosen.run  # the batch size is chosen with both arms
    assert "data/sst2" in chosen.run and "data/mrpc" not in chosen.run


@pytest.mark.parametrize(
    ("selection", "reports"),
    [
        (Selection(), True), (Selection(phase="2b"), True), (Selection(phase="2b", machine="vm1"), True), (Selection(phase="1"), False),
        (Selection(machine="vm1"), False), (Selection(kinds=("train",)), False), (Selection(seeds=(42,)), False),
    ],
)  # fmt: skip
def test_when_a_report_follows(selection, reports):
    assert selection.reports is reports


def test_all_problems_are_named_at_once_with_near_names(plan):
    with pytest.raises(StudyError) as error:
        select(plan, Selection(kinds=("trian",), tasks=("sst",), seeds=(7,), phase="3", machine="vm9", only=("nothing*",)))
    text = "\n".join(error.value.problems)
    assert len(error.value.problems) == 6
    assert "did you mean 'train'?" in text and "did you mean 'sst2'?" in text and "42, 1337, 2024" in text


def test_filters_that_exclude_each_other(plan):
    with pytest.raises(StudyError, match="all of the given filters"):
        select(plan, Selection(kinds=("serve",), tasks=("sst2",)))


def test_a_step_by_name(plan):
    assert step_named(plan, "steps/serve/").id == "serve"
    with pytest.raises(StudyError, match="did you mean 'drift/sst2'"):
        step_named(plan, "drift/sst")
