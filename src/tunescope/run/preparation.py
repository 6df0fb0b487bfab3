"""Prepare task data in this process, for `tunescope data`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tunescope.errors import PrerequisiteError
from tunescope.study.inputs import DataInputs

from .selection import Selection, select
from .session import Session


def prepare_data(session: Session, tasks: Sequence[str], note: Callable[[str], None]) -> dict[str, Any]:
    """Prepare the study's tasks (or the named ones) below `execution.paths.data`.

    Returns:
        Task -> its manifest entry.

    Raises:
        PrerequisiteError: lists what is missing, each cause once; the other tasks are prepared all the same.
    """
    from tunescope.data.prepare import prepare

    chosen = select(session.plan, Selection(kinds=("data",), tasks=tasks))
    files = session.execution.paths.files
    entries: dict[str, Any] = {}
    problems: list[str] = []
    for step in session.plan.steps:
        if step.id not in chosen.named:
            continue
        assert isinstance(step.inputs, DataInputs)
        wanted = step.inputs
        note(f"preparing {wanted.task} ({wanted.data.source})")
        try:
            entries[wanted.task] = prepare(
                wanted.task, wanted.data, wanted.limits, wanted.probe_examples, session.data.path, Path(files) if files else None
            )
        except PrerequisiteError as error:
            problems.append(str(error))
    if problems:
        raise PrerequisiteError("\n".join(dict.fromkeys(problems)))  # one cause often stops every task
    return entries
