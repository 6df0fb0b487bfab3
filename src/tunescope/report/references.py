"""Short references to steps (`T3`), so that every number can carry where it came from without drowning the page."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from urllib.parse import quote

LETTERS = {"data": "D", "baseline": "B", "base-probe": "P", "train": "T", "drift": "R", "serve": "S", "correlate": "C"}
MEANING = "D data, B baseline, P base probe, T training, R drift, S serving, C correlation"
_SHOWN = 12


@dataclass(frozen=True)
class Reference:
    """One step: its short name, its id, its folder relative to `results/`, and whether it has a result."""

    short: str
    step: str
    finished: bool

    @property
    def folder(self) -> str:
        """Relative link from results/report.html."""
        return "../steps/" + quote(self.step) + "/"

    @property
    def anchor(self) -> str:
        return f"step-{self.short}"


@dataclass(frozen=True)
class Span:
    """A run of consecutive references shown as one: `T1–6`."""

    text: str
    anchor: str
    title: str


class References:
    """Numbers step ids within their kind, in a stable order: kind, final before search runs, task, method, seed."""

    def __init__(self, steps: Iterable[str], finished: Iterable[str], tasks: Iterable[str] = ()):
        order = {task: k for k, task in enumerate(tasks)}
        done = set(finished)
        kinds = list(LETTERS)
        counts: dict[str, int] = {}
        self._by_step: dict[str, Reference] = {}

        def rank(step: str) -> tuple[int, bool, int, list[tuple[int, str]]]:
            parts = step.split("/")
            kind = kinds.index(parts[0]) if parts[0] in kinds else len(kinds)
            return kind, "/search" in step, order.get(parts[1], 99) if len(parts) > 1 else 0, _natural(step)

        for step in sorted(set(steps), key=rank):
            letter = LETTERS.get(step.split("/")[0], "X")
            counts[letter] = counts.get(letter, 0) + 1
            self._by_step[step] = Reference(f"{letter}{counts[letter]}", step, step in done)
        self._place = {r.short: k for k, r in enumerate(self._by_step.values())}

    def __iter__(self) -> Iterator[Reference]:
        return iter(self._by_step.values())

    def __getitem__(self, step: str) -> Reference:
        return self._by_step[step]

    def spans(self, steps: Iterable[str]) -> list[Span]:
        """Steps as few short links: consecutive numbers of a kind become one.

        Raises:
            KeyError: a step that the report does not list.
        """
        found = sorted({self._by_step[s] for s in steps}, key=lambda r: self._place[r.short])
        numbered = [(r, k - int(r.short[1:])) for k, r in enumerate(found)]
        runs = [[r for r, _ in run] for _, run in groupby(numbered, key=lambda pair: (pair[0].short[0], pair[1]))]
        return [_span(run) for run in runs]

    def text(self, steps: Iterable[str]) -> str:
        """The same as plain text: `T1–6, B2`."""
        return ", ".join(span.text for span in self.spans(steps))


def _span(run: list[Reference]) -> Span:
    first, last = run[0], run[-1]
    text = first.short if first is last else f"{first.short}–{last.short[1:]}"
    names = [r.step for r in run[:_SHOWN]] + ([f"and {len(run) - _SHOWN} more"] if len(run) > _SHOWN else [])
    return Span(text, first.anchor, "\n".join(names))


def _natural(step: str) -> list[tuple[int, str]]:
    """Numbers sort as numbers: seed-42 before seed-1337."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", step)]
