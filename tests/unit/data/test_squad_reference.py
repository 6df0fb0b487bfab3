"""SQuAD v2 scoring against an independent writing of the published evaluation, and against transformers' port, on adversarial answers.

The reference below follows the evaluation as published (lower case, strip ASCII punctuation, drop articles, collapse white space; best over
golds; token F1 with the rule for empty answers; threshold sweep by rising no-answer probability), with none of the code under test.
"""

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.data.tasks import ScoredRow, get_task
from tunescope.data.tasks.squad_v2 import exact_match, normalise_answer, token_f1

PIECES = (
    "a", "A", "an", "the", "The", "THE", "a.", "the-", "them", "cat", "Cat's", "cat", "dog", "École", "école", "İstanbul", "ſtraße", "ﬁn",
    "“the”", "—", "$1,000.50", "1000", "U.S.A.", "…", "...", "\u00a0", "\u200b", "\t", "\n", "naïve", "nai\u0308ve", "北京",
    "a北", "_a_", "",
)  # fmt: skip
answers = st.lists(st.sampled_from(PIECES), max_size=4).map(" ".join) | st.text(max_size=8)
rows = st.lists(
    st.tuples(answers, st.lists(answers, max_size=3), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1)), min_size=1, max_size=9
)


def words(text: str) -> list[str]:
    """Normalised tokens. An article counts as one where no word character touches it."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    out, i = [], 0
    while i < len(kept):
        end = i
        while end < len(kept) and (kept[end].isalnum() or kept[end] == "_" or _word(kept[end])):
            end += 1
        run = kept[i:end]
        out.append(" " if run in ("a", "an", "the") else run)
        if end < len(kept):
            out.append(kept[end])
        i = max(end + 1, i + 1)
    return "".join(out).split()


def _word(c: str) -> bool:
    """What a regular expression takes for a word character, which is wider than letters and digits for a few marks."""
    import re

    return re.fullmatch(r"\w", c) is not None


def em(gold: str, said: str) -> float:
    return 1.0 if words(gold) == words(said) else 0.0


def f1(gold: str, said: str) -> float:
    g, s = words(gold), words(said)
    if not g or not s:
        return 1.0 if g == s else 0.0
    left, same = list(g), 0
    for token in s:
        if token in left:
            left.remove(token)
            same += 1
    return 0.0 if not same else 2 * (same / len(s)) * (same / len(g)) / (same / len(s) + same / len(g))


def best(golds: list[str], said: str, score) -> float:
    kept = [g for g in golds if words(g)] or [""]
    return max(score(g, said) for g in kept)


def official(examples) -> dict[str, float]:
    """Every figure of the published evaluation, as fractions."""
    scores = {"exact": [best(g, p, em) for p, g, _ in examples], "f1": [best(g, p, f1) for p, g, _ in examples]}
    has = [bool(g) for _, g, _ in examples]
    out = {"exact_match": sum(scores["exact"]) / len(has), "f1": sum(scores["f1"]) / len(has)}
    if any(has):
        out["has_ans_exact"], out["has_ans_f1"] = (sum(s for s, h in zip(scores[k], has, strict=True) if h) / sum(has) for k in scores)
    if not all(has):
        out["no_ans_accuracy"] = sum(s for s, h in zip(scores["exact"], has, strict=True) if not h) / has.count(False)
    for name, values in (("best_exact", scores["exact"]), ("best_f1", scores["f1"])):
        total = top = has.count(False)
        at = 0.0
        for k in sorted(range(len(has)), key=lambda k: examples[k][2]):
            total += values[k] if has[k] else -1 if examples[k][0] else 0
            if total > top:
                top, at = total, examples[k][2]
        out[name], out[f"{name}_threshold"] = top / len(has), at
    return out


def ours(examples) -> dict[str, float]:
    found = get_task("squad_v2").score([ScoredRow(str(k), None, tuple(g), p, n) for k, (p, g, n) in enumerate(examples)])
    return {m.name: m.value for m in found}


@settings(max_examples=600, deadline=None)
@given(answers, answers)
def test_normalisation_and_pair_scores(gold, said):
    assert normalise_answer(said).split() == words(said)
    assert exact_match(said, [gold]) == best([gold], said, em)
    assert token_f1(said, [gold]) == pytest.approx(best([gold], said, f1), abs=1e-15)


@settings(max_examples=400, deadline=None)
@given(rows)
def test_every_figure_equals_the_published_evaluation(examples):
    found, expected = ours(examples), official(examples)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


@settings(max_examples=100, deadline=None)
@given(rows)
def test_every_figure_equals_the_port_in_transformers(examples):
    port = pytest.importorskip("transformers.data.metrics.squad_metrics")
    golds = {str(k): [g for g in gs if port.normalize_answer(g)] or [""] for k, (_, gs, _) in enumerate(examples)}
    said = {str(k): p for k, (p, _, _) in enumerate(examples)}
    none = {str(k): n for k, (_, _, n) in enumerate(examples)}
    has = {str(k): bool(gs) for k, (_, gs, _) in enumerate(examples)}
    exact = {k: max(port.compute_exact(g, said[k]) for g in golds[k]) for k in golds}
    token = {k: max(port.compute_f1(g, said[k]) for g in golds[k]) for k in golds}
    found: dict = {}
    port.find_all_best_thresh(found, said, exact, token, none, has)
    mine = ours(examples)
    assert mine["exact_match"] == pytest.approx(sum(exact.values()) / len(exact), abs=1e-12)
    assert mine["f1"] == pytest.approx(sum(token.values()) / len(token), abs=1e-12)
    for name, theirs in (("best_exact", "best_exact"), ("best_f1", "best_f1")):
        assert mine[name] == pytest.approx(found[theirs] / 100, abs=1e-12)
    assert (mine["best_exact_threshold"], mine["best_f1_threshold"]) == (found["best_exact_thresh"], found["best_f1_thresh"])
