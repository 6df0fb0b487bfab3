"""The correlate step and the frontier."""

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from simulated_store import small_study, write_store
from tunescope.analysis.correlate import correlations, run_correlate
from tunescope.analysis.frames import collect
from tunescope.analysis.frontier import RunPoint, _marked, frontier, frontier_note
from tunescope.records import StepContext
from tunescope.study.inputs import CorrelateInputs
from tunescope.study.plan import build_plan
from tunescope.study.schema import AnalysisSpec


class Silent:
    def log(self, values, step): ...
    def histogram(self, name, values, step): ...

    def rewind(self, step): ...
    def summary(self, values): ...


def point(method, rate, loss, drift, role="search", **more):
    return RunPoint(f"{method}-{rate}", "sst2", method, role, 42, rate, 16, loss, None, drift, **more)


@pytest.fixture
def context(tmp_path):
    study = small_study()
    write_store(tmp_path, study, n_examples=40, rng=np.random.default_rng(0))
    upstream = {s: tmp_path / "steps" / s for s in build_plan(study)["correlate"].needs}
    return StepContext(tmp_path / "steps/correlate", tmp_path, upstream, "cpu", Silent())


def test_correlate_reads_train_scalars_and_writes_one_document(context):
    result = run_correlate(CorrelateInputs(analysis=AnalysisSpec()), context)
    document = json.loads((context.folder / "correlations.json").read_text())
    assert result.content == ["correlations.json"] and result.outputs == {"runs": 40}
    assert len(document["frontier"]) == 40 and document["within"]["n"] == 24 and document["within"]["df"] == 19
    finals = [p for p in document["frontier"] if p["role"] == "final"]
    pooled = stats.pearsonr([p["quality"] for p in finals], [p["drift"] for p in finals])
    assert document["within_method"]["df"] == 24 - 8 - 1
    assert document["pooled"]["r"] == pytest.approx(pooled.statistic)
    assert all(p["selected"] for p in finals) and sum(p["selected"] for p in document["frontier"]) == 24 + 8


def test_the_same_points_come_from_frames(context):
    run_correlate(CorrelateInputs(analysis=AnalysisSpec()), context)
    study = small_study()
    document = json.loads((context.folder / "correlations.json").read_text())
    metrics = study.analysis.primary_metric
    rows = [p.row() for t in study.tasks for p in frontier(collect(context.folder.parents[1], study), t, metrics[t])]
    assert sorted(rows, key=lambda r: r["step"]) == sorted(document["frontier"], key=lambda r: r["step"])


def test_too_few_runs_give_null(context):
    few = dict(list(context.upstream.items())[:1])
    alone = StepContext(context.folder, context.data_dir, few, "cpu", Silent())
    result = run_correlate(CorrelateInputs(analysis=AnalysisSpec()), alone)
    assert json.loads((context.folder / "correlations.json").read_text())["within"] is None and result.metrics == []


def test_a_search_run_that_a_final_run_repeats_counts_once():
    rates = [1e-3, 3e-3, 1e-2, 3e-2]
    search = [point(m, r, 0.4 - 0.01 * i + 0.03 * (m == "lora"), 0.2 + 0.1 * i) for m in ("lora", "full") for i, r in enumerate(rates)]
    finals = [replace(search[i], step=f"final-{i}", role="final", quality=0.8) for i in (1, 6)]
    moved = replace(search[2], step="final-2", role="final", quality=0.8, drift=search[2].drift + 1e-6)  # not the same run, though nearly
    found = _marked([*search, *finals, moved])
    assert [p.step for p in found if p.repeated] == [search[1].step, search[6].step]
    row = correlations(found)["selection_loss_pooled"]
    distinct = [*search, moved]
    wanted = stats.pearsonr([p.selection_loss for p in distinct], [p.drift for p in distinct])
    assert row["n"] == 9 and row["r"] == pytest.approx(wanted.statistic) and row["p"] == pytest.approx(wanted.pvalue)


def test_the_frontier_speaks_up_when_it_disagrees():
    spec = AnalysisSpec()
    ours = [point("lora", 3e-3, 0.40, 0.30, selected=True), point("lora", 1e-2, 0.45, 0.60)]
    theirs = [point("full", 5e-4, 0.38, 0.20), point("full", 1e-3, 0.37, 0.55, selected=True)]
    notes = frontier_note([*ours, *theirs], spec)
    assert "ranges from 0.55 to 3.00" in notes[0] and "depends on the rates" in notes[0]
    assert "full at 0.0005" in notes[1] and "less drift (0.200)" in notes[1]
    assert frontier_note(ours, spec) == []
