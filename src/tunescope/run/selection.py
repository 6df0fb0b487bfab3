"""Which steps of a plan a command means, and which others they need."""

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tunescope.errors import StudyError, did_you_mean
from tunescope.program import command
from tunescope.study.plan import Plan, Step
from tunescope.study.schema import KINDS


@dataclass(frozen=True)
class Selection:
    """Filters of the command line; an empty one lets everything pass."""

    kinds: Sequence[str] = ()
    only: Sequence[str] = ()
    """Globs on step ids; `*` crosses slashes."""
    tasks: Sequence[str] = ()
    methods: Sequence[str] = ()
    seeds: Sequence[int] = ()
    phase: str | None = None
    machine: str | None = None

    @property
    def narrow(self) -> bool:
        """Whether it names some of the steps, rather than a phase of all of them."""
        return bool(self.kinds or self.only or self.tasks or self.methods or self.seeds)

    @property
    def reports(self) -> bool:
        """Whether statistics and report follow: the whole study, or phase 2b."""
        return self.phase == "2b" or not (self.narrow or self.phase or self.machine)


@dataclass(frozen=True)
class Chosen:
    """What a selection means in a plan."""

    named: frozenset[str] = field(default_factory=frozenset)
    """Steps the user asked for."""
    run: frozenset[str] = field(default_factory=frozenset)
    """Those, and the needs that may be run on their behalf."""
    needed: frozenset[str] = field(default_factory=frozenset)
    """Those, and every need, wherever it belongs."""


def select(plan: Plan, selection: Selection) -> Chosen:
    """Resolve a selection.

    A need outside the named phase or machine is not run here: its folder comes from where it belongs. Data steps run wherever
    they are needed.

    Raises:
        StudyError: a filter that matches nothing, with the valid names; all of them at once.
    """
    problems = list(_unknown(plan, selection))
    if problems:
        raise StudyError(problems)
    named = {s.id for s in plan.steps if _matches(s, selection)}
    if not named and selection.phase != "2b":
        raise StudyError(f"no step matches all of the given filters together; {_listed()}")
    needed = _closure(plan, named)
    run = {i for i in needed if i in named or _may_run(plan[i], selection)}
    return Chosen(frozenset(named), frozenset(run), frozenset(needed))


def step_named(plan: Plan, step_id: str) -> Step:
    """The step with an id (a leading `steps/` or a trailing slash is forgiven).

    Raises:
        StudyError: no such step, with near ids.
    """
    wanted = step_id.rstrip("/").removeprefix("steps/")
    ids = [s.id for s in plan.steps]
    if wanted not in ids:
        raise StudyError(f"no step '{wanted}' in this study{did_you_mean(wanted, ids)}; {_listed()}")
    return plan[wanted]


def _listed() -> str:
    return f"`{command('plan', 'STUDY', '--steps')}` lists the steps"


def _matches(step: Step, selection: Selection) -> bool:
    if selection.kinds and step.kind not in selection.kinds:
        return False
    if selection.only and not any(fnmatch.fnmatchcase(step.id, glob) for glob in selection.only):
        return False
    if (selection.tasks and step.task not in selection.tasks) or (selection.methods and step.method not in selection.methods):
        return False
    if (selection.seeds and step.seed not in selection.seeds) or (selection.phase and step.phase != selection.phase):
        return False
    # With a machine named, data steps come along as needs only, so that a host prepares just the tasks it works on.
    return not selection.machine or (step.kind != "data" and step.machine in (selection.machine, None))


def _may_run(step: Step, selection: Selection) -> bool:
    if step.kind == "data":
        return True
    return (not selection.phase or step.phase == selection.phase) and (not selection.machine or step.machine in (selection.machine, None))


def _closure(plan: Plan, ids: Iterable[str]) -> set[str]:
    """Ids with everything they need, directly or not."""
    by_id = {step.id: step for step in plan.steps}
    found: set[str] = set()
    waiting = list(ids)
    while waiting:
        step = by_id[waiting.pop()]
        if step.id not in found:
            found.add(step.id)
            waiting += [*step.needs, *step.selects_from]
    return found


def _unknown(plan: Plan, selection: Selection) -> Iterable[str]:
    machines = {s.machine for s in plan.steps if s.machine}
    yield from _not_in("--kind", selection.kinds, KINDS)
    yield from _not_in("--task", selection.tasks, plan.study.tasks)
    yield from _not_in("--method", selection.methods, plan.study.methods)
    yield from _not_in("--seed", [str(s) for s in selection.seeds], [str(s) for s in plan.study.seeds])
    yield from _not_in("--phase", [selection.phase] if selection.phase else [], ("1", "2a", "2b"))
    yield from _not_in("--machine", [selection.machine] if selection.machine else [], machines)
    ids = [s.id for s in plan.steps]
    for glob in selection.only:
        if not fnmatch.filter(ids, glob):
            hint = did_you_mean(glob, [*ids, *_mended(glob, ids)])
            yield f"--only {glob}: matches no step{hint}; {_listed()}"


def _mended(glob: str, ids: Iterable[str]) -> set[str]:
    """A glob that matches nothing, with the parts that fit no step taken from each step: `train/sst3/*` gives `train/sst2/*`."""
    wanted, found = glob.split("/"), set()
    for step_id in ids:
        parts = step_id.split("/")
        mended = [own if fnmatch.fnmatchcase(part, own) else part for own, part in zip(wanted, parts, strict=False)]
        found.add("/".join([*mended, "*"] if len(parts) > len(mended) and mended[-1] != "*" else mended))
    return found


def _not_in(option: str, given: Iterable[str], valid: Iterable[str]) -> Iterable[str]:
    names = list(valid)
    for name in given:
        if name not in names:
            yield f"{option} {name}: unknown{did_you_mean(name, names)}; valid here: {', '.join(names) or '(none in this study)'}"
