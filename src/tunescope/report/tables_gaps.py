"""Tables of what a reader has to know first: steps without a result, and red flags."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from tunescope.analysis.findings import Findings
from tunescope.analysis.flag_groups import SEVERAL_RUNS, SEVERITIES, FlagGroup, grouped

from . import wording as w
from .tabular import Format, Table, table_of


@dataclass(frozen=True)
class _Named:
    """A gap as a table row."""

    step: str
    state: str
    text: str

    @property
    def steps(self) -> list[str]:
        return [self.step]

    def model_dump(self) -> dict[str, Any]:
        return {"step": self.step, "state": self.state, "text": self.text}


def missing_table(findings: Findings) -> Table:
    """Planned steps without a result."""
    rows: list[Any] = [_Named(m.step, m.state, m.why or "not run yet") for m in findings.missing]
    formats = [("Step", lambda r: r.step), ("State", lambda r: r.state), ("Why", lambda r: r.text)]
    return table_of("missing", "Steps without a result", rows, formats, ("Step", "State", "Why"))


@dataclass(frozen=True)
class _Flags:
    """The flags of one kind as a table row."""

    group: FlagGroup
    finished: tuple[str, ...]

    @property
    def steps(self) -> list[str]:
        return list(dict.fromkeys(step for step, _ in self.group.flags))

    @property
    def texts(self) -> list[str]:
        return list(dict.fromkeys(text for _, text in self.group.flags))

    @property
    def like_it(self) -> int:
        """Finished steps that could have such a flag; 0 where that cannot be said."""
        kinds = {_kind(step) for step in self.steps}
        if self.group.code in SEVERAL_RUNS or len(kinds) != 1:
            return 0
        return sum(_kind(step) in kinds for step in self.finished)

    def on(self) -> str:
        noun = _NOUNS.get(_kind(self.steps[0]), "step")
        return f"{len(self.steps)} of {w.plural(self.like_it, noun)}" if self.like_it else w.plural(len(self.group.flags), "flag")

    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else f"{self.texts[0]} (and {len(self.group.flags) - 1} more)"

    def model_dump(self) -> dict[str, Any]:
        return {}


_NOUNS = {"train": "training run", "data": "data step", "baseline": "baseline step", "serve": "serve step", "drift": "drift step"}


def _kind(step: str) -> str:
    return step.split("/")[0]


def flags_table(findings: Findings, finished: Collection[str] = ()) -> Table:
    """Red flags, one row a kind, most severe first; single flags are folded into their row, and the CSV has one line each.

    Args:
        finished: ids of the finished steps, for `40 of 40 training runs`; without them flags are only counted.
    """
    groups = grouped((flag.step, flag.text) for flag in findings.red_flags)
    rows: list[Any] = [_Flags(group, tuple(finished)) for group in groups]
    formats: list[Format] = [
        ("Severity", lambda r: r.group.severity),
        ("Kind", lambda r: r.group.code),
        ("On", lambda r: r.on()),
        ("What to look at", lambda r: r.text()),
    ]
    note = "; ".join(f"{name}: {meaning}" for name, meaning in SEVERITIES.items()).capitalize() + ". Flags never change a verdict."
    if any(len(r.steps) == r.like_it > 1 for r in rows):
        note += " A flag on every step that can have it tells none of them apart: it describes the study as a whole."
    found = table_of("red_flags", "Red flags", rows, formats, ("Severity", "Kind", "On", "What to look at"), note)
    data = [{"severity": g.severity, "kind": g.code, "step": step, "text": text} for g in groups for step, text in g.flags]
    folded = (replace(row, more=g.flags if len(g.flags) > 1 else ()) for row, g in zip(found.rows, groups, strict=True))
    return replace(found, rows=tuple(folded), data=pd.DataFrame(data))
