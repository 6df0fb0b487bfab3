"""Which checks a command means, and running them one by one. Imports torch only after the environment is fixed."""

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tunescope.errors import StudyError, did_you_mean
from tunescope.run.environment import worker_environment
from tunescope.run.session import Session
from tunescope.study.schema import TaskName

from .outcome import Check, demonstrated, timed

KINDS = ("sanity", "data", "baseline", "train", "drift", "serve", "statistics")
ALIASES = {"base-probe": "drift", "correlate": "statistics"}
"""Step kinds that are shown by another demonstration."""


def run_checks(
    session: Session, kinds: Sequence[str], tasks: Sequence[str], methods: Sequence[str], note: Callable[[str], None]
) -> Iterator[Check]:  # fmt: skip
    """Run the named checks (none named: sanity) on a study's model, tasks and methods, in a folder that is removed afterwards.

    Figures stay, in `<execution.paths.runs>/check/`.

    Raises:
        StudyError: an unknown kind, task or method. PrerequisiteError: no data or no model.
    """
    study = session.file.study
    wanted = list(dict.fromkeys(ALIASES.get(k, k) for k in kinds)) or ["sanity"]
    problems = [*_unknown("--kind", kinds, (*KINDS, *ALIASES)), *_unknown("--task", tasks, study.tasks)]
    problems += _unknown("--method", methods, study.methods)
    if problems:
        raise StudyError(problems)
    for key, value in worker_environment(session.execution.threads, session.device).items():
        os.environ.setdefault(key, value)
    chosen_tasks = [t for t in study.tasks if not tasks or t in tasks]
    chosen_methods = [m for m in study.methods if m in methods] if methods else _compared(session)
    figures = Path(session.execution.paths.runs) / "check"
    with tempfile.TemporaryDirectory(prefix="tunescope-check-") as folder:
        for kind in wanted:
            yield from _checks(kind, session, Path(folder) / kind, chosen_tasks, chosen_methods, figures, note)


def _compared(session: Session) -> list[str]:
    roles = session.file.study.analysis
    return list(dict.fromkeys((roles.reference_method, roles.candidate_method)))


def _checks(
    kind: str, session: Session, root: Path, tasks: list[TaskName], methods: list[str], figures: Path, note: Callable[[str], None]
) -> Iterator[Check]:  # fmt: skip
    root.mkdir()
    if kind in ("sanity", "data"):
        from . import training

        bench = training.Bench(session.file.study, session.device, root, _files(session))
        if kind == "sanity":
            yield from training.sanity(bench, tasks, methods, note)
        else:
            yield from timed("data", lambda: training.data(bench, tasks))
        return
    from . import demos

    demo = demos.Demo(session, root, tasks, methods)
    note(f"demonstrating {kind} in a small study of its own")
    yield from demonstrated(kind, demos.drift(demo, figures) if kind == "drift" else demos.DEMOS[kind](demo))


def _files(session: Session) -> Path | None:
    files = session.execution.paths.files
    return Path(files) if files else None


def _unknown(option: str, given: Sequence[str], valid: Any) -> list[str]:
    names = list(valid)
    return [f"{option} {n}: unknown{did_you_mean(n, names)}; valid here: {', '.join(names)}" for n in given if n not in names]
