"""Red flags by what they are about, most severe first, so that sixty of them are read in ten lines.

Steps keep their flags as sentences; the pattern that a sentence contains names its group. Nothing here changes a flag or a verdict, and
nothing imports tables, as `status` must not.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .step_flags import Flag

Severity = Literal["broken", "doubtful", "note"]
SEVERITIES: dict[Severity, str] = {
    "broken": "do not use the result before it is explained",
    "doubtful": "the result may not mean what it seems to",
    "note": "good to know, and no fault",
}

GROUPS: tuple[tuple[Severity, str, str], ...] = (
    ("broken", "base-changed", r"base weights changed"),
    ("broken", "adapter-weights", r"adapter weights (are all zero|explode)"),
    ("broken", "merge-or-unload", r"merged and adapted model differ|merged in bf16|adapter kept for the untouched base|does not restore"),
    ("broken", "served-otherwise", r"served log-probabilities are outside"),
    ("broken", "step-0-differs", r"step-0 states differ"),
    ("broken", "impossible-latency", r"impossible latency"),
    ("broken", "engines-do-not-tie", r"do not tie"),
    ("broken", "records-missing", r"missing records|launches are missing|requests a second: \d+ of \d+ completed"),
    ("broken", "file-unreadable", r"^[\w.-]+\.\w+ (cannot be read: |is missing$)"),
    ("broken", "loss-not-falling", r"training loss did not fall"),
    ("doubtful", "other", r"(?!)"),
    ("doubtful", "near-majority", r"lies above the majority baseline's interval"),
    ("doubtful", "score-unexpected", r"is outside the expected"),
    ("doubtful", "rate-on-edge", r"on the edge of its grid"),
    ("doubtful", "precision-mixed", r"trained in different precisions|do not compare"),
    ("doubtful", "nothing-paired", r"nothing is paired"),
    ("doubtful", "runs-unlike", r"final runs differ in"),
    ("doubtful", "interval-odd", r"the interval (has no width|is .* wide)|every per-task p is"),
    ("doubtful", "machine-busy", r"ran on a busy machine"),
    ("doubtful", "machine-uneven", r"times as long at some launches as at others"),
    ("doubtful", "overhead-falls", r"overhead falls from"),
    ("doubtful", "drift-pattern", r"drift falls over training|early layers drift more|drifts more than"),
    ("doubtful", "no-noise-floor", r"no base-probe step"),
    ("doubtful", "duplicates", r"inputs also occur in"),
    ("doubtful", "loss-high", r"training loss is .* at the end"),
    ("note", "base-below-constant", r"the untuned base .* lies below"),
    ("note", "not-comparable", r"not the published data|not byte for byte the published file|not comparable with published"),
    ("note", "part-of-the-data", r"^scored on \d+ of"),
    ("note", "not-headline", r"say nothing about a GPU|not for headline figures"),
    ("note", "went-otherwise", r"out of GPU memory at micro-batch|could not be captured|weight updates left out"),
    ("note", "resumed", r"^resumed at step|went on after training had ended"),
)
"""(severity, code, pattern), most severe first; the first that fits counts. A sentence that fits none is `other`."""

SEVERAL_RUNS = frozenset({"rate-on-edge", "runs-unlike", "interval-odd", "overhead-falls", "other"})
"""Codes of flags that are about several steps and stand at one of them: how many steps have such a flag tells nothing."""


@dataclass(frozen=True)
class FlagGroup:
    """The flags of one code."""

    severity: Severity
    code: str
    flags: tuple[Flag, ...]


def code_of(text: str) -> str:
    """The code of a flag's sentence."""
    return next((code for _, code, pattern in GROUPS if re.search(pattern, text)), "other")


def grouped(flags: Iterable[Flag]) -> list[FlagGroup]:
    """Flags by code, most severe first; within a code in the order given."""
    found: dict[str, list[Flag]] = {}
    for flag in flags:
        found.setdefault(code_of(flag[1]), []).append(flag)
    return [FlagGroup(severity, code, tuple(found[code])) for severity, code, _ in GROUPS if code in found]
