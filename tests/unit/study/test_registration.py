"""The registered plan: what is in it, how a change is found, and power before the runs."""

import json

import pytest
from scipy import stats

from simulated_store import small_study
from tunescope.run.registration import kept_registration, register
from tunescope.run.store import Store
from tunescope.study.load import load_study
from tunescope.study.power import Components, planned_power, power, sizes_of_tests, t_power
from tunescope.study.registration import FILE, check_plan, registration

STUDY = small_study()
KEPT = registration(STUDY, "2026-01-01T00:00:00+00:00", "train/x")


def analysis(**changes):
    return STUDY.model_copy(update={"analysis": STUDY.analysis.model_copy(update=changes)})


def test_an_unchanged_plan_is_unchanged_and_its_hash_is_stable():
    check = check_plan(STUDY, json.loads(json.dumps(KEPT)))
    assert (check.changes, check.added_seeds, check.sha256) == ({}, (), KEPT["sha256"])
    assert "unchanged since" in next(iter(check.lines()))
    title = STUDY.model_copy(update={"title": "another"})
    assert check_plan(title, KEPT).sha256 == KEPT["sha256"]


def test_a_changed_margin_concerns_its_own_dimension_and_the_hypothesis():
    check = check_plan(analysis(overhead_limit=0.5), KEPT)
    assert check.concerning("overhead") == check.concerning("hypothesis") == ["overhead.limit 0.3 → 0.5"]
    assert check.concerning("quality") == check.concerning("drift") == []


def test_added_seeds_are_named_and_lost_ones_are_a_change():
    more = STUDY.model_copy(update={"seeds": (*STUDY.seeds, 7)})
    assert check_plan(more, KEPT).added_seeds == (7,) and check_plan(more, KEPT).changes == {}
    less = STUDY.model_copy(update={"seeds": STUDY.seeds[:2]})
    assert "2024" in check_plan(less, KEPT).concerning("quality")[0]


def test_an_edited_registration_is_found():
    edited = json.loads(json.dumps(KEPT))
    edited["plan"]["quality"]["retained"] = 0.5
    assert check_plan(STUDY, edited).damaged and check_plan(STUDY, {}).damaged and not check_plan(STUDY, None).damaged


def test_the_plan_is_fixed_once_a_final_run_has_a_result(tmp_path):
    store = Store(tmp_path)
    register(STUDY, store, "train/a")
    register(analysis(overhead_limit=0.5), store, "train/b")
    assert kept_registration(store)["plan"]["overhead"]["limit"] == 0.5, "nothing was looked at: the plan may still change"
    result = tmp_path / "attic/abc/train/rte/lora/final/seed-42/result.json"
    result.parent.mkdir(parents=True)
    result.write_text("{}")
    register(STUDY, store, "train/c")
    assert kept_registration(store)["plan"]["overhead"]["limit"] == 0.5
    (tmp_path / FILE).unlink()
    register(STUDY, store, "train/d")
    assert kept_registration(store) is None, "no registration is made up after the fact"


@pytest.mark.parametrize("df", [1, 1.7, 2, 4, 10.5, 300, 2e4])
@pytest.mark.parametrize("shift", [0.3, 1, 2.5, 4])
def test_power_of_the_t_test_is_scipys_noncentral_t(df, shift):
    assert t_power(shift, df) == pytest.approx(stats.nct.sf(stats.t.ppf(0.95, df), df, shift), abs=2e-6)


def test_planned_power_is_the_table_of_the_plan():
    """specs/statistics.md, power to print before the runs; the ranges stand there with two digits."""
    study = load_study("lora_vs_full").study
    rows = {(r.task, r.seeds): (r.low, r.high) for r in planned_power(study, sizes_of_tests(study, {}))}
    table = {
        "rte": {3: (0.19, 0.27), 5: (0.25, 0.32), 10: (0.31, 0.36)},
        "mrpc": {3: (0.53, 0.88), 5: (0.78, 0.97), 10: (0.94, 0.99)},
        "squad_v2": {3: (0.71, 1.0), 5: (0.96, 1.0), 10: (1.0, 1.0)},
    }
    for task, seeds in table.items():
        for n, limits in seeds.items():
            assert rows[task, n] == pytest.approx(limits, abs=0.02)
    assert min(rows["sst2", n][0] for n in (3, 5, 10)) >= 0.965
    dev = {(r.seeds): (r.low, r.high) for r in planned_power(study, {"mrpc": 408})}
    for n, limits in {3: (0.40, 0.53), 5: (0.53, 0.62), 10: (0.64, 0.69)}.items():
        assert dev[n] == pytest.approx(limits, abs=0.02)


def test_power_at_no_difference_is_alpha():
    assert power(Components(0.01, 0.2, 0.3), 0.0, 3, 200) == pytest.approx(0.05, abs=1e-6)
