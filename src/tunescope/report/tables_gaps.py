"""Tables of what a reader has to know first: steps without a result, and red flags."""

from dataclasses import dataclass
from typing import Any

from tunescope.analysis.findings import Findings

from .tabular import Table, table_of


@dataclass(frozen=True)
class _Named:
    """A gap or a flag as a table row."""

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


def flags_table(findings: Findings) -> Table:
    """Red flags by step."""
    rows: list[Any] = [_Named(r.step, "", r.text) for r in findings.red_flags]
    formats = [("Step", lambda r: r.step), ("What to look at", lambda r: r.text)]
    return table_of("red_flags", "Red flags", rows, formats, ("Step", "What to look at"))
