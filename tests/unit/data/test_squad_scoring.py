"""SQuAD v2 scoring against values worked out by hand from the official script's algorithm."""

import pytest

from tunescope.data.tasks import ScoredRow, get_task
from tunescope.data.tasks.squad_v2 import answer_from_text, best_threshold, exact_match, normalise_answer, token_f1


def row(prediction, golds=(), p=None, name="x"):
    return ScoredRow(name, None, tuple(golds), prediction, p)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Cat, a dog!", "cat dog"),
        ("an   apple\tthe\n", "apple"),
        ("theatre another", "theatre another"),  # articles only as whole words
        ("A.B.C.", "abc"),  # punctuation goes before articles: 'a' is no word here
        ("a-b", "ab"),
        ("the-end", "theend"),
        ("“The” café", "“ ” café"),  # only ASCII punctuation goes, and a curly quote is a word boundary
        ("ÉCOLE", "école"),
        ("$1,000.50", "100050"),
        ("...", ""),
        ("the", ""),
        ("", ""),
    ],
)
def test_normalisation(text, expected):
    assert normalise_answer(text) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "exact", "f1"),
    [
        ("the cat", ["Cat."], 1, 1),
        ("black cat", ["cat"], 0, 2 / 3),  # precision 1/2, recall 1
        ("cat cat", ["cat"], 0, 2 / 3),  # a bag: one of two counts
        ("cat sat", ["dog", "cat sat on"], 0, 0.8),  # best gold: precision 1, recall 2/3
        ("dog", ["cat"], 0, 0),
        ("", ["cat"], 0, 0),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("the", [], 1, 1),  # normalises to nothing
        ("", ["the"], 1, 1),  # so does this gold, which leaves the empty answer as the only gold
        ("", ["the", "cat"], 0, 0),  # an empty gold is dropped beside a real one
        ("École", ["école"], 1, 1),
    ],
)
def test_exact_and_f1(prediction, golds, exact, f1):
    assert exact_match(prediction, golds) == exact
    assert token_f1(prediction, golds) == pytest.approx(f1)


def test_aggregate_and_subsets():
    rows = [row("black cat", ["cat"]), row("dog", ["dog"]), row("", []), row("cat", []), row("", ["bird"])]
    found = {m.name: (m.value, m.n) for m in get_task("squad_v2").score(rows)}
    assert found["exact_match"] == (pytest.approx(2 / 5), 5)
    assert found["f1"] == (pytest.approx((2 / 3 + 1 + 1) / 5), 5)
    assert found["has_ans_exact"] == (pytest.approx(1 / 3), 3)
    assert found["has_ans_f1"] == (pytest.approx((2 / 3 + 1) / 3), 3)
    assert found["no_ans_accuracy"] == (pytest.approx(1 / 2), 2)
    assert "best_f1" not in found  # no probabilities, no sweep


def test_sweep_by_hand():
    # Start: 2 unanswerable rows = 2. In order of p: .1 right answer -> 3; .2 wrong answer to an unanswerable -> 2; .3 f1 2/3 -> 2.67;
    # .9 abstained on an unanswerable -> unchanged. Best 3 at .1.
    rows = [row("black cat", ["cat"], 0.3), row("", [], 0.9), row("dog", ["dog"], 0.1), row("cat", [], 0.2)]
    found = {m.name: m.value for m in get_task("squad_v2").score(rows)}
    assert found["best_f1"] == pytest.approx(3 / 4)
    assert found["best_f1_threshold"] == 0.1
    assert found["best_exact"] == pytest.approx(3 / 4)
    assert {m.name: m.unit for m in get_task("squad_v2").score(rows)}["best_f1_threshold"] == "probability"


def test_sweep_that_cannot_beat_abstaining():
    rows = [row("cat", [], 0.1), row("dog", ["cat"], 0.2)]
    assert best_threshold(rows, [0.0, 0.0]) == (0.5, 0.0)


def test_sweep_agrees_with_trying_every_threshold():
    """Without ties the sweep equals the best over thresholds, an answer being withdrawn where p exceeds the threshold."""
    import random

    rng = random.Random(3)
    for _ in range(50):
        rows, scores = [], []
        for n in range(12):
            golds = ["cat"] if rng.random() < 0.5 else []
            prediction = rng.choice(["", "cat", "black cat", "dog"])
            rows.append(row(prediction, golds, rng.random(), str(n)))
            scores.append(token_f1(prediction, golds))
        tried = [
            sum(s if r.no_answer_probability <= t else float(not r.golds) for r, s in zip(rows, scores, strict=True)) / len(rows)
            for t in [-1.0, *(r.no_answer_probability for r in rows)]
        ]
        assert best_threshold(rows, scores)[0] == pytest.approx(max(tried))


def test_row_order_does_not_matter():
    rows = [row("cat", ["cat"], 0.3, "a"), row("", [], 0.1, "b"), row("x", [], 0.2, "c"), row("dog", ["the dog"], 0.5, "d")]
    task = get_task("squad_v2")
    assert task.score(rows) == task.score(rows[::-1])


def test_empty_input_is_refused():
    with pytest.raises(ValueError, match="no predictions"):
        get_task("squad_v2").score([])


@pytest.mark.parametrize(
    ("text", "answer"),
    [(" unknown", ""), (" Unknown\nQ: more", ""), (" 12 May\nQ:", "12 May"), ("", ""), ("\n", ""), (" unknown man", "unknown man")],
)
def test_generated_text_to_answer(text, answer):
    assert answer_from_text(text) == answer
