"""SQuAD v2: answer from the passage, or abstain. Scored as the official evaluate-v2.0 script does."""

import hashlib
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tunescope.records import Metric
from tunescope.study.schema import TaskName

from .base import Example, Row, ScoredRow, fraction, row_id

ABSTAIN = "unknown"
"""The word a model generates for "the passage does not say"; it stands for the empty answer."""
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
_PUNCTUATION = frozenset(string.punctuation)


def answer_from_text(generated: str) -> str:
    """The answer in a generated completion: its first line, empty when it is the abstaining word."""
    lines = generated.strip().splitlines()
    answer = lines[0].strip() if lines else ""
    return "" if answer.lower() == ABSTAIN else answer


def normalise_answer(text: str) -> str:
    """Lower case, no ASCII punctuation, no articles, single spaces; in the official order."""
    text = "".join(c for c in text.lower() if c not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 when the normalised prediction equals any normalised gold (no golds: the empty answer), else 0.0."""
    return max(float(normalise_answer(gold) == normalise_answer(prediction)) for gold in _effective(golds))


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Best F1 over golds on bags of normalised tokens; when either side has no token, 1.0 if both have none."""
    return max(_f1(gold, prediction) for gold in _effective(golds))


@dataclass(frozen=True)
class _SquadV2:
    """The SQuAD v2 task."""

    name: TaskName = "squad_v2"
    kind: Literal["classification", "qa"] = "qa"
    labels: tuple[str, ...] = ()
    verbalisers: tuple[str, ...] = ()
    primary_metric: str = "f1"
    text_columns: tuple[str, ...] = ("context", "question")

    def example(self, row: Row) -> Example:
        """Build the prompt of a row; its target is the first gold answer, or the abstaining word."""
        context, golds = row["context"], tuple(row["answers"]["text"])
        paragraph = hashlib.sha256(context.encode()).hexdigest()[:12]
        return Example(
            row_id(row), "Passage: ", context.strip(), f"\nQ: {row['question'].strip()}\nA:",
            f" {golds[0].strip()}" if golds else f" {ABSTAIN}", None, golds, group=f"{row['title']}/{paragraph}", article=row["title"],
        )  # fmt: skip

    def score(self, rows: list[ScoredRow]) -> list[Metric]:
        """All figures of the official script, as fractions; the threshold sweep only when every row has a no-answer probability.

        A subset without rows (no answerable, or no unanswerable question) has no figure.

        Raises:
            ValueError: no rows.
        """
        if not rows:
            raise ValueError("squad_v2: no predictions to score")
        exact = [exact_match(r.prediction, r.golds) for r in rows]
        f1 = [token_f1(r.prediction, r.golds) for r in rows]
        answerable = [bool(r.golds) for r in rows]
        metrics = [fraction("f1", _mean(f1), len(rows)), fraction("exact_match", _mean(exact), len(rows))]
        n = sum(answerable)
        if n:
            metrics.append(fraction("has_ans_f1", _mean([s for s, a in zip(f1, answerable, strict=True) if a]), n))
            metrics.append(fraction("has_ans_exact", _mean([s for s, a in zip(exact, answerable, strict=True) if a]), n))
        if n < len(rows):
            metrics.append(fraction("no_ans_accuracy", _mean([s for s, a in zip(exact, answerable, strict=True) if not a]), len(rows) - n))
        return metrics + _sweep(rows, exact, f1)


def best_threshold(rows: Sequence[ScoredRow], scores: Sequence[float]) -> tuple[float, float]:
    """Best mean score when answers whose no-answer probability exceeds a threshold are withdrawn, and that threshold.

    The official sweep: start from abstaining everywhere, then admit answers in order of rising no-answer probability. Among equal
    probabilities it may stop in between, exactly as the script does.
    """
    current = float(sum(not r.golds for r in rows))
    best, threshold = current, 0.0
    for i in sorted(range(len(rows)), key=lambda i: rows[i].no_answer_probability or 0.0):
        row = rows[i]
        current += scores[i] if row.golds else (-1.0 if row.prediction else 0.0)
        if current > best:
            best, threshold = current, float(row.no_answer_probability or 0.0)
    return best / len(rows), threshold


def _sweep(rows: list[ScoredRow], exact: list[float], f1: list[float]) -> list[Metric]:
    if any(r.no_answer_probability is None for r in rows):
        return []
    found = []
    for name, scores in (("best_exact", exact), ("best_f1", f1)):
        best, threshold = best_threshold(rows, scores)
        at = Metric(name=f"{name}_threshold", value=threshold, unit="probability", split="test", n=len(rows))
        found += [fraction(name, best, len(rows)), at]
    return found


def _effective(golds: Sequence[str]) -> list[str]:
    """Golds that survive normalisation; none left means the empty answer is the gold."""
    return [g for g in golds if normalise_answer(g)] or [""]


def _f1(gold: str, prediction: str) -> float:
    gold_tokens, tokens = normalise_answer(gold).split(), normalise_answer(prediction).split()
    if not gold_tokens or not tokens:
        return float(gold_tokens == tokens)
    same = sum((Counter(gold_tokens) & Counter(tokens)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(tokens), same / len(gold_tokens)
    return 2 * precision * recall / (precision + recall)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


TASK = _SquadV2()
