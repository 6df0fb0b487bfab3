"""Prompts, targets and classification scores."""

import random

import pytest

from tunescope.data.tasks import ScoredRow, get_task
from tunescope.errors import StudyError

PAIR = {"sentence1": "One cat. ", "sentence2": " Two cats.", "label": 1, "idx": 7}


@pytest.mark.parametrize(
    ("name", "row", "prompt", "passage", "completion", "label"),
    [
        ("mrpc", PAIR, "A: One cat.\nB: Two cats.\nSame?", "Two cats.", " yes", "equivalent"),
        ("rte", PAIR, "Text: One cat.\nClaim: Two cats.\nSupported?", "One cat.", " no", "not_entailment"),
        ("sst2", {"sentence": "fine film ", "label": 1, "idx": 0}, "Review: fine film\nSentiment:", "fine film", " positive", "positive"),
        ("sst2", {"sentence": "fine film ", "label": -1, "idx": 0}, "Review: fine film\nSentiment:", "fine film", None, None),
    ],
)
def test_classification_examples(name, row, prompt, passage, completion, label):
    example = get_task(name).example(row | {"example_id": "train/3", "group": None})
    assert (example.prompt, example.passage, example.completion, example.label) == (prompt, passage, completion, label)
    assert (example.id, example.group) == ("train/3", "train/3")


def squad(golds):
    answers = {"text": golds, "answer_start": [0] * len(golds)}
    return {"id": "q1", "title": "Cats", "context": "Tom is a cat.", "question": " Who is Tom? ", "answers": answers}


def test_squad_examples():
    example = get_task("squad_v2").example(squad(["a cat", "cat"]))
    assert example.prompt == "Passage: Tom is a cat.\nQ: Who is Tom?\nA:"
    assert (example.passage, example.completion, example.golds, example.label) == ("Tom is a cat.", " a cat", ("a cat", "cat"), None)
    assert example.article == "Cats" and example.group.startswith("Cats/")
    assert get_task("squad_v2").example(squad([])).completion == " unknown"


def test_squad_group_is_the_paragraph():
    one, two = squad(["cat"]), squad([]) | {"question": "Why?"}
    other = squad([]) | {"context": "Tim is a dog."}
    groups = [get_task("squad_v2").example(r).group for r in (one, two, other)]
    assert groups[0] == groups[1] != groups[2]


@pytest.mark.parametrize("name", ["mrpc", "sst2", "rte"])
def test_no_verbaliser_is_a_prefix_of_another(name):
    task = get_task(name)
    assert len(task.verbalisers) == len(task.labels)
    assert not any(a != b and a.startswith(b) for a in task.verbalisers for b in task.verbalisers)
    assert all(v.startswith(" ") for v in task.verbalisers)


def rows(pairs):
    return [ScoredRow(str(i), gold, (), predicted) for i, (gold, predicted) in enumerate(pairs)]


def test_accuracy_and_f1_in_closed_form():
    yes, no = "equivalent", "not_equivalent"
    found = get_task("mrpc").score(rows([(yes, yes)] * 5 + [(yes, no)] * 2 + [(no, yes)] * 1 + [(no, no)] * 4))
    assert [(m.name, m.value, m.n, m.split, m.unit) for m in found] == [
        ("accuracy", 9 / 12, 12, "test", "fraction"), ("f1", 10 / 13, 12, "test", "fraction"),
    ]  # fmt: skip


def test_f1_without_the_positive_class_is_zero():
    no = "not_equivalent"
    assert [m.value for m in get_task("mrpc").score(rows([(no, no)]))] == [1.0, 0.0]


def test_scores_agree_with_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = random.Random(1)
    labels = get_task("mrpc").labels
    pairs = [(rng.choice(labels), rng.choice(labels)) for _ in range(200)]
    found = {m.name: m.value for m in get_task("mrpc").score(rows(pairs))}
    gold, predicted = zip(*pairs, strict=True)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(gold, predicted))
    assert found["f1"] == pytest.approx(metrics.f1_score(gold, predicted, pos_label="equivalent"))


def test_unlabelled_rows_are_not_scored():
    with pytest.raises(ValueError, match="no gold label, first: 1"):
        get_task("sst2").score(rows([("positive", "positive"), (None, "negative")]))
    with pytest.raises(ValueError, match="no predictions"):
        get_task("sst2").score([])


def test_a_prediction_outside_the_labels_is_wrong():
    assert get_task("sst2").score(rows([("positive", "maybe"), ("negative", "negative")]))[0].value == 0.5


def test_unknown_task_names_the_nearest():
    with pytest.raises(StudyError, match="did you mean 'sst2'"):
        get_task("SST-2")
    with pytest.raises(StudyError, match="known tasks: mrpc, sst2, rte, squad_v2"):
        get_task("qnli-x-y-z")
