"""One line of `tunescope check`."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tunescope.errors import StepError


@dataclass(frozen=True)
class Check:
    """What was checked, how it ended, and what was measured."""

    name: str
    status: Literal["PASS", "FAIL", "SKIP"]
    found: str
    details: tuple[str, ...] = ()
    """Further lines: tables, curves."""
    seconds: float = 0.0


def judge(name: str, problems: list[str], measured: str, details: tuple[str, ...] = ()) -> Check:
    """PASS with what was measured, or FAIL with what is wrong in front of it."""
    return Check(name, "FAIL" if problems else "PASS", "; ".join([*problems, measured]), details)


def demonstrated(name: str, checks: Iterable[Check]) -> Iterator[Check]:
    """Time checks as they come; a step that cannot go on is a FAIL of `name`. Missing data or models stop the whole command."""
    found, started = iter(checks), time.perf_counter()
    while True:
        try:
            check = next(found, None)
        except StepError as error:
            check = Check(name, "FAIL", str(error))
        if check is None:
            return
        yield replace(check, seconds=time.perf_counter() - started)
        started = time.perf_counter()


def timed(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    """One check, timed, as above."""
    yield from demonstrated(name, (each() for each in (check,)))
