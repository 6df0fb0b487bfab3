"""Duplicates between parts: equal inputs, exact and normalised, and single texts that two parts share."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

from tunescope.study.schema import TaskName

from .tasks import get_task

Row = Mapping[str, Any]
_OTHER = re.compile(r"[\W_]+")


@lru_cache(maxsize=1 << 16)  # SQuAD repeats every paragraph for each of its questions
def normalised(text: str) -> str:
    """NFKC, case-folded, letters and digits only, single spaces; a text without any keeps its characters."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return _OTHER.sub(" ", folded).strip() or " ".join(folded.split())


def exact_key(task: TaskName, row: Row) -> tuple[str, ...]:
    """The whole input as it stands."""
    return tuple(row[column] for column in get_task(task).text_columns)


def input_key(task: TaskName, row: Row) -> tuple[str, ...]:
    """The whole input, normalised; the two sentences of MRPC in either order."""
    key = tuple(normalised(row[column]) for column in get_task(task).text_columns)
    return tuple(sorted(key)) if task == "mrpc" else key


def leakage(task: TaskName, parts: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, int]]:
    """Count duplicates between every two of the given parts, e.g. `train-test`.

    `exact`, `normalised`: rows of the second part whose input occurs in the first. `normalised_first`: rows of the first part whose input
    occurs in the second. `contradicting`: normalised duplicates in the second part with a label (or answerability) the first never gives.
    `shared_<column>`: rows of the second part whose single text occurs in that column of the first. Nothing is dropped.
    """
    keys = {name: _Keys(task, rows) for name, rows in parts.items()}
    return {f"{a}-{b}": _compare(keys[a], keys[b]) for a, b in combinations(parts, 2)}


class _Keys:
    """All keys of one part, computed once."""

    def __init__(self, task: TaskName, rows: Sequence[Row]):
        self.exact = [exact_key(task, row) for row in rows]
        self.normalised = [input_key(task, row) for row in rows]
        self.labels = [_label(row) for row in rows]
        columns = get_task(task).text_columns
        self.single = {c: [normalised(row[c]) for row in rows] for c in columns} if len(columns) > 1 else {}


def _compare(first: _Keys, second: _Keys) -> dict[str, int]:
    exact, counts = set(first.exact), Counter(first.normalised)
    known = set(zip(first.normalised, first.labels, strict=True))
    theirs = set(second.normalised)
    found = {
        "exact": sum(k in exact for k in second.exact),
        "normalised": sum(k in counts for k in second.normalised),
        "normalised_first": sum(n for k, n in counts.items() if k in theirs),
        "contradicting": sum(
            k in counts and label is not None and (k, label) not in known for k, label in zip(second.normalised, second.labels, strict=True)
        ),
    }
    for column, texts in second.single.items():
        mine = set(first.single[column])
        found[f"shared_{column}"] = sum(t in mine for t in texts)
    return found


def _label(row: Row) -> int | None:
    if "answers" in row:
        return int(bool(row["answers"]["text"]))
    return int(row["label"]) if row["label"] >= 0 else None
