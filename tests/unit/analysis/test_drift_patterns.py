"""Drift tables against values computed here from the simulated runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from simulated_store import FULL_DRIFT, LAYERS, small_study, write_store
from tunescope.analysis.drift_patterns import _chance_z, _stratified_limits
from tunescope.analysis.frames import Frames, collect
from tunescope.analysis.statistical_analysis import analyse
from tunescope.study.schema import AnalysisSpec

SEEDS = (42, 1337, 2024)
STUDY = small_study(analysis=AnalysisSpec(bootstrap_draws=20, permutation_draws=99))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Frames, dict[str, pd.DataFrame]]:
    root: Path = tmp_path_factory.mktemp("drift")
    write_store(root, STUDY, rng=np.random.default_rng(3), n_examples=40)
    frames = collect(root, STUDY)
    tables = analyse(frames, STUDY, now="2025-01-01T00:00:00+00:00").statistics
    return frames, {name: pd.DataFrame(t["rows"], columns=t["columns"]) for name, t in tables.items() if name.startswith("drift_")}


def _scalars(frames: Frames, task: str, method: str) -> np.ndarray:
    m = frames.metrics
    rows = m[(m.task == task) & (m.method == method) & (m.role == "final") & (m.name == "drift")]
    return rows.set_index("seed").value.reindex(list(SEEDS)).to_numpy()


def test_pairs_are_those_of_the_runs(found) -> None:
    frames, tables = found
    row = tables["drift_paired"].set_index("task").loc["sst2"]
    lora, full = _scalars(frames, "sst2", "lora"), _scalars(frames, "sst2", "full")
    assert row["difference"] == pytest.approx((lora - full).mean())
    low, high = stats.t.interval(0.9, 2, loc=(lora - full).mean(), scale=stats.sem(lora - full))
    assert (row["90 % low"], row["90 % high"]) == (pytest.approx(low), pytest.approx(high))
    assert row["reduction"] == pytest.approx(1 - lora.mean() / full.mean())
    assert (row["p sign flip"], row["attainable p"], row["saturated"]) == (0.25, 0.25, "no")
    runs = tables["drift_runs"]
    assert list(runs[runs.task == "sst2"]["lora"]) == pytest.approx(lora.tolist())


def test_over_all_tasks_runs_or_whole_seeds_are_flipped(found) -> None:
    rows = found[1]["drift_paired"].set_index("task")
    assert rows.loc["4 of 4 tasks, each run flipped", "pairs"] == 12
    assert rows.loc["4 of 4 tasks, each run flipped", "p sign flip"] == pytest.approx(2 / 2**12)
    assert rows.loc["4 of 4 tasks, each seed flipped", "p sign flip"] == 0.25
    assert rows.loc["4 of 4 tasks, each seed flipped", "difference"] == pytest.approx(rows.loc[list(FULL_DRIFT), "difference"].mean())


def test_whole_seeds_are_described_by_the_runs_that_are_flipped(found) -> None:
    """With a run lost on one task, its seed leaves that line on every task: means and reduction too."""
    m = found[0].metrics.copy()
    m.loc[m.step_id.str.endswith("full/final/seed-42") & (m.name == "drift"), "value"] *= 3
    frames = replace(found[0], metrics=m).without(["train/rte/lora/final/seed-42"])
    table = analyse(frames, STUDY, now="2025-01-01T00:00:00+00:00").statistics["drift_paired"]
    row = pd.DataFrame(table["rows"], columns=table["columns"]).set_index("task").loc["4 of 4 tasks, each seed flipped"]
    lora, full = (np.mean([_scalars(frames, t, method)[1:] for t in FULL_DRIFT]) for method in ("lora", "full"))
    assert (row["pairs"], row["lora mean"], row["full mean"]) == (2, pytest.approx(lora), pytest.approx(full))
    assert (row["difference"], row["reduction"]) == (pytest.approx(lora - full), pytest.approx(1 - lora / full))


def test_stratified_limits_are_the_t_limits_of_one_group() -> None:
    values = np.array([0.1, 0.4, 0.2, 0.5])
    assert _stratified_limits([values]) == pytest.approx(stats.t.interval(0.9, 3, loc=values.mean(), scale=stats.sem(values)))
    assert _stratified_limits([values, np.array([1.0])]) == (None, None)


def test_layers_depth_and_tasks(found) -> None:
    frames, tables = found
    layers = tables["drift_layers"]
    mine = layers[layers.task == "rte"]
    assert list(mine.layer) == list(range(1, LAYERS + 1))
    assert mine.difference.mean() == pytest.approx((_scalars(frames, "rte", "lora") - _scalars(frames, "rte", "full")).mean())
    assert ((mine["95 % low"] < mine.difference) & (mine.difference < mine["95 % high"])).all() and (mine["p max"] == 0.25).all()
    assert (mine["attainable p"] == 2 / 2**3).all()  # three seeds, two sides
    depth = tables["drift_depth"].set_index(["task", "method"])
    assert depth["late / early"].to_numpy() == pytest.approx(LAYERS) and set(depth["critical layers"]) == {"4"}
    across = tables["drift_cross_task"]
    assert len(across) == 12 and across["Spearman rho"].to_numpy() == pytest.approx(1.0)


def test_equal_quality_reads_no_more_drift_than_the_scored_checkpoint_gives(found) -> None:
    rows = found[1]["drift_equal_quality"]
    seeds = rows[rows.seed != "mean"]
    assert len(seeds) == 12 and (seeds["full step"] <= 60).all() and (seeds["lora step"] <= 60).all()
    by_task = seeds.groupby("task")["lora drift"].mean()
    means = rows[rows.seed == "mean"].set_index("task")["lora drift"]
    assert means.to_dict() == pytest.approx(by_task.to_dict())


def test_measures_agree_with_each_other(found) -> None:
    rows = found[1]["drift_measures"].set_index(["task", "measure"])
    for task in FULL_DRIFT:
        total = rows.loc[(task, "cka_debiased"), "full mean"] + rows.loc[(task, "cka_drift_debiased"), "full mean"]
        assert total == pytest.approx(1)
    assert len(found[1]["drift_blocks"]) == 20


def test_chance_z_is_counted_in_each_layer_of_each_run() -> None:
    values = {"cka_plain": (0.9, 0.8, 0.7), "cka_chance_mean": (0.5, 0.6, 0.7), "cka_chance_sd": (0.1, 0.05, 0.0)}
    rows = [
        {"task": "sst2", "method": "full", "seed": 42, "layer": k, "measure": name, "value": v[k]}
        for name, v in values.items()
        for k in range(3)
    ]
    found = _chance_z(pd.DataFrame(rows)).set_index("layer")
    assert found.value.to_dict() == pytest.approx({0: 4, 1: 4})  # where chance has no spread there is no z
    assert set(found.measure) == {"cka_chance_z"}
    assert _chance_z(pd.DataFrame(rows[:3])).empty
