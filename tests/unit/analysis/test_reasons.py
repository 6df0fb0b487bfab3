"""Why a claim cannot be decided: every kind is reached, forbids a verdict, and is asked for by kind, whatever its text says."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis import statistical_analysis
from tunescope.analysis.crossed import relative_test
from tunescope.analysis.findings import Claim, Findings, Reason, ReasonKind, Reservation
from tunescope.analysis.frames import Frames, collect
from tunescope.analysis.regression import cochran_q
from tunescope.analysis.scores import paired_drift, values_matrix
from tunescope.analysis.statistical_analysis import analyse
from tunescope.analysis.verdicts import entering, said
from tunescope.report.tables import claims_table
from tunescope.study.rules import CLAIMED_METRICS
from tunescope.study.schema import AnalysisSpec, ServingSpec, Study, TaskSpec

NOW = "2026-01-01T00:00:00+00:00"
TASKS = ("sst2", "rte")
ANALYSIS = AnalysisSpec(overhead_batch_sizes=(4,), overhead_prompt_length=128, bootstrap_draws=20, permutation_draws=49)
STUDY = small_study(
    tasks={t: TaskSpec(max_length=512) for t in TASKS},
    serving=ServingSpec(
        arms=("base", "full", "merged", "lora_idle", "adapters_2"), batch_sizes=(4,), prompt_lengths=(128,), sampling=("greedy",),
        two_adapters=TASKS,
    ),
    analysis=ANALYSIS,
)  # fmt: skip
RUN = "train/rte/lora/final/seed-42"
BROKEN = {**dict.fromkeys((f"train/rte/{m}/final/seed-{s}" for m in ("full", "lora") for s in (1337, 2024)), ("failed", "no memory"))}
Case = Callable[[Frames], tuple[Frames, Study, Any]]


def with_analysis(**changes: Any) -> Study:
    return small_study(tasks=STUDY.tasks, serving=STUDY.serving, analysis=ANALYSIS.model_copy(update=changes))


def nobody_learned(f: Frames) -> Frames:
    """Every run on RTE answers with one class; one lucky hit of a full run keeps the comparison from having no variation."""
    p, rte = f.predictions.copy(), f.predictions.task == "rte"
    p.loc[rte, "prediction"] = "not_entailment"
    lucky = rte & (p.method == "full") & (p.label == "entailment")
    p.loc[p.index[lucky][0], "prediction"] = "entailment"
    p.loc[rte, "correct"] = (p.prediction == p.label)[rte].astype(float)
    return replace(f, predictions=p)


def metrics(f: Frames, change: Callable[[Any], Any], **where: Any) -> Frames:
    """The drift scalars and blocks of some runs changed; None takes them away."""
    m = f.metrics.copy()
    chosen = m.name.str.startswith("drift") & (m.split == "probe")
    for column, value in where.items():
        chosen &= m[column] == value
    if change is None:
        return replace(f, metrics=m[~chosen])
    m.loc[chosen, "value"] = change(m.value[chosen])
    return replace(f, metrics=m)


def slow_base(f: Frames) -> Frames:
    rows = [
        {**r, "cells": [{**c, "ms_per_token": 1.4 * c["ms_per_token"]} for c in r["cells"]]} if r["arm"] == "base" else r
        for r in f.documents["serve"]["launches.jsonl"]
    ]
    return replace(f, documents={**f.documents, "serve": {**f.documents["serve"], "launches.jsonl": rows}})


def first_launch(f: Frames) -> Frames:
    rows = [r for r in f.documents["serve"]["launches.jsonl"] if r["launch"] == 0]
    return replace(f, documents={**f.documents, "serve": {**f.documents["serve"], "launches.jsonl": rows}})


def of_rte(f: Frames, **columns: Any) -> Frames:
    p = f.predictions.copy()
    for name, value in columns.items():
        p.loc[p.task == "rte", name] = value
    return replace(f, predictions=p)


CASES: dict[str, tuple[Case, dict[str, list[ReasonKind]]]] = {
    "sound": (lambda f: (f, STUDY, None), {}),
    "nobody learned": (
        lambda f: (nobody_learned(f), STUDY, None), {"quality/rte": ["gate_failed"], "drift/rte": ["nothing_learned"]},
    ),
    "no baselines": (
        lambda f: (replace(f, baselines=f.baselines[f.baselines.task != "rte"]), STUDY, None),
        {"quality/rte": ["gate_unknown"], "drift/rte": ["gate_unknown"]},
    ),
    "a run is missing": (
        lambda f: (f, STUDY, {RUN: ("failed", "no memory")}), {"quality/rte": ["missing_steps"], "drift/rte": ["missing_steps"]},
    ),
    "one seed": (
        lambda f: (f, STUDY, BROKEN),
        {"quality/rte": ["missing_steps", "too_few_seeds"], "drift/rte": ["missing_steps", "too_few_seeds"]},
    ),
    "one paragraph": (
        lambda f: (of_rte(f, group="all"), STUDY, None), {"quality/rte": ["too_few_examples"], "drift/rte": ["gate_unknown"]},
    ),
    "no scores": (
        lambda f: (of_rte(f, correct=np.nan), STUDY, None), {"quality/rte": ["metric_not_stored"], "drift/rte": ["gate_unknown"]},
    ),
    "predictions of a run are lost": (
        lambda f: (replace(f, predictions=f.predictions[f.predictions.step_id != RUN]), STUDY, None),
        {"quality/rte": ["metric_not_stored"], "drift/rte": ["gate_unknown"]},
    ),
    "all right": (lambda f: (of_rte(f, correct=1.0), STUDY, None), {"quality/rte": ["no_variation"]}),
    "no drift": (lambda f: (metrics(f, None, task="rte"), STUDY, None), {"drift/rte": ["no_drift_scalar"]}),
    "no drift of a seed": (lambda f: (metrics(f, None, task="rte", seed=42), STUDY, None), {"drift/rte": ["no_drift_scalar"]}),
    "nothing moved": (
        lambda f: (metrics(f, lambda v: 0 * v, task="rte"), STUDY, None), {"drift/rte": ["no_variation", "no_reference_drift"]},
    ),
    "no serving": (
        lambda f: (f, small_study(tasks=STUDY.tasks, serving=None, analysis=ANALYSIS), None), {"overhead": ["no_serving"]},
    ),
    "not served": (lambda f: (f, STUDY, {"serve": ("todo", "")}), {"overhead": ["missing_steps"]}),
    "few launches": (lambda f: (f, with_analysis(min_launches=20), None), {"overhead": ["too_few_launches"]}),
    "one launch, registered so": (
        lambda f: (first_launch(f), with_analysis(min_launches=1), None), {"overhead": ["too_few_launches"]},
    ),
    "other cells": (
        lambda f: (f, with_analysis(overhead_prompt_length=64), None), {"overhead": ["too_few_launches", "cells_not_measured"]},
    ),
    "twins differ": (lambda f: (slow_base(f), STUDY, None), {"overhead": ["twins_differ", "twins_differ"]}),
}  # fmt: skip
"""Name -> (what is wrong with the records, the reasons of the claims on one task and of overhead)."""


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Frames:
    root = tmp_path_factory.mktemp("reasons")
    write_store(root, STUDY, rng=np.random.default_rng(5), quality_gap=0.0, n_examples=200, drift_ratio=0.5)
    return collect(root, STUDY)


@pytest.fixture(scope="module")
def cases(frames: Frames) -> dict[str, Findings]:
    found = {}
    for name, (change, _) in CASES.items():
        changed, study, missing = change(frames)
        found[name] = analyse(changed, study, missing, now=NOW)
    return found


def claim(findings: Findings, name: str) -> Claim:
    return next(c for c in findings.claims if c.id == name)


def test_every_kind_is_reached(cases: dict[str, Findings]) -> None:
    assert {r.kind for f in cases.values() for c in f.claims for r in c.reasons} == set(get_args(ReasonKind))


def test_every_kind_is_described() -> None:
    page = (Path(__file__).parents[3] / "docs/report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.M)) == set(get_args(ReasonKind))


@pytest.mark.parametrize("name", CASES)
def test_reasons_are_those_of_the_records(cases: dict[str, Findings], name: str) -> None:
    single = [c for c in cases[name].claims if c.task is not None or c.dimension == "overhead"]
    assert {c.id: [r.kind for r in c.reasons] for c in single if c.reasons} == CASES[name][1]
    for c in single:
        assert {r.task for r in c.reasons} <= {c.task}
    for dimension in ("quality", "drift"):
        tasks = [r for c in single if c.dimension == dimension for r in c.reasons]
        assert claim(cases[name], f"{dimension}/all").reasons == tasks, "one undecidable task leaves the whole undecided"


@pytest.mark.parametrize("name", CASES)
def test_a_reason_forbids_a_verdict_and_a_missing_p_has_one(cases: dict[str, Findings], name: str) -> None:
    for c in cases[name].claims:
        assert not c.reasons or (c.verdict == "inconclusive" and entering(c) == (None, None)), c.id
        assert c.p is not None or c.reasons, f"{c.id} has no p and nothing says why"
        assert not {r.text for r in c.reasons} & set(c.notes), "a reason is no note"
        told = " ".join(said(c))
        assert all(r.text in told for r in c.reasons) and all(note in told for note in c.notes)
    named = {row[0]: row[1] for row in cases[name].statistics.get("undecided", {"rows": []})["rows"]}
    for c in cases[name].claims:
        if c.reasons and not c.id.endswith("/all"):
            assert all(r.text in named[c.id] for r in c.reasons), "the table of what is not decided names every reason"


def test_what_stands_in_the_sentences_follows_the_kinds(cases: dict[str, Findings]) -> None:
    answers = {name: " ".join(f.answer) for name, f in cases.items()}
    assert "does not beat its baselines on RTE" in answers["nobody learned"] and "nothing was learned on RTE" in answers["nobody learned"]
    for name in ("a run is missing", "one seed"):
        assert answers[name].count("runs are missing on RTE") == 2
    assert answers["no baselines"].count("what was learned cannot be checked on RTE") == 2
    assert answers["twins differ"].count("because arms of identical shape do not tie") == 1
    for name, said_of in (("no scores", "scores are"), ("no drift", "drift values are"), ("no drift of a seed", "drift values are")):
        assert answers[name].count(f"{said_of} missing on RTE") == 1
    takes = {n: {row[0]: row[3] for row in f.statistics["undecided"]["rows"]} for n, f in cases.items() if "undecided" in f.statistics}
    assert takes["nobody learned"]["drift/rte"].startswith("first a full that beats its baselines")
    assert takes["a run is missing"]["quality/rte"].startswith("the missing runs first")
    few = {name for name, f in cases.items() if any("inconclusive by rule" in line.text for line in f.limitations)}
    assert few == {"few launches", "one launch, registered so", "other cells"}


def test_the_metrics_that_a_study_may_claim_are_those_with_a_value_for_each_example(frames: Frames) -> None:
    step = frames.final_runs["sst2", "lora"][42]
    table = frames.scored[step]
    for task, claimed in CLAIMED_METRICS.items():
        mine = table.assign(f1=0.5) if task == "squad_v2" else table
        assert all(values_matrix([mine], list(table.index), metric, task) is not None for metric in claimed)
        assert "f1" in claimed or values_matrix([mine], list(table.index), "f1", task) is None
        assert values_matrix([mine], list(table.index), "best_f1", task) is None


def test_a_gate_that_cannot_be_checked_is_told_with_what_it_lacks(cases: dict[str, Findings]) -> None:
    """Without scores nobody knows whether the drift is that of a model that learned something."""
    lost = cases["predictions of a run are lost"]
    assert claim(lost, "drift/rte").verdict == claim(lost, "drift/all").verdict == "inconclusive"
    assert all(f"no predictions of {RUN}" in claim(lost, name).reasons[0].text for name in ("quality/rte", "drift/rte"))
    assert "no per-example form" in claim(cases["no scores"], "drift/rte").reasons[0].text
    assert "fewer than 2 groups of test examples" in claim(cases["one paragraph"], "drift/rte").reasons[0].text


def test_tables_on_drift_name_the_runs_of_tasks_whose_scores_do_not_compare(frames: Frames) -> None:
    """An untuned base that is always right: RTE was learned, but not better than by the base."""
    base = frames.baselines.copy()
    base.loc[(base.task == "rte") & (base.system == "base"), "correct"] = 1.0
    lasting = metrics(replace(frames, baselines=base), lambda v: 4 * v, task="rte", method="lora")
    found = analyse(lasting, STUDY, now=NOW)
    assert [r.kind for r in claim(found, "quality/rte").reasons] == ["gate_failed"] and not claim(found, "drift/rte").reasons
    assert [row[:2] for row in found.statistics["task_agreement"]["rows"]] == [["drift", 2]]
    assert any(row[1] == "rte" and "drifts more" in row[2] for row in found.statistics["surprises"]["rows"])
    for name in ("task_agreement", "surprises"):
        assert {step.split("/")[1] for step in found.statistics[name]["steps"]} == set(TASKS)


def test_the_agreement_of_drifts_has_the_standard_errors_of_their_claims(frames: Frames) -> None:
    expected, other = [], []
    for task in TASKS:
        pair = paired_drift(frames, task, "lora", "full")
        blocks = pair.crossed() if pair is not None else None
        assert blocks is not None
        ratio = float(blocks[0].mean() / blocks[1].mean())
        for few, rows in ((True, expected), (False, other)):
            error = relative_test(*blocks, margin=ratio, few_columns=few).contrast.se / blocks[0].mean()
            rows.append((math.log(ratio), float(error)))
    assert expected != other, "the form of the error must matter to these runs"
    row = next(r for r in analyse(frames, STUDY, now=NOW).statistics["task_agreement"]["rows"] if r[0] == "drift")
    q = cochran_q([log for log, _ in expected], [se for _, se in expected])
    assert q is not None and row[5] == pytest.approx(q.q)


def test_scores_that_do_not_vary_correlate_with_nothing(frames: Frames) -> None:
    m = frames.metrics.copy()
    m.loc[m.name == "accuracy", "value"] = m.task.map({"sst2": 102 / 1725, "rte": 107 / 1725})
    found = analyse(replace(frames, metrics=m), STUDY, now=NOW).statistics
    quality = next(row for row in found["correlation_matrix"]["rows"] if row[0] == "quality")
    assert quality[1:] == [None] * (len(quality) - 1)
    assert not [row for row in found["correlations"]["rows"] if row[0].startswith("test quality") and "within" in row[1]]


def test_a_failed_gate_leaves_no_numbers_to_compare(cases: dict[str, Findings]) -> None:
    found = cases["nobody learned"]
    rows = {row.cells[0]: dict(zip(claims_table(found.claims).columns, row.cells, strict=True)) for row in claims_table(found.claims).rows}
    for name, why in (("quality, RTE", "gate failed"), ("drift, RTE", "nothing learned")):
        assert rows[name]["Estimate"] == why and {rows[name][c] for c in ("Interval", "p", "p (Holm)", "p opposite", "df")} == {"–"}
    assert "–" not in {rows["quality, SST-2"][c] for c in ("Estimate", "Interval", "p", "p opposite", "df")}
    data = claims_table(found.claims).data.set_index("id")
    assert data.loc["quality/rte", "p"] == claim(found, "quality/rte").p, "the CSV keeps the numbers, with the kind of reason beside them"
    assert "in the CSV alone" in claims_table(found.claims).note and "CSV" not in claims_table(cases["sound"].claims).note
    corrected = {row[0]: row for row in found.statistics["multiplicity"]["rows"]}
    assert set(corrected) == {"quality/sst2", "drift/sst2"}
    assert corrected["quality/sst2"][2] == claim(found, "quality/sst2").p_adjusted, "the correction shown is the one verdicts use"
    assert found.claims and not claim(found, "drift/rte").notes, "no ratios of drift where nothing was learned"
    ratios = {row[0]: (row[10], row[13]) for row in found.statistics["ablation"]["rows"] if row[1] == "lora"}
    assert ratios["rte"] == (None, None) and None not in ratios["sst2"]


def test_the_serving_sentence_says_first_how_it_was_measured(frames: Frames, cases: dict[str, Findings]) -> None:
    assert cases["sound"].answer[2].startswith("Serving: measured on a CPU in eager mode, which says nothing about GPUs, 2 adapters cost")
    said_of = {}
    for name, outputs in {"eager GPU": {"eager": True}, "GPU": {"eager": False}}.items():
        rows = [
            o if kind != "serve" else {**o, "cpu_figures": False, **outputs}
            for o, kind in zip(frames.steps.outputs, frames.steps.kind, strict=True)
        ]
        found = analyse(replace(frames, steps=frames.steps.assign(outputs=rows)), STUDY, None, now=NOW)
        held = next(row[2] for row in found.statistics["advice"]["rows"] if row[3] == "overhead")
        said_of[name] = (found.answer[2], held)
    assert said_of["eager GPU"][0].startswith("Serving: measured on a GPU in eager mode, without the compiled graphs of production, 2 adap")
    assert said_of["GPU"][0].startswith("Serving: 2 adapters cost") and "on this GPU" in said_of["GPU"][1]
    assert "measured" in cases["not served"].answer[2] and "eager" not in cases["not served"].answer[2]


def test_advice_names_what_keeps_it_from_being_firm(cases: dict[str, Findings]) -> None:
    rows = {name: {row[0]: row for row in f.statistics["advice"]["rows"]} for name, f in cases.items()}
    sound = rows["sound"]["Which method for SST-2?"][2]
    assert "learning rates of the searched grid (on its edge in 4 of 4)" in sound
    serving = "Merge, or serve adapters side by side?"
    assert rows["few launches"][serving][1].startswith("not decided: more launches have to say") and "merge where" not in str(rows)
    assert rows["no serving"][serving][1].startswith("no part of this study")
    assert "2 adapters against merged is no part of this study" in cases["no serving"].answer[2]


def test_what_it_would_take_follows_the_reason(cases: dict[str, Findings]) -> None:
    """More seeds or launches help nobody whose baseline step, scores or quiet machine are missing."""
    takes = {n: {row[0]: row[3] for row in f.statistics["undecided"]["rows"]} for n, f in cases.items() if "undecided" in f.statistics}
    for dimension in ("quality", "drift"):
        assert takes["no baselines"][f"{dimension}/rte"].startswith("first predictions that the gate can be checked with; in all, ")
        assert takes["one seed"][f"{dimension}/rte"] == "the missing runs first; two paired seeds at the least"
    assert takes["one paragraph"]["quality/rte"] == "test examples of two groups at the least"
    assert takes["no scores"]["quality/rte"] == "first predictions with a value of the registered metric for each example"
    assert takes["all right"]["quality/rte"] == "values that are not all equal"
    assert takes["no drift"]["drift/rte"] == "first the drift scalar of every registered run"
    assert takes["nothing moved"]["drift/rte"] == "values that are not all equal; a reference that drifts at all"
    assert takes["no serving"]["overhead"].startswith("a serving part in the study; in all, ")
    assert takes["one launch, registered so"]["overhead"].startswith("at least 2 launches of both")
    assert takes["twins differ"]["overhead"].startswith("first the serve step again, alone on the machine")
    assert all(text for rows in takes.values() for text in rows.values())


@pytest.mark.parametrize("spread", [(0.4, 1.0, 2.2), (0.1, 1.0, 4.6)])
def test_a_reduction_above_all_there_is_to_reduce_is_not_asked_for(frames: Frames, spread: tuple[float, ...]) -> None:
    for seed, factor in zip(STUDY.seeds, spread, strict=True):
        frames = metrics(frames, lambda v, k=factor: k * v, task="rte", method="lora", seed=seed)
    takes = {row[0]: row[3] for row in analyse(frames, STUDY, now=NOW).statistics["undecided"]["rows"]}["drift/rte"].split("; but ")[0]
    asked = [int(share) for share in re.findall(r"(\d+) % with", takes)]
    assert all(share < 100 for share in asked)
    lacking = re.fullmatch(
        r"(a true .* seeds; or )?runs that vary less, as no reduction up to 100 % could be shown with (.+) seeds like these", takes
    )
    assert lacking is not None and lacking[2].startswith("3") and len(asked) + len(lacking[2].split(", ")) == 3
    assert bool(asked) == (spread[2] < 4), "ten seeds can show what three cannot, up to a point"


@pytest.mark.parametrize(
    ("change", "sentence", "why"),
    [
        (lambda f: replace(f, predictions=f.predictions.assign(correct=1.0)), 0, "all values are equal on SST-2, RTE"),
        (lambda f: replace(f, predictions=f.predictions.assign(correct=np.nan)), 0, "scores are missing on SST-2, RTE"),
        (lambda f: metrics(f, None), 1, "drift values are missing on SST-2, RTE"),
    ],
)
def test_an_answer_without_any_number_says_what_keeps_it_from_one(
    frames: Frames, change: Callable[[Frames], Frames], sentence: int, why: str
) -> None:
    text = analyse(change(frames), STUDY, now=NOW).answer[sentence]
    assert text.endswith(f": lora cannot be compared with full yet; {why}.")


def test_the_answer_of_a_study_of_one_seed_asks_for_a_second(frames: Frames) -> None:
    study = small_study(tasks=STUDY.tasks, serving=STUDY.serving, analysis=ANALYSIS, seeds=(42,))
    alone = frames.without(s for s in frames.steps.step_id if s.startswith("train/") and not s.endswith("seed-42"))
    for text in analyse(alone, study, now=NOW).answer[:2]:
        assert text.endswith("yet; fewer than two seeds are paired on SST-2, RTE.")


def test_an_interval_beside_its_margin_is_not_said_to_hold_it(cases: dict[str, Findings]) -> None:
    """SST-2 alone would keep 97 %, but not after Holm over two tasks when the other one cannot enter."""
    found = claim(cases["no scores"], "quality/sst2")
    assert found.verdict == "inconclusive" and found.interval is not None and found.interval[0] > found.margin
    why = {row[0]: row[1] for row in cases["no scores"].statistics["undecided"]["rows"]}
    assert why["quality/sst2"] == "the interval excludes the margin (97 %), but not after correction for the number of tasks"


def test_an_alpha_below_that_of_the_interval_is_named_where_nothing_is_corrected(frames: Frames) -> None:
    """Overhead stands alone: its 90 % interval can exclude the limit while its p lies between a stricter alpha and 5 %."""
    found = claim(analyse(frames, STUDY, now=NOW), "overhead")
    assert found.verdict == "supported" and found.p is not None
    strict = analyse(frames, with_analysis(alpha=found.p / 2), now=NOW)
    why = {row[0]: row[1] for row in strict.statistics["undecided"]["rows"]}["overhead"]
    assert "interval excludes the margin" in why and "stricter than its 90%" in why and "number of tasks" not in why


def test_a_missing_step_says_why_wherever_it_is_named(cases: dict[str, Findings]) -> None:
    assert f"{RUN} (failed: no memory)" in claim(cases["a run is missing"], "quality/all").reasons[0].text
    assert "overhead does not enter: partial: missing serve (todo)" in claim(cases["not served"], "hypothesis").notes


def test_a_part_that_does_not_enter_is_no_reason_against_the_whole(cases: dict[str, Findings]) -> None:
    whole = claim(cases["no serving"], "hypothesis")
    assert whole.verdict == "supported" and whole.notes == ["overhead does not enter: the study has no serving part"]


@pytest.mark.parametrize("name", ["nobody learned", "one seed", "not served", "few launches", "twins differ"])
def test_a_reworded_sentence_changes_nothing_but_itself(
    frames: Frames, cases: dict[str, Findings], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The claims reach answer, advice, tables and limitations with other words for every reason, reservation and note."""
    labelled = statistical_analysis.labelled

    def reworded(claims: list[Claim], *rest: Any) -> list[Claim]:
        return [
            c.model_copy(
                update={
                    "reasons": [r.model_copy(update={"text": "other words"}) for r in c.reasons],
                    "reservations": [r.model_copy(update={"text": "other words"}) for r in c.reservations],
                    "notes": ["gate failed: partial: too few launches: not confirmatory: other words"],
                }
            )
            for c in labelled(claims, *rest)
        ]

    monkeypatch.setattr(statistical_analysis, "labelled", reworded)
    changed, study, missing = CASES[name][0](frames)
    found, before = analyse(changed, study, missing, now=NOW), cases[name]
    assert (found.answer, found.red_flags) == (before.answer, before.red_flags)
    apart = [new.text for new, old in zip(found.limitations, before.limitations, strict=True) if new != old]
    assert apart == ["Not every claim is confirmatory: other words."] * (name == "few launches")
    assert {k: v for k, v in found.statistics.items() if k != "undecided"} == {
        k: v for k, v in before.statistics.items() if k != "undecided"
    }
    rows = [[row[:1] + row[2:] for row in f.statistics["undecided"]["rows"]] for f in (found, before)]
    assert rows[0] == rows[1] and "other words" in str(found.statistics["undecided"]["rows"])


def test_everything_said_of_a_claim_has_its_place(cases: dict[str, Findings]) -> None:
    whole = claim(cases["nobody learned"], "quality/all")
    marked = whole.model_copy(update={"reservations": [Reservation(kind="few_seeds", text="s"), Reservation(kind="plan", text="p")]})
    shown = said(marked.model_copy(update={"reasons": [Reason(kind="gate_failed", text=t, task="rte") for t in "ab"], "notes": ["n"]}))
    assert shown == [
        "not confirmatory: p", "the estimate is the weakest task's: SST-2", "inconclusive because RTE cannot be decided: a; b", "n",
        "a first look: s",
    ]  # fmt: skip
