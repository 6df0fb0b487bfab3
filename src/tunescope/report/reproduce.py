"""The commands that make a table again: computed from the finished steps, or with the steps behind it run first."""

import shlex
from collections.abc import Collection, Iterable

from tunescope.analysis.findings import Findings
from tunescope.errors import StudyError, did_you_mean

from .tables import build_tables
from .tables_gaps import flags_table, missing_table
from .tabular import Table


def all_tables(findings: Findings, candidate: str, finished: Collection[str] = ()) -> dict[str, Table]:
    """Every table that has rows, by name: those of the report, what is missing, red flags (counted against the finished steps)."""
    extra = {t.name: t for t in (missing_table(findings), flags_table(findings, finished)) if t.rows}
    return build_tables(findings, candidate) | extra


def table_csv(findings: Findings, candidate: str, name: str) -> str:
    """One table as the CSV that the report folder holds.

    Raises:
        StudyError: no such table, with the names there are.
    """
    tables = all_tables(findings, candidate)
    if name not in tables:
        raise StudyError(f"--table {name}: no such table in this report{did_you_mean(name, tables)}; there are {', '.join(tables)}")
    return tables[name].data.to_csv(index=False)


def recompute_command(argument: str, table: str) -> str:
    """Computes the table from the finished steps and prints it as CSV."""
    return f"tunescope report {shlex.quote(argument)} --table {table}"


def rerun_command(argument: str, steps: Iterable[str]) -> str:
    """Runs the steps behind a table, and what they need; those that are finished are left alone."""
    globs = sorted({_glob(step) for step in steps})
    return " ".join(["tunescope run", shlex.quote(argument), *(f"--only {shlex.quote(glob)}" for glob in globs)])


def _glob(step: str) -> str:
    """All steps that do the same: of a kind, for training of a role; `*` crosses slashes."""
    kind, *rest = step.split("/")
    if kind == "train":
        return "train/*/final/*" if "final" in rest else "train/*/search-*"
    return f"{kind}/*" if rest else kind
