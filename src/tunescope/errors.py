"""Errors a user can act on. Each carries the exit code of the command that meets it; anything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable, Sequence


class TunescopeError(Exception):
    """Something the user can mend. The message says what happened, where, and what to do."""

    exit_code = 1


class StepError(TunescopeError):
    """A step cannot go on (non-finite loss, degenerate states, a dead engine). Its siblings go on."""

    exit_code = 1


class OutOfMemoryError(StepError):
    """Even the smallest micro-batch does not fit into GPU memory. The step is tried again with nothing beside it."""


class StudyError(TunescopeError):
    """The study file or the command line is wrong. Lists every problem at once."""

    exit_code = 2

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class PrerequisiteError(TunescopeError):
    """Something that must be there is not: a file, a package, a model, or bytes that match their checksum."""

    exit_code = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the known name nearest to a mistyped one, whatever its case; '' when none is near.

    Among names that share enough letters the one with the fewest slips wins: by shared letters alone LROA is as near to ROAD as to LORA.
    """
    by_folded = {each.lower(): each for each in known}
    close = difflib.get_close_matches(name.lower(), by_folded, n=8, cutoff=0.5)
    return f" (did you mean '{by_folded[min(close, key=lambda each: _slips(name.lower(), each))]}'?)" if close else ""


def _slips(a: str, b: str) -> int:
    """Letters left out, added, exchanged or swapped with their neighbour between two words (optimal string alignment)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            slips = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            swapped = i > 1 and j > 1 and (x, a[i - 2]) == (b[j - 2], y)
            row.append(min(slips, rows[-2][j - 2] + 1) if swapped else slips)
        rows.append(row)
    return rows[-1][-1]
