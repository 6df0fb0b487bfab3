"""The learning-rate search as W&B sweeps, one grid per task and method, and the search run that one point of a grid means. Pure."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from tunescope.errors import StudyError

from .inputs import TrainInputs
from .plan import Plan, Step
from .schema import StudyFile

METRIC = "selection_loss"
"""What the search minimises; the tracker logs it under this name, and W&B keeps its minimum."""


def sweeps(file: StudyFile, steps: Iterable[Step], study: str, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """W&B sweep configurations by file name. Every method of a task gets a grid of the same size: equal search budgets.

    An agent runs `tunescope search` at each point, so the results lie in the study's store, and `tunescope run` goes on from there.

    Args:
        steps: of the plan; a task and method with any search run among them get their whole grid.
        study: the study file or built-in name as the agent's command is to name it.
        overrides: the `--set` items in force; they are repeated in the command.

    Raises:
        StudyError: there is no search run among the steps.
    """
    pairs = dict.fromkeys((s.task, s.method) for s in steps if s.role == "search")
    if not pairs:
        raise StudyError("nothing to search: no search run is chosen, or every method has one learning rate and one batch size")
    return {f"{task}-{method}.yaml": _sweep(file, str(task), str(method), study, overrides) for task, method in pairs}


def _sweep(file: StudyFile, task: Any, method: str, study: str, overrides: Sequence[str]) -> dict[str, Any]:
    tracking = file.execution.tracking
    sets = [part for item in overrides for part in ("--set", item)]
    head = {"name": f"{file.study.name} {task} {method}", "project": tracking.phase1_project}
    return {
        **head,
        **({"entity": tracking.entity} if tracking.entity else {}),
        "program": "tunescope",
        "command": ["${env}", "${interpreter}", "-m", "${program}", "search", study, "--task", task, "--method", method, *sets, "${args}"],
        "method": "grid",
        "metric": {"name": METRIC, "goal": "minimize"},
        "parameters": {
            "learning_rate": {"values": list(file.study.learning_rates(task, method))},
            "batch_size": {"values": list(file.study.batch_sizes(task))},
        },
    }


def search_step(plan: Plan, task: str, method: str, learning_rate: float, batch_size: int) -> Step:
    """The search run of one setting.

    Raises:
        StudyError: the study searches no such setting; names the ones it does.
    """
    found = [s for s in plan.steps if (s.task, s.method, s.role) == (task, method, "search")]
    for step in found:
        inputs = step.inputs
        assert isinstance(inputs, TrainInputs) and inputs.learning_rate is not None
        if inputs.batch_size == batch_size and math.isclose(inputs.learning_rate, learning_rate, rel_tol=1e-9):
            return step
    known = ", ".join(s.id.split("/")[3].removeprefix("search-") for s in found)
    pairs = ", ".join(dict.fromkeys(f"{s.task} {s.method}" for s in plan.steps if s.role == "search"))
    valid = f"{task} {method} has {known}" if found else f"searched are {pairs or 'none: every grid has one point'}"
    raise StudyError(f"no search run of {task} {method} at learning rate {learning_rate:g}, batch size {batch_size}; {valid}")
