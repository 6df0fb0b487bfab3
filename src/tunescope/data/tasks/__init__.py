"""The four tasks: prompt, completion and scorer of each. One formulation for all: a prompt and a short completion."""

import difflib
from importlib import import_module
from typing import get_args

from tunescope.errors import StudyError
from tunescope.study.schema import TaskName

from .base import Example, ScoredRow, Task

__all__ = ["Example", "ScoredRow", "Task", "get_task"]


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        StudyError: no such task; names the nearest.
    """
    known = get_args(TaskName)
    if name not in known:
        near = difflib.get_close_matches(name.lower().replace("-", ""), known, n=1, cutoff=0.4)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise StudyError(f"no task named '{name}'{hint} Known tasks: {', '.join(known)}")
    return import_module(f"{__name__}.{name}").TASK
