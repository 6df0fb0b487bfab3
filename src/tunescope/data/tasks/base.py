"""What a task is: a prompt with one part that may be shortened, a completion, and a scorer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tunescope.records import Metric
from tunescope.study.schema import TaskName

Row = Mapping[str, Any]
"""One row in the publisher's columns; `example_id` and `group` are added when it is read from disk."""


@dataclass(frozen=True)
class Example:
    """One prompt with its target. The prompt is `before + passage + after`; only `passage` may be shortened, from its end."""

    id: str
    """`<split>/<row>`."""
    before: str
    passage: str
    after: str
    completion: str | None
    """Training target with its leading space; None when the row has no label."""
    label: str | None
    """Gold label name of a classification row; None for QA and for unlabelled rows."""
    golds: tuple[str, ...] = ()
    """Gold answers of a QA row; empty means unanswerable."""
    group: str = ""
    """Cluster: paragraph (SQuAD), source sentence (SST-2), else the id."""
    article: str | None = None

    @property
    def prompt(self) -> str:
        return self.before + self.passage + self.after


@dataclass(frozen=True)
class ScoredRow:
    """One prediction beside its gold."""

    example_id: str
    label: str | None
    golds: tuple[str, ...]
    prediction: str
    """A label name, or an answer text where the empty text abstains."""
    no_answer_probability: float | None = None


class Task(Protocol):
    """One task of the study."""

    @property
    def name(self) -> TaskName: ...
    @property
    def kind(self) -> Literal["classification", "qa"]: ...
    @property
    def labels(self) -> tuple[str, ...]:
        """Label names; the index is the data set's label."""
        ...

    @property
    def verbalisers(self) -> tuple[str, ...]:
        """Completion of each label, in the same order; none is a prefix of another. Empty for QA."""
        ...

    @property
    def primary_metric(self) -> str: ...
    @property
    def text_columns(self) -> tuple[str, ...]:
        """Columns that make up the input."""
        ...

    def example(self, row: Row) -> Example: ...
    def score(self, rows: list[ScoredRow]) -> list[Metric]: ...


@dataclass(frozen=True)
class Classification:
    """A task whose completion is one of a few label words."""

    name: TaskName
    labels: tuple[str, ...]
    verbalisers: tuple[str, ...]
    text_columns: tuple[str, ...]
    prompt: Callable[[Row], tuple[str, str, str]]
    """Row -> before, passage, after."""
    positive: str | None = None
    """The class of F1, where the benchmark reports F1."""
    kind: Literal["classification", "qa"] = "classification"
    primary_metric: str = "accuracy"

    def example(self, row: Row) -> Example:
        """Build the prompt of a row; a label of -1 means unlabelled."""
        before, passage, after = self.prompt(row)
        index, name = int(row["label"]), row_id(row)
        known = index >= 0
        return Example(
            name, before, passage, after, self.verbalisers[index] if known else None, self.labels[index] if known else None,
            group=str(row.get("group") or name),
        )  # fmt: skip

    def score(self, rows: list[ScoredRow]) -> list[Metric]:
        """Accuracy, and F1 of the positive class where the benchmark reports it.

        Returns fractions over all rows. F1 = 2 TP / (2 TP + FP + FN), 0 when the class neither occurs nor is predicted.

        Raises:
            ValueError: no rows, or a row without a gold label.
        """
        check_labelled(rows, self.name)
        metrics = [fraction("accuracy", sum(r.prediction == r.label for r in rows) / len(rows), len(rows))]
        if self.positive is not None:
            metrics.append(fraction("f1", _f1(rows, self.positive), len(rows)))
        return metrics


def row_id(row: Row) -> str:
    """The id given when the row was read, else the publisher's own."""
    return str(row.get("example_id") or row.get("idx", row.get("id", "")))


def fraction(name: str, value: float, n: int) -> Metric:
    """A test metric between 0 and 1, higher is better."""
    return Metric(name=name, value=value, unit="fraction", split="test", n=n, higher_is_better=True)


def check_labelled(rows: list[ScoredRow], task: str) -> None:
    """Refuse to score nothing or the unlabelled."""
    if not rows:
        raise ValueError(f"{task}: no predictions to score")
    unlabelled = [r.example_id for r in rows if r.label is None]
    if unlabelled:
        raise ValueError(f"{task}: {len(unlabelled)} rows have no gold label, first: {unlabelled[0]}")


def _f1(rows: list[ScoredRow], positive: str) -> float:
    hits = sum(r.prediction == positive == r.label for r in rows)
    wrong = sum((r.prediction == positive) != (r.label == positive) for r in rows)
    return 2 * hits / (2 * hits + wrong) if hits + wrong else 0.0
