"""Baselines against counts one can make by hand, and against the known answers of the real test sets."""

import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tunescope.data.distribution import Folder, glue_rows, mrpc_rows, squad_rows
from tunescope.data.prepare import prepare
from tunescope.data.tasks import Example, get_task
from tunescope.records import StepContext
from tunescope.study.inputs import BaselineInputs
from tunescope.study.schema import DataSpec, Limits, ModelSpec
from tunescope.train.baselines import (
    MAX_SPAN_WORDS,
    deviations,
    intervals,
    majority,
    mean_metrics,
    metric_ratio,
    pairwise_mcnemar,
    random_span,
    random_system,
    remarks,
    run_baseline,
    training_rates,
)  # fmt: skip
from tunescope.train.bootstrap import Ratio, bootstrap_interval
from tunescope.train.published import PUBLISHED, published_for

REAL = Path(os.environ.get("TUNESCOPE_REAL_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
real_data = pytest.mark.skipif(not REAL.is_dir(), reason="no official distribution files; set TUNESCOPE_REAL_DATA to their folder")
MRPC, SQUAD = get_task("mrpc"), get_task("squad_v2")


def labelled(counts: dict[str, int]) -> list[Example]:
    names = [name for name, n in counts.items() for _ in range(n)]
    return [Example(f"test/{i}", "", "some text", "", None, name, group=f"test/{i}") for i, name in enumerate(names)]


def questions(answerable: int, blank: int, per_group: int = 1) -> list[Example]:
    golds = [("in Normandy",)] * answerable + [()] * blank
    passage = "The Normans gave their name to Normandy, a region in France."
    return [Example(f"test/{i}", "", passage, "", None, None, golds=g, group=str(i // per_group)) for i, g in enumerate(golds)]


def test_majority_predicts_the_commonest_training_label():
    rates = training_rates(MRPC, labelled({"equivalent": 3, "not_equivalent": 1}))
    assert rates == {"not_equivalent": 0.25, "equivalent": 0.75}
    system = majority(MRPC, rates, labelled({"equivalent": 4, "not_equivalent": 6}))
    assert {m.name: m.value for m in system.metrics} == {"accuracy": 0.4, "f1": pytest.approx(2 * 4 / (2 * 4 + 6))}


def test_majority_takes_the_first_of_equal_labels():
    rates = training_rates(MRPC, labelled({"equivalent": 2, "not_equivalent": 2}))
    assert {p.prediction for p in majority(MRPC, rates, labelled({"equivalent": 2})).predictions} == {"not_equivalent"}


def test_majority_of_questions_abstains_whatever_the_training_rate():
    system = majority(SQUAD, training_rates(SQUAD, questions(9, 1)), questions(3, 7))
    values = {m.name: m.value for m in system.metrics}
    assert (values["exact_match"], values["f1"], values["no_ans_accuracy"]) == (0.7, 0.7, 1.0)
    assert {p.prediction for p in system.predictions} == {""}


def test_random_labels_follow_the_training_distribution():
    test = labelled({"equivalent": 4000})
    drawn = Counter(p.prediction for p in random_system(MRPC, {"not_equivalent": 0.3, "equivalent": 0.7}, test, 0).predictions)
    assert stats.binomtest(drawn["equivalent"], 4000, 0.7).pvalue > 1e-4


def test_random_systems_differ_by_seed_and_repeat_themselves():
    rates, test = {"not_equivalent": 0.5, "equivalent": 0.5}, labelled({"equivalent": 200})
    first, again, other = (random_system(MRPC, rates, test, k).predictions for k in (0, 0, 1))
    assert first == again != other


def test_random_answers_abstain_at_the_training_rate_and_never_see_the_golds():
    test, rates = questions(1500, 500), {"answerable": 0.8, "unanswerable": 0.2}
    answers = [p.prediction for p in random_system(SQUAD, rates, test, 0).predictions]
    assert stats.binomtest(answers.count(""), 2000, 0.2).pvalue > 1e-4
    assert all(a in test[0].passage for a in answers)
    blind = [replace(e, golds=()) for e in test]
    assert [p.prediction for p in random_system(SQUAD, rates, blind, 0).predictions] == answers


def test_random_spans_reach_every_word():
    rng, passage = np.random.default_rng(0), " ".join(f"w{i}" for i in range(15))
    spans = [random_span(passage, rng).split() for _ in range(3000)]
    assert {len(s) for s in spans} == set(range(1, MAX_SPAN_WORDS + 1))
    assert {word for s in spans for word in s} == set(passage.split())
    assert stats.chisquare([sum(s[0] == w for s in spans) for w in passage.split()]).pvalue > 1e-4
    assert random_span(" ", rng) == ""


@pytest.mark.parametrize("task", [MRPC, SQUAD], ids=["mrpc", "squad_v2"])
def test_sums_per_cluster_give_back_the_tasks_metrics(task):
    test = labelled({"equivalent": 60, "not_equivalent": 40}) if task is MRPC else questions(60, 40, per_group=7)
    rates = {"not_equivalent": 0.4, "equivalent": 0.6} if task is MRPC else {"answerable": 0.6, "unanswerable": 0.4}
    for system in (majority(task, rates, test), random_system(task, rates, test, 1)):
        for metric in system.metrics:
            if metric.name in ("accuracy", "f1", "exact_match"):
                ratio = metric_ratio(task, system.predictions, metric.name)
                assert ratio.top_C.sum() / ratio.bottom_C.sum() == pytest.approx(metric.value)
                assert len(ratio.top_C) == len({e.group for e in test})


def accuracy(right: int, n: int, copies: int = 1) -> Ratio:
    top = np.zeros(n)
    top[:right] = copies
    return Ratio(top, np.full(n, float(copies)))


def test_interval_of_an_accuracy_agrees_with_the_binomial_one():
    found = bootstrap_interval([accuracy(280, 400)], 4000, np.random.default_rng(0))
    exact = stats.binomtest(280, 400).proportion_ci(method="wilson")
    assert found == pytest.approx([exact.low, exact.high], abs=0.008)


def test_intervals_cover_at_their_level():
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        low, high = bootstrap_interval([accuracy(rng.binomial(120, 0.6), 120)], 300, rng)
        hits += low <= 0.6 <= high
    assert stats.binomtest(hits, 200, 0.95).pvalue > 1e-3


def test_copies_of_an_example_add_no_information():
    rng = [np.random.default_rng(3) for _ in range(3)]
    single = bootstrap_interval([accuracy(60, 100)], 1000, rng[0])
    assert bootstrap_interval([accuracy(60, 100, copies=4)], 1000, rng[1]) == pytest.approx(single)
    spread = bootstrap_interval([accuracy(240, 400)], 1000, rng[2])
    assert (spread[1] - spread[0]) / (single[1] - single[0]) == pytest.approx(0.5, abs=0.1)


def test_the_mean_over_seeds_varies_less_than_one_seed():
    rng = np.random.default_rng(0)
    ratios = [Ratio(rng.integers(0, 2, 300).astype(float), np.ones(300)) for _ in range(5)]
    one, mean = bootstrap_interval(ratios[:1], 1000, rng), bootstrap_interval(ratios, 1000, rng)
    assert (mean[1] - mean[0]) / (one[1] - one[0]) == pytest.approx(5**-0.5, abs=0.1)


@pytest.mark.parametrize(("right", "limits"), [(50, [0.025 ** (1 / 50), 1.0]), (0, [0.0, 1 - 0.025 ** (1 / 50)])])
def test_constant_outcomes_get_the_exact_interval(right, limits):
    assert bootstrap_interval([accuracy(right, 50)], 1000, np.random.default_rng(0)) == pytest.approx(limits)


def test_one_example_gets_an_interval_too():
    assert bootstrap_interval([accuracy(1, 1)], 100, np.random.default_rng(0)) == pytest.approx([0.025, 1.0])
    assert bootstrap_interval([Ratio(np.zeros(3), np.zeros(3))], 100, np.random.default_rng(0)) == [0.0, 1.0]


def test_mcnemar_equals_the_binomial_test_of_the_discordant_pairs():
    rates, test = {"not_equivalent": 0.4, "equivalent": 0.6}, labelled({"equivalent": 70, "not_equivalent": 50})
    systems = [majority(MRPC, rates, test), *(random_system(MRPC, rates, test, k) for k in range(3))]
    rows = pairwise_mcnemar(systems)
    assert [(r["a"], r["b"]) for r in rows] == [("majority", f"random-{k}") for k in range(3)]
    for row, other in zip(rows, systems[1:], strict=True):
        pairs = [(a.correct, b.correct) for a, b in zip(systems[0].predictions, other.predictions, strict=True)]
        assert (row["only_a"], row["only_b"]) == (pairs.count((1.0, 0.0)), pairs.count((0.0, 1.0)))
        assert row["p"] == pytest.approx(stats.binomtest(row["only_a"], row["only_a"] + row["only_b"], 0.5).pvalue)
    raw, adjusted = sorted(r["p"] for r in rows), sorted(r["p_holm"] for r in rows)
    assert adjusted[0] == pytest.approx(min(1.0, 3 * raw[0])) and all(a >= p for a, p in zip(adjusted, raw, strict=True))


def test_mean_and_deviation_over_seeds():
    rates, test = {"not_equivalent": 0.5, "equivalent": 0.5}, labelled({"equivalent": 30, "not_equivalent": 20})
    systems = [random_system(MRPC, rates, test, k) for k in range(4)]
    values = [s.metrics[0].value for s in systems]
    assert mean_metrics(systems)[0].value == pytest.approx(np.mean(values))
    assert deviations(systems)["random/accuracy"] == pytest.approx(np.std(values, ddof=1))
    assert deviations(systems[:1])["random/accuracy"] is None


def test_published_references_name_source_split_and_metric():
    assert {r.task for r in PUBLISHED} == {"mrpc", "sst2", "rte", "squad_v2"}
    for row in PUBLISHED:
        assert row.source and row.split in ("dev", "test") and (row.value is None) == (row.expected is not None)
        assert row.expected is not None or 0 < row.value < 1
    assert all(row["measured_here"] is False for row in published_for("sst2"))
    assert {(r.system, r.value) for r in PUBLISHED if r.task == "sst2" and r.value} == {("RoBERTa-base", 0.948), ("BERT-base", 0.935)}


def test_what_is_expected_of_an_untuned_model_of_about_1b():
    found = {r.task: (r.metric, r.expected) for r in PUBLISHED if r.expected}
    assert found == {
        "sst2": ("accuracy", (0.80, 0.85)), "mrpc": ("accuracy", (0.60, 0.70)), "rte": ("accuracy", (0.55, 0.65)),
        "squad_v2": ("exact_match", (0.20, 0.30)),
    }  # fmt: skip


class Silent:
    def log(self, values, step): ...


def baseline_step(tmp_path: Path, task: str, name: str):
    data, folder = tmp_path / "data", tmp_path / name
    prepare(task, DataSpec(source="sample"), Limits(train=60, selection=20, test=20), 12, data)
    folder.mkdir()
    inputs = BaselineInputs(task=task, model=ModelSpec(name="sprout-2m"), max_length=512, eval_batch=8, random_seeds=2, bootstrap_draws=200)
    return folder, run_baseline(inputs, StepContext(folder=folder, data_dir=data, upstream={}, device="cpu", tracker=Silent()))


@pytest.mark.parametrize("task", ["mrpc", "squad_v2"])
def test_the_step_writes_every_system_and_repeats_itself(tmp_path, task):
    (folder, result), (again, repeated) = (baseline_step(tmp_path, task, name) for name in "ab")
    frame = pd.read_parquet(folder / "predictions.parquet")
    assert frame.groupby("system").size().to_dict() == {"majority": 20, "random-0": 20, "random-1": 20, "base": 20}
    values = {m.name: m.value for m in result.metrics}
    for system, rows in frame.groupby("system"):
        assert values[f"{system}/{'accuracy' if task == 'mrpc' else 'exact_match'}"] == pytest.approx(rows.correct.mean())
    document = json.loads((folder / "baselines.json").read_text())
    assert document["intervals"] == result.outputs["intervals"] and len(document["mcnemar"]) == 5
    for key, (low, high) in document["intervals"].items():
        assert 0 <= low <= values[key] <= high <= 1
    for name in result.content:
        assert (folder / name).read_bytes() == (again / name).read_bytes()
    assert result == repeated


def test_a_base_below_the_majority_is_said():
    test = labelled({"equivalent": 6, "not_equivalent": 4})
    systems = {
        "majority": majority(MRPC, {"not_equivalent": 0.2, "equivalent": 0.8}, test),
        "base": majority(MRPC, {"not_equivalent": 0.8, "equivalent": 0.2}, test),
    }
    metrics = [m.model_copy(update={"name": f"{name}/{m.name}"}) for name, s in systems.items() for m in s.metrics]
    assert remarks(MRPC, metrics) == ["the untuned base (accuracy 0.400) lies below the majority class (0.600)"]


def real_parts(task: str) -> tuple[list[Example], list[Example]]:
    folder, formulation = Folder(REAL, task), get_task(task)
    if task == "mrpc":
        rows = [mrpc_rows(folder.read(f"msr_paraphrase_{part}.txt"))[0] for part in ("train", "test")]
    elif task == "squad_v2":
        rows = [squad_rows(folder.read("dev-v2.0.json"))] * 2
    else:
        rows = [glue_rows(folder.read(f"{part}.tsv")) for part in ("train", "dev")]
    train, test = ([formulation.example(r | {"example_id": f"{i}"}) for i, r in enumerate(part)] for part in rows)
    return train, test


@real_data
@pytest.mark.parametrize(
    ("task", "metric", "percent", "n"),
    [
        ("mrpc", "accuracy", 66.5, 1725),
        ("sst2", "accuracy", 50.9, 872),
        ("rte", "accuracy", 52.7, 277),
        ("squad_v2", "f1", 50.07, 11873),
    ],
)
def test_known_answers_of_the_real_test_sets(task, metric, percent, n):
    train, test = real_parts(task)
    system = majority(get_task(task), training_rates(get_task(task), train), test)
    found = {m.name: m for m in system.metrics}[metric]
    assert found.n == n and round(100 * found.value, 2 if task == "squad_v2" else 1) == percent
    low, high = intervals(get_task(task), {"majority": [system]}, 1000)[f"majority/{metric}"]
    assert low < found.value < high and 0.01 < high - low < 0.13
