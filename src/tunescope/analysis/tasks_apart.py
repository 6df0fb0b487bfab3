"""Where a task's own verdict differs from that of the claim on all tasks, and why that is no contradiction."""

from tunescope.study.schema import TASK_NAMES, AnalysisSpec

from .answer import figure
from .findings import Claim
from .verdicts import meaningless

Said = tuple[str, list[str]]
"""A sentence and the ids of the steps it rests on."""


def tasks_apart(claims: list[Claim], spec: AnalysisSpec) -> list[Said]:
    """One text for quality and one for drift, each only where a verdict of a task differs from the one on all tasks."""
    found = []
    for whole in (c for c in claims if c.id in ("quality/all", "drift/all")):
        tasks = [c for c in claims if c.dimension == whole.dimension and c.task]
        apart = [c for c in tasks if c.verdict != whole.verdict]
        if apart:
            found.append((f"{_heading(whole, apart, spec)} {_why(whole, tasks)}", whole.steps))
    return found


def _heading(whole: Claim, apart: list[Claim], spec: AnalysisSpec) -> str:
    own = "; ".join(f"{c.verdict} for {TASK_NAMES[str(c.task)]}{_measured(c, spec)}" for c in apart)
    return f"{whole.dimension.capitalize()}, task by task: the claim is {own}, while for all tasks at once it is {whole.verdict}."


def _measured(claim: Claim, spec: AnalysisSpec) -> str:
    return f" ({figure(claim, spec)})" if claim.estimate is not None and not meaningless(claim) else ""


def _why(whole: Claim, tasks: list[Claim]) -> str:
    """The rule by which the two may differ, with the tasks it turned on."""
    if whole.verdict == "supported":
        return (
            "Both hold: the claim on every task is one test, which the largest p over tasks decides without correction; "
            "a task's own verdict is corrected for the number of tasks (Holm), and that takes more."
        )
    if whole.verdict == "contradicted":
        failed = _names([c for c in tasks if c.verdict == "contradicted"])
        return f"Both hold: what is claimed of every task fails with one task, here {failed}. For a single task, go by its own verdict."
    cannot, last = [c for c in tasks if c.reasons], "For a single task, go by its own verdict."
    if cannot:
        rule = f"by rule the claim on all {len(tasks)} tasks gets no verdict while one of them cannot be judged"
        return f"Both hold: {rule}, and {_names(cannot)} cannot. {last}"
    still = _names([c for c in tasks if c.verdict == "inconclusive"])
    return f"Both hold: the claim on all {len(tasks)} tasks takes every one of them, and not decided is {still}. {last}"


def _names(claims: list[Claim]) -> str:
    return ", ".join(TASK_NAMES[str(c.task)] for c in claims)
