"""Spreads of a pilot: what they promise is what simulation finds, and a pilot that learned nothing is refused."""

import numpy as np
import pandas as pd
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis.frames import collect
from tunescope.analysis.inference import crossed_t
from tunescope.analysis.pilot import cautious, measured
from tunescope.errors import PrerequisiteError
from tunescope.run.data_folder import DataFolder
from tunescope.run.registration import design_lines
from tunescope.run.reporting import write_study
from tunescope.run.store import Store
from tunescope.study.plan import build_plan
from tunescope.study.power import Components, planned_power, power
from tunescope.study.schema import StudyFile, TaskSpec

STUDY = small_study(tasks={t: TaskSpec(max_length=512) for t in ("mrpc", "sst2")}, serving=None)


@pytest.fixture
def pilot(tmp_path):
    write_store(tmp_path, STUDY, quality_gap=0.1, rng=np.random.default_rng(3))
    write_study(StudyFile(study=STUDY), build_plan(STUDY), Store(tmp_path))
    return tmp_path


def test_a_pilot_gives_spreads_at_the_margin_of_the_new_study(pilot):
    found = measured(collect(pilot, STUDY), STUDY, STUDY)
    assert set(found.tasks) == {"mrpc", "sst2"} and found.refused == {}
    sst2 = found.tasks["sst2"]
    assert sst2.seeds == 3 and sst2.score == pytest.approx(0.92, abs=0.02) and sst2.cautious.seeds >= sst2.components.seeds
    rows = {(r.task, r.seeds): r for r in planned_power(STUDY, {"sst2": 800}, found.tasks)}
    assert rows["sst2", 5].high == pytest.approx(power(sst2.components, 0.03 * sst2.score, 5, 800))
    assert rows["sst2", 5].low == pytest.approx(power(sst2.cautious, 0.03 * sst2.score, 5, 800))


def test_a_pilot_that_answers_a_constant_is_refused_and_the_assumed_stay(pilot):
    for path in (pilot / "steps").glob("train/mrpc/*/final/*/predictions.parquet"):
        frame = pd.read_parquet(path).assign(prediction="equivalent")
        frame.assign(correct=(frame.label == frame.prediction).astype(float)).to_parquet(path)
    lines = design_lines(build_plan(small_study(data={"source": "hub"})), Store(pilot / "new"), DataFolder(pilot / "data"), pilot)
    row = {line.split()[0]: line for line in lines[2:]}
    assert "pilot, 3 seeds" in row["sst2"] and row["rte"].endswith("assumed")
    assert any(line.startswith("  mrpc") and line.endswith("assumed") for line in lines)
    assert any("mrpc: the pilot is not used: full (0.550) does not beat the majority baseline (0.550)" in line for line in lines)


def test_a_pilot_without_the_registered_methods_says_nothing(pilot):
    study = STUDY.model_copy(update={"analysis": STUDY.analysis.model_copy(update={"candidate_method": "dora"})})
    with pytest.raises(PrerequisiteError, match="no two seeds of both dora and full"):
        design_lines(build_plan(study), Store(pilot / "new"), DataFolder(pilot / "data"), pilot)


def test_the_cautious_spread_is_below_the_true_one_in_a_fifth_of_pilots():
    rng, below = np.random.default_rng(6), 0
    for _ in range(1000):
        contrast = 0.03 * rng.standard_normal((3, 1)) + 0.1 * rng.standard_normal((1, 80)) + 0.1 * rng.standard_normal((3, 80))
        below += cautious(contrast).seeds < 0.03
    assert below / 1000 == pytest.approx(0.2, abs=0.04)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("sd", [Components(0.045, 0.26, 0.44), Components(0.012, 0.25, 0.5), Components(0.002, 0.2, 0.1)])
def test_power_is_what_simulated_studies_reach(sd, seeds):
    """The first is the quickstart's SST-2 as a pilot; the others are like RTE and SST-2 of the assumed table."""
    rng, draws, n, difference = np.random.default_rng(4), 2000, 300, 0.025
    hits = 0
    for _ in range(draws):
        parts = sd.seeds * rng.standard_normal((seeds, 1)) + sd.examples * rng.standard_normal((1, n))
        hits += crossed_t(difference + parts + sd.residual * rng.standard_normal((seeds, n))).p <= 0.05
    assert hits / draws == pytest.approx(power(sd, difference, seeds, n), abs=0.045)
