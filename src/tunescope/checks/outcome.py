"""One line of `tunescope check`."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from tunescope.errors import PrerequisiteError, StepError


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


def timed(name: str, check: Callable[[], Check]) -> Iterator[Check]:
    """Run one check; a step that cannot go on is a FAIL. What must be there and is not (data, a model) stops the whole command."""
    started = time.perf_counter()
    try:
        found = check()
    except PrerequisiteError:
        raise
    except StepError as error:
        found = Check(name, "FAIL", str(error))
    yield replace(found, seconds=time.perf_counter() - started)
