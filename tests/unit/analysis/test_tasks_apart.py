"""A task whose verdict differs from the one on all tasks gets a word, and only then; the word is true of the rule that decided."""

import pytest

from tunescope.analysis.answer import answer, margin_percent
from tunescope.analysis.findings import Claim, Reason
from tunescope.analysis.tasks_apart import tasks_apart
from tunescope.analysis.verdicts import comparable, decide_family, overall
from tunescope.study.schema import AnalysisSpec

ALPHA, SPEC = 0.05, AnalysisSpec()
UNLEARNED = [Reason(kind="gate_failed", text="gate failed", task="rte")]


def a_claim(task: str, p: float, reasons: list[Reason] | None = None, dimension: str = "quality") -> Claim:
    return Claim(
        id=f"{dimension}/{task}", dimension=dimension, task=task, statement="", verdict="inconclusive", estimate=0.786, estimate_name="",
        interval=(0.698, 0.883), interval_level=0.9, margin=0.97, p=p, p_opposite=1 - p, p_adjusted=None, df=None, attainable_p=None,
        method="", n_seeds=3, n_examples=100, n_launches=None, reasons=reasons or [], notes=[], steps=[f"train/{task}"],
    )  # fmt: skip


def family(**ps: float) -> list[Claim]:
    """The claims of the tasks and the one on all of them; a negative p is that of a task that was not learned."""
    tasks = decide_family([a_claim(task, abs(p), UNLEARNED if p < 0 else None) for task, p in ps.items()], ALPHA)
    return [*tasks, overall(tasks, "quality/all", "", ALPHA)]


def test_a_contradicted_task_beside_an_undecided_whole_is_explained() -> None:
    claims = family(sst2=0.999, rte=-0.4, mrpc=-1e-9)
    assert [c.verdict for c in claims] == ["contradicted", "inconclusive", "inconclusive", "inconclusive"]
    ((text, steps),) = tasks_apart(claims, SPEC)
    assert "contradicted for SST-2 (78.6 % of full, 90 % interval 69.8 % to 88.3 %)" in text and "it is inconclusive" in text
    assert "no verdict while one of them cannot be judged, and RTE, MRPC cannot" in text
    assert steps == ["train/mrpc", "train/rte", "train/sst2"]


def test_no_number_of_an_unlearned_task_stands_beside_anothers_estimate() -> None:
    tasks = family(sst2=0.01, rte=-0.47, mrpc=-0.9)[:-1]
    unequal = [
        c.model_copy(update={"n_examples": 160 if c.task == "sst2" else 204, "n_seeds": 5 if c.task == "sst2" else 3}) for c in tasks
    ]
    whole = overall(unequal, "quality/all", "", ALPHA)
    assert (whole.weakest_task, whole.p, whole.p_opposite, whole.n_examples, whole.n_seeds) == ("sst2", 0.01, 0.99, 160, 5)
    assert whole.verdict == "inconclusive" and [r.task for r in whole.reasons] == ["rte", "rte"]
    assert whole.steps == ["train/mrpc", "train/rte", "train/sst2"] and "over 1 task (" in whole.method


def test_where_nothing_was_learned_the_largest_p_of_all_remains() -> None:
    whole = family(sst2=-0.2, rte=-0.47)[-1]
    assert whole.p == 0.47 and whole.verdict == "inconclusive"


def test_a_supported_task_beside_a_merely_undecided_one_names_it() -> None:
    ((text, _),) = tasks_apart(family(sst2=1e-4, rte=0.4), SPEC)
    assert "supported for SST-2" in text and "not decided is RTE" in text and "cannot be judged" not in text


def test_a_whole_that_fails_with_one_task_says_which() -> None:
    claims = family(sst2=0.9999, rte=1e-4, mrpc=-0.5)
    assert claims[-1].verdict == "inconclusive", "a task without a verdict keeps the whole open"
    claims = family(sst2=0.9999, rte=1e-4)
    assert claims[-1].verdict == "contradicted"
    ((text, _),) = tasks_apart(claims, SPEC)
    assert "fails with one task, here SST-2" in text and "supported for RTE" in text


def test_a_supported_whole_beside_tasks_that_holm_leaves_open() -> None:
    claims = family(sst2=0.03, rte=0.03)
    assert [c.verdict for c in claims] == ["inconclusive", "inconclusive", "supported"]
    assert "corrected for the number of tasks (Holm)" in tasks_apart(claims, SPEC)[0][0]


@pytest.mark.parametrize("ps", [{"sst2": 1e-4, "rte": 1e-4}, {"sst2": 0.4, "rte": 0.5}, {"sst2": -0.4, "rte": -0.5}])
def test_where_all_verdicts_agree_nothing_is_said(ps: dict[str, float]) -> None:
    assert tasks_apart(family(**ps), SPEC) == []


def test_the_answer_has_no_numbers_when_no_task_was_learned() -> None:
    def quality(**ps: float) -> str:
        parts = [*family(**ps), *(c.model_copy(update={"id": "drift/all", "dimension": "drift"}) for c in family(**ps)[-1:])]
        overhead = a_claim("none", 0.5, dimension="overhead").model_copy(update={"id": "overhead", "task": None, "estimate": None})
        whole = overhead.model_copy(update={"id": "hypothesis", "dimension": "hypothesis"})
        return answer([*parts, overhead, whole], SPEC, 1, 1)[0]

    assert "78.6 % of full" in quality(sst2=0.6, rte=-0.4) and "78.6" not in quality(sst2=-0.6, rte=-0.4)
    assert "does not beat its baselines on SST-2, RTE" in quality(sst2=-0.6, rte=-0.4)


def test_the_answer_names_the_margin_that_was_tested() -> None:
    """98 % would be a stronger claim than the registered 97.5 %."""
    assert margin_percent(0.97) == "97 %" and margin_percent(0.07) == "7 %"
    spec = SPEC.model_copy(update={"quality_retained": 0.975, "overhead_limit": 0.004})
    parts = [*family(sst2=0.6), *(c.model_copy(update={"id": "drift/all", "dimension": "drift"}) for c in family(sst2=0.6)[-1:])]
    overhead = a_claim("none", 0.5, dimension="overhead").model_copy(update={"id": "overhead", "task": None, "estimate": 0.1})
    whole = overhead.model_copy(update={"id": "hypothesis", "dimension": "hypothesis"})
    quality, _, serving = answer([*parts, overhead, whole], spec, 1, 1)
    assert "97.5 %" in quality and "0.4 %" in serving


def test_numbers_of_a_task_that_was_not_learned_compare_nothing_whoever_shows_them() -> None:
    some, none = family(sst2=0.999, rte=-0.4), family(sst2=-0.4, rte=-0.4)
    assert [comparable(c, some) for c in some] == [True, False, True]
    assert [comparable(c, none) for c in none] == [False, False, False]
