"""Stores are merged by copying folders; runs that finished under different registered plans are refused."""

import shutil

import pytest

from tunescope.errors import PrerequisiteError
from tunescope.run.data_folder import DataFolder
from tunescope.run.registration import FILE, design_lines, kept_registration, refuse_mixed_plans, register
from tunescope.run.selection import Selection
from tunescope.study.plan import build_plan

FIRST, SECOND = "train/rte/full/final/seed-42", "train/sst2/full/final/seed-42"


def two_stores(bench, tmp_path, **changed):
    """One final run in each of two stores, the second with a changed analysis; then the second is copied over the first."""
    other = type(bench)(tmp_path / "other")
    bench.run(Selection(only=(FIRST,)))
    other.run(Selection(only=(SECOND,)), analysis=bench.study().analysis.model_copy(update=changed))
    shutil.copytree(other.store.root, bench.store.root, dirs_exist_ok=True)
    return kept_registration(other.store)["sha256"]


def test_merged_stores_of_one_plan_are_one_study(bench, tmp_path):
    two_stores(bench, tmp_path)
    refuse_mixed_plans(bench.store)
    assert "unchanged since" in design_lines(build_plan(bench.study()), bench.store, DataFolder(bench.data_dir), None)[0]


def test_merged_stores_of_different_plans_are_refused(bench, tmp_path):
    second = two_stores(bench, tmp_path, quality_retained=0.9)
    for kept in (FILE, "no registration at all"):
        with pytest.raises(PrerequisiteError, match="2 different registered plans") as refused:
            refuse_mixed_plans(bench.store)
        text = str(refused.value)
        assert FIRST in text and (kept != FILE or f"{second[:16]}: {FILE} and 1 more" in text)
        (bench.store.root / FILE).unlink(missing_ok=True)
    with pytest.raises(PrerequisiteError, match="run them again"):
        design_lines(build_plan(bench.study()), bench.store, DataFolder(bench.data_dir), None)


def test_a_forged_registration_does_not_fit_the_runs(bench):
    """Whoever changes a margin and its hash alike is found out by what the runs recorded."""
    bench.run(Selection(only=(FIRST,)))
    (bench.store.root / FILE).unlink()
    shutil.move(bench.store.root / "steps", bench.root / "aside")
    register(bench.study(analysis=bench.study().analysis.model_copy(update={"drift_reduction": 0.1})), bench.store, FIRST)
    shutil.move(bench.root / "aside", bench.store.root / "steps")
    with pytest.raises(PrerequisiteError, match="different registered plans"):
        refuse_mixed_plans(bench.store)
