"""Planted effects come back as the planted verdicts, and what is missing makes its claims inconclusive and is named."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis.frames import collect
from tunescope.analysis.payloads import baseline_results, deployment_results, drift_results, final_report_json
from tunescope.analysis.statistical_analysis import analyse
from tunescope.analysis.verdicts import said
from tunescope.study.registration import FILE, registration
from tunescope.study.schema import AdapterSpec, MethodSpec, ServingSpec, TaskSpec

NOW = "2026-01-01T00:00:00+00:00"
STUDY = small_study()


def findings_of(root, study=STUDY, missing=None):
    return analyse(collect(root, study), study, missing, now=NOW)


def simulated(tmp_path_factory, name, study=STUDY, **planted):
    root = tmp_path_factory.mktemp(name)
    write_store(root, study, rng=np.random.default_rng(5), **planted)
    return root


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return simulated(tmp_path_factory, "good", quality_gap=0.0, n_examples=1000, drift_ratio=0.5, overhead=0.1)


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    return simulated(tmp_path_factory, "bad", quality_gap=0.10, n_examples=1000, drift_ratio=1.1, overhead=0.6)


@pytest.fixture(scope="module")
def found_good(good):
    return findings_of(good)


@pytest.fixture(scope="module")
def found_bad(bad):
    return findings_of(bad)


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "copy")


def verdicts(findings):
    return {c.id: c.verdict for c in findings.claims}


def claim(findings, name):
    return next(c for c in findings.claims if c.id == name)


def kinds(claim):
    return [reason.kind for reason in claim.reasons]


def numbers(value):
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from numbers(inner)
    elif isinstance(value, float):
        yield value


def test_planted_benefits_are_supported(found_good):
    found = found_good
    assert set(verdicts(found).values()) == {"supported"} and len(found.claims) == 12
    assert claim(found, "quality/sst2").estimate == pytest.approx(1.0, abs=0.01)
    assert claim(found, "drift/sst2").estimate == pytest.approx(0.5, abs=0.05)
    assert claim(found, "overhead").estimate == pytest.approx(0.1, abs=0.03)
    low, high = claim(found, "overhead").interval
    assert low < 0.1 < high
    assert found.complete and found.steps_done == found.steps_planned == 58
    assert [r.text for r in found.red_flags if "edge of its grid" not in r.text] == []


def test_planted_harm_is_contradicted(found_bad):
    found = found_bad
    assert verdicts(found)["hypothesis"] == "contradicted"
    assert verdicts(found)["quality/all"] == verdicts(found)["drift/all"] == verdicts(found)["overhead"] == "contradicted"
    assert len(found.disagreements) == 40 and all(len(set(d["predictions"].values())) == 2 for d in found.disagreements)
    assert "on at least one task lora does not keep 97 %" in found.answer[0], "some task is not every task"
    assert "on at least one task lora does not drift 20 % less" in found.answer[1]
    assert "-" in found.answer[1] and "contradicted" in found.answer[2]


def test_overhead_alone_carries_the_or(tmp_path_factory):
    root = simulated(tmp_path_factory, "or", quality_gap=0.0, n_examples=1000, drift_ratio=1.0, overhead=0.1)
    found = verdicts(findings_of(root))
    assert (found["quality/all"], found["overhead"], found["hypothesis"]) == ("supported", "supported", "supported")
    assert found["drift/all"] != "supported"


def test_an_effect_at_the_margin_is_not_decided(tmp_path_factory):
    root = simulated(tmp_path_factory, "margin", quality_gap=0.03, n_examples=200, drift_ratio=0.8, overhead=0.3)
    found = verdicts(findings_of(root))
    assert found["hypothesis"] == found["quality/all"] == found["drift/all"] == "inconclusive"


def test_every_number_is_finite_and_carries_its_steps(good, bad, found_good, found_bad):
    for root, found in ((good, found_good), (bad, found_bad)):
        frames = collect(root, STUDY)
        documents = [
            final_report_json(found, STUDY),
            baseline_results(frames, found),
            drift_results(frames, found),
            deployment_results(frames, found),
        ]
        for document in documents:
            assert np.isfinite(list(numbers(document))).all()
            json.dumps(document, allow_nan=False)
        ids = set(frames.planned)
        for row in [*found.claims, *found.table, *found.baselines, *found.costs, *found.serving]:
            assert row.steps and set(row.steps) <= ids
        for name, table in found.statistics.items():
            assert (table["steps"] or name == "planned_power") and set(table["steps"]) <= ids
            assert all(len(row) == len(table["columns"]) for row in table["rows"])
        assert {r.step for r in found.red_flags} <= ids


def test_payloads_hold_what_the_plan_asks_for(good, found_good):
    frames, found = collect(good, STUDY), found_good
    baselines = baseline_results(frames, found)["tasks"]["mrpc"]
    assert baselines["measured"]["majority"]["accuracy"]["value"] == pytest.approx(0.55, abs=0.01)
    assert baselines["measured"]["random"]["accuracy"]["sd"] > 0 and baselines["published"]
    drift = drift_results(frames, found)
    assert set(drift["tasks"]) == set(STUDY.tasks) and len(drift["runs"]) == 40
    deployment = deployment_results(frames, found)
    assert len(deployment["cells"]) == 60 and {a["arm"] for a in deployment["arms"]} == set(STUDY.serving.arms)
    report = final_report_json(found, STUDY)
    assert (report["verdict"], report["registered"]["quality_retained"]) == ("supported", 0.97)


def test_holm_orders_the_tasks(found_good):
    found = found_good
    tasks = [claim(found, f"quality/{t}") for t in STUDY.tasks]
    ordered = sorted(tasks, key=lambda c: c.p)
    assert ordered[0].p_adjusted == pytest.approx(min(1, 4 * ordered[0].p))
    assert all(c.p_adjusted >= c.p for c in tasks)
    assert claim(found, "quality/all").p == max(c.p for c in tasks)


def test_a_missing_run_is_named_and_blocks_its_claims_only(copy):
    step = "train/rte/lora/final/seed-2024"
    (copy / "steps" / step / "result.json").unlink()
    found = findings_of(copy, missing={step: ("failed", "loss is not finite")})
    assert not found.complete and found.steps_done == 57
    assert [(m.step, m.state, m.why) for m in found.missing] == [(step, "failed", "loss is not finite")]
    rte = claim(found, "quality/rte")
    assert rte.verdict == "inconclusive" and rte.estimate is not None
    assert kinds(rte) == ["missing_steps"] and f"{step} (failed: loss is not finite)" in rte.reasons[0].text
    assert verdicts(found)["quality/sst2"] == "supported" and verdicts(found)["quality/all"] == "inconclusive"
    assert len(found.answer) == 3 and "not decided" in found.answer[0] and "RTE" in found.answer[0] and "57 of 58" in found.answer[2]


def test_a_stale_result_is_not_used(copy):
    step = "train/rte/lora/final/seed-2024"
    found = findings_of(copy, missing={step: ("stale", "max_epochs 3 to 4")})
    assert all(step not in c.steps for c in found.claims) and verdicts(found)["quality/rte"] == "inconclusive"


@pytest.mark.parametrize("gone", ["train", "baseline", "serve", "data", "drift", "base-probe", "correlate"])
def test_any_kind_of_step_may_be_missing(copy, gone):
    shutil.rmtree(copy / "steps" / gone)
    found = findings_of(copy)
    assert len(found.answer) == 3 and not found.complete
    expected = "inconclusive" if gone in ("train", "baseline") else "supported"
    assert verdicts(found)["hypothesis"] == expected
    json.dumps(final_report_json(found, STUDY), allow_nan=False)


def test_nothing_at_all_still_answers(tmp_path):
    found = findings_of(tmp_path)
    assert found.steps_done == 0 and set(verdicts(found).values()) == {"inconclusive"} and len(found.answer) == 3


def test_one_seed_is_shown_and_not_tested(tmp_path_factory):
    found = findings_of(simulated(tmp_path_factory, "one", seeds=(42,), n_examples=100))
    quality = claim(found, "quality/sst2")
    assert quality.p is None and quality.estimate is not None and quality.verdict == "inconclusive"
    assert quality.has("too_few_seeds")
    row = next(r for r in found.table if (r.task, r.method) == ("sst2", "lora"))
    assert row.n_seeds == 1 and row.quality_sd is None and row.quality_interval is not None


def test_few_launches_never_decide(tmp_path_factory):
    root = simulated(tmp_path_factory, "few", quality_gap=0.0, n_examples=1000, drift_ratio=1.0, overhead=0.05, launches=3)
    found = findings_of(root)
    overhead = claim(found, "overhead")
    assert overhead.p < 0.05 and overhead.verdict == "inconclusive" and kinds(overhead) == ["too_few_launches"]
    assert verdicts(found)["hypothesis"] == "inconclusive"


def test_untied_twins_void_the_overhead_claim(copy):
    path = copy / "steps/serve/launches.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["arm"] == "base":
            for cell in row["cells"]:
                cell["ms_per_token"] *= 1.4
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    overhead = claim(findings_of(copy), "overhead")
    assert overhead.verdict == "inconclusive" and overhead.has("twins_differ")


def learns_no_rte(root):
    import pandas as pd

    for path in (root / "steps").glob("train/rte/*/final/*/predictions.parquet"):
        frame = pd.read_parquet(path)
        frame["prediction"] = "not_entailment"  # every run answers as the majority class does
        if "full/final/seed-42" in str(path):  # but for one lucky hit
            frame.loc[frame.index[frame.label == "entailment"][0], "prediction"] = "entailment"
        frame["correct"] = (frame.label == frame.prediction).astype(float)
        frame.to_parquet(path)
        result = json.loads((path.parent / "result.json").read_text())
        for row in result["metrics"]:
            row["value"] = float(frame.correct.mean()) if (row["name"], row["split"]) == ("accuracy", "test") else row["value"]
        (path.parent / "result.json").write_text(json.dumps(result))


def test_a_failed_gate_makes_quality_drift_and_hypothesis_inconclusive(copy):
    learns_no_rte(copy)
    found = findings_of(copy)
    assert kinds(claim(found, "quality/rte")) == ["gate_failed"] and kinds(claim(found, "drift/rte")) == ["nothing_learned"]
    got = verdicts(found)
    assert got["quality/rte"] == got["drift/rte"] == got["quality/all"] == got["hypothesis"] == "inconclusive"
    assert got["quality/sst2"] == "supported"
    assert any("lies above the majority baseline's interval" in r.text and r.step == "baseline/rte" for r in found.red_flags)
    assert any("RTE" in line.text and "baseline/rte" in line.steps for line in found.limitations)
    assert "weakest of 3 compared tasks" in found.answer[0] and "RTE" not in found.answer[0].split(";")[0]
    scores = ("power", "practical_threshold", "mean_gap", "quality_sensitivity", "mcnemar", "f1_randomisation")
    drift = ("drift_sensitivity", "drift_paired", "drift_runs", "drift_blocks", "drift_layers", "drift_equal_quality")
    for name in (*scores, *drift):
        tasks = {row[0] for row in found.statistics[name]["rows"]}
        assert "mrpc" in tasks and "rte" not in tasks, f"{name} compares what was not learned"
    runs = {row["step_id"] for row in drift_results(collect(copy, STUDY), found)["runs"]}  # the values themselves are kept
    assert {f"train/rte/{method}/final/seed-{seed}" for method in STUDY.methods for seed in STUDY.seeds} <= runs
    takes = {row[0]: row[3] for row in found.statistics["undecided"]["rows"]}
    assert takes["quality/rte"] == takes["drift/rte"] and takes["drift/rte"].startswith("first a full that beats its baselines")
    assert "nothing to compare" in next(row[1] for row in found.statistics["advice"]["rows"] if "RTE" in row[0])
    whole, drift = claim(found, "hypothesis"), claim(found, "drift/all")
    assert kinds(whole) == ["gate_failed"] and [(r.kind, r.task) for r in drift.reasons] == [("nothing_learned", "rte")]
    assert whole.notes == [f"{part}/all does not enter: RTE cannot be decided" for part in ("quality", "drift")]
    assert any(note.startswith("SST-2: over the searched learning rates") for note in drift.notes), "no note of a task may get lost"
    assert "one-sided p = " in claim(found, "quality/rte").reasons[0].text


def test_the_probed_examples_are_those_recorded(good, found_good):
    frames = collect(good, STUDY)
    recorded = frames.drift[(frames.drift.task == "rte") & (frames.drift.block == -1)].n.min()
    assert claim(found_good, "drift/rte").n_examples == recorded
    half = replace(frames, drift=frames.drift.assign(n=frames.drift.n // 2))
    found = analyse(half, STUDY, now=NOW)
    assert claim(found, "drift/rte").n_examples == recorded // 2


def test_flags_from_expectations_and_notes(copy):
    tasks = {t: TaskSpec(max_length=512, expect={"full": (0.95, 0.99)} if t == "sst2" else {}) for t in STUDY.tasks}
    path = copy / "steps/train/mrpc/lora/final/seed-42/result.json"
    result = json.loads(path.read_text())
    result["notes"] = ["base weights changed during adapter training"]
    path.write_text(json.dumps(result))
    found = findings_of(copy, study=small_study(tasks=tasks))
    texts = [r.text for r in found.red_flags]
    assert sum("outside the expected 0.95 to 0.99 of full on SST-2" in t for t in texts) == 3
    assert "base weights changed during adapter training" in texts
    assert set(verdicts(found).values()) == {"supported"}  # flags never change a verdict


def test_limitations_come_from_the_data(copy):
    path = copy / "steps/data/squad_v2/result.json"
    result = json.loads(path.read_text())
    result["outputs"] |= {"made_here": True, "comparable": False}
    path.write_text(json.dumps(result))
    found = findings_of(copy).limitations
    assert all(line.steps for line in found)
    lines = " ".join(line.text for line in found)
    assert "3 seeds" in lines and "2.2 million parameters" in lines and "CPU" in lines and "data of SQuAD v2 was made by rules" in lines
    assert "Partial study" not in lines


METHODS = {
    **STUDY.methods,
    "lora_r16": MethodSpec(warmup_ratio=0.06, learning_rates=(3e-3, 1e-2), adapter=AdapterSpec(r=16, lora_alpha=32)),
}


def test_a_study_without_serving_or_with_ablations(tmp_path_factory):
    study = small_study(serving=None, methods=METHODS, tasks={"mrpc": TaskSpec(max_length=512)})
    found = findings_of(simulated(tmp_path_factory, "ablation", study, quality_gap=0.0, n_examples=800), study)
    assert kinds(claim(found, "overhead")) == ["no_serving"]
    assert {row[1] for row in found.statistics["ablation"]["rows"]} == {"full", "lora", "lora_r16"}
    assert len(found.statistics["post_hoc"]["rows"]) == 3
    assert claim(found, "quality/all").n_seeds == 3


def test_three_methods_are_compared_on_what_was_learned(tmp_path_factory):
    study = small_study(serving=None, methods=METHODS, tasks={t: TaskSpec(max_length=512) for t in ("sst2", "rte")})
    root = simulated(tmp_path_factory, "three", study, n_examples=200)
    learns_no_rte(root)
    found = findings_of(root, study).statistics["post_hoc"]
    assert len(found["rows"]) == 3 and {step.split("/")[1] for step in found["steps"]} == {"sst2"}


def test_corpus_f1_as_the_registered_metric(tmp_path_factory):
    analysis = STUDY.analysis.model_copy(update={"primary_metric": {**STUDY.analysis.primary_metric, "mrpc": "f1"}})
    study = small_study(tasks={"mrpc": TaskSpec(max_length=512)}, analysis=analysis, serving=None)
    found = findings_of(simulated(tmp_path_factory, "f1", study, quality_gap=0.0, n_examples=1200), study)
    quality = claim(found, "quality/mrpc")
    row = {r.method: r.quality_mean for r in found.table}
    assert quality.estimate == pytest.approx(row["lora"] / row["full"], abs=1e-3) and quality.verdict == "supported"


def test_squad_is_clustered_by_paragraph_with_articles_beside(found_good):
    found = found_good
    assert "200 paragraph totals" in claim(found, "quality/squad_v2").method
    procedures = [row[1] for row in found.statistics["quality_sensitivity"]["rows"] if row[0] == "squad_v2"]
    assert "clustered by article" in procedures


def test_sign_flips_over_three_seeds_cannot_decide(found_good):
    rows = [r for r in found_good.statistics["drift_sensitivity"]["rows"] if "sign flip" in r[1]]
    assert len(rows) == 4 and all(r[6] == 0.125 and r[7] == "cannot be decided by this test" for r in rows)


def test_the_registered_cells_must_be_in_the_grid(tmp_path_factory):
    serving = ServingSpec(arms=("base", "merged", "adapters_2"), batch_sizes=(1, 2), prompt_lengths=(128,), sampling=("greedy",))
    study = small_study(serving=serving)
    found = findings_of(simulated(tmp_path_factory, "grid", study, n_examples=100), study)
    why = next(r.text for r in claim(found, "overhead").reasons if r.kind == "cells_not_measured")
    assert "batch size 4" in why and "prompt length 256" in why


def test_findings_do_not_depend_on_the_run(good, found_good):
    assert findings_of(good) == found_good


def test_a_margin_changed_after_the_runs_is_not_confirmatory(good):
    study = small_study(analysis=STUDY.analysis.model_copy(update={"overhead_limit": 0.5}))
    found = findings_of(good, study=study)
    marked = {c.id for c in found.claims if any(r.kind == "plan" for r in c.reservations)}
    assert marked == {"overhead", "hypothesis"}
    assert claim(found, "overhead").reservations[0].text == "registered plan changed (overhead.limit 0.3 → 0.5)"
    assert said(claim(found, "overhead"))[0] == "not confirmatory: registered plan changed (overhead.limit 0.3 → 0.5)"
    assert any(
        line.text == "Not every claim is confirmatory: registered plan changed (overhead.limit 0.3 → 0.5)." for line in found.limitations
    )
    assert found.registered_plan.changes == ["overhead.limit 0.3 → 0.5"] and "not confirmatory" in found.answer[2]


def test_seeds_added_later_stay_out_of_the_claims(tmp_path_factory):
    seeds = (*STUDY.seeds, 7, 8)
    root = simulated(tmp_path_factory, "added", small_study(seeds=seeds), seeds=seeds, n_examples=200)
    (root / FILE).write_text(json.dumps(registration(STUDY, NOW, "train")))
    found = findings_of(root, study=small_study(seeds=seeds))
    assert claim(found, "quality/sst2").n_seeds == claim(found, "drift/sst2").n_seeds == 3
    assert not any(r.kind == "plan" for c in found.claims for r in c.reservations) and found.registered_plan.added_seeds == [7, 8]
    assert not any("seed-7" in s or "seed-8" in s for c in found.claims for s in c.steps)
    assert {row[2] for row in found.statistics["added_seeds"]["rows"]} == {5}
    learns_no_rte(root)
    rows = findings_of(root, study=small_study(seeds=seeds)).statistics["added_seeds"]["rows"]
    assert {row[:2] for row in map(tuple, rows)} == {(what, task) for what in ("quality", "drift") for task in STUDY.tasks if task != "rte"}


@pytest.mark.parametrize("seeds", [(42, 1337, 2024), (42, 1337, 2024, 3407, 5489)])
def test_fewer_than_five_seeds_are_a_first_look(tmp_path_factory, seeds):
    study = small_study(seeds=seeds)
    found = findings_of(simulated(tmp_path_factory, f"looks-{len(seeds)}", study, seeds=seeds, n_examples=200), study=study)
    few = len(seeds) < 5
    for c in found.claims:
        assert c.confirmatory is (not few or c.dimension == "overhead"), c.id
        assert [r.kind for r in c.reservations] == ["few_seeds"] * (not c.confirmatory)
        assert c.confirmatory or said(c)[-1] == "a first look: 3 seeds, where a confirmatory claim takes 5"
    assert ("(a first look, with fewer than 5 seeds)" in found.answer[0]) is few


def test_runs_without_a_registration_are_not_confirmatory(copy):
    (copy / FILE).unlink()
    found = findings_of(copy)
    assert not any(c.confirmatory for c in found.claims) and "no registration was kept" in found.claims[0].reservations[0].text


def test_what_is_not_decided_says_what_it_would_take(tmp_path_factory):
    found = findings_of(simulated(tmp_path_factory, "open", quality_gap=0.03, n_examples=100, drift_ratio=0.8, overhead=0.3))
    rows = {row[0]: row for row in found.statistics["undecided"]["rows"]}
    assert {c.id for c in found.claims if c.verdict == "inconclusive"} == set(rows)
    needed = {name: row[3] for name, row in rows.items()}
    assert "seeds" in needed["quality/rte"] and "examples" in needed["quality/rte"] and "true reduction" in needed["drift/rte"]
    assert rows["quality/rte"][2] == "lora and full score the same", "the assumed truth stands beside what it would take"
    beyond = {c.id for c in found.claims if c.task and c.id in rows and c.estimate < c.margin}
    assert beyond and beyond == {name for name, text in needed.items() if "will contradict" in text and name != "overhead"}


def test_a_difference_between_methods_is_no_surprise_about_drift_and_quality(tmp_path_factory):
    found = findings_of(simulated(tmp_path_factory, "apart", quality_gap=0.05, drift_ratio=0.5))
    rows = {(row[0].split(" ~")[0], row[1]): row for row in found.statistics["correlations"]["rows"]}
    assert rows["test quality", "within task (repeated measures)"][3] > 0.9, "full drifts more and scores more: a relation across methods"
    assert not any(row[1] == "drift" and "score" in row[2] for row in found.statistics.get("surprises", {"rows": []})["rows"])


def test_the_practical_threshold_and_advice_follow_the_verdicts(found_good, found_bad):
    assert {r[6] for r in found_good.statistics["practical_threshold"]["rows"]} == {"equivalent within 3 %"}
    assert {r[6] for r in found_bad.statistics["practical_threshold"]["rows"]} == {"loses more than 3 %"}
    assert "can take the place of" in found_good.statistics["advice"]["rows"][0][1]
    assert "use full" in found_bad.statistics["advice"]["rows"][0][1]
