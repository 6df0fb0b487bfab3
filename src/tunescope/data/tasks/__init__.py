"""The four tasks: prompt, completion and scorer of each. One formulation for all: a prompt and a short completion."""

from importlib import import_module
from typing import Any, get_args

from tunescope.errors import StudyError, did_you_mean
from tunescope.study.schema import TaskName

from .base import Example, ScoredRow, Task

__all__ = ["Example", "ScoredRow", "Task", "get_task", "template"]


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        StudyError: no such task; names the nearest.
    """
    known = get_args(TaskName)
    if name not in known:
        raise StudyError(f"no task named '{name}'{did_you_mean(name, known)}; known tasks: {', '.join(known)}")
    return import_module(f"{__name__}.{name}").TASK


def template(name: str) -> dict[str, Any]:
    """A task's prompt as it comes out for a row that names its own columns, and its completions: what a change of wording changes."""
    task = get_task(name)
    row = {column: f"<{column}>" for column in task.text_columns}
    example = task.example({**row, "label": 0, "answers": {"text": []}, "title": "", "idx": 0})
    return {"prompt": example.prompt, "completions": list(task.verbalisers) or [example.completion]}
