"""What a reader of the first screen needs besides the answer: what was asked, and what to do."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from tunescope.analysis.findings import Findings

from . import wording as w

Said = tuple[str, list[str]]
"""A text and the ids of the steps it rests on."""


@dataclass(frozen=True)
class Conditions:
    """Advice that holds under the same conditions."""

    holds_for: str
    lines: tuple[tuple[str, str, list[str]], ...]
    """(question, advice, steps)."""


def asked(findings: Findings) -> Said | None:
    """The hypothesis of the study in words; None where a study has no claims."""
    return next(((c.statement, c.steps) for c in findings.claims if c.dimension == "hypothesis"), None)


def advice(findings: Findings) -> list[Conditions]:
    """The table of advice in short: what it says first of each claim; tasks with the same advice share a line."""
    lines = list(_lines(findings))
    return [Conditions(held, tuple(line for _, *line in group)) for held, group in groupby(lines, key=lambda line: line[0])]  # type: ignore[misc]


def _lines(findings: Findings) -> Iterator[tuple[str, str, str, list[str]]]:
    """(conditions, question, advice, steps), those under the same conditions one after another."""
    steps = {c.id: c.steps for c in findings.claims}
    tasks: dict[tuple[str, str], list[str]] = {}
    rest: dict[str, tuple[str, str, str]] = {}
    for question, text, held, claim in findings.statistics.get("advice", {}).get("rows", ()):
        dimension, _, task = claim.partition("/")
        if dimension == "quality":
            tasks.setdefault((held, text), []).append(task)
        else:
            rest.setdefault(claim, (held, question, text))
    for (held, text), names in sorted(tasks.items(), key=lambda item: item[0][0]):
        question = f"Which method for {', '.join(map(w.task_name, names))}?"
        yield held, question, text, sorted({s for name in names for s in steps[f"quality/{name}"]})
    for claim, (held, question, text) in rest.items():
        yield held, question, text, steps[claim]
