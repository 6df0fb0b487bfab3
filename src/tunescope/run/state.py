"""The state of every step, derived from files alone."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunescope.records import FinishedStep
from tunescope.study.identity import differences, fingerprint
from tunescope.study.inputs import StepInputs
from tunescope.study.plan import Plan, Step

from .lease import Lease, read_lease
from .store import Store, identity

Status = Literal["done", "stale", "running", "failed", "blocked", "todo"]
STATUSES: tuple[Status, ...] = ("done", "running", "stale", "todo", "failed", "blocked")
DataCheck = Callable[[Step, FinishedStep], str]
"""Why a finished data step must run again; "" when its data are as it left them."""


@dataclass(frozen=True)
class StepState:
    """One step as its folder shows it."""

    step: Step
    status: Status
    why: str = ""
    changes: tuple[str, ...] = ()
    """Field-by-field differences of a stale step."""
    inputs: StepInputs | None = None
    """None while the search has not chosen."""
    upstream: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str | None = None
    """None while a need is not done."""
    finished: FinishedStep | None = None
    """Set exactly when the step is done."""
    lease: Lease | None = None

    @property
    def ready(self) -> bool:
        """Whether it could start now."""
        return self.status in ("todo", "stale") and self.fingerprint is not None

    @property
    def again(self) -> bool:
        """Whether it is to run although a result of this very fingerprint is there: data that must be prepared anew."""
        return self.status == "todo" and self.step.kind == "data" and bool(self.why)

    @property
    def digest(self) -> str | None:
        return self.finished.result["digest"] if self.finished else None


States = Mapping[str, StepState]


def survey(plan: Plan, store: Store, data_check: DataCheck) -> dict[str, StepState]:
    """The state of every step of the plan, in plan order (so that needs are known first)."""
    return Surveyor(plan, store, data_check).survey()


class Surveyor:
    """Derives the states again and again, as a driver must; inputs and fingerprints are worked out once per change of what they rest on."""

    def __init__(self, plan: Plan, store: Store, data_check: DataCheck):
        self._plan, self._store, self._data_check = plan, store, data_check
        self._bare: dict[str, tuple[Any, StepState]] = {}
        self._last: dict[str, StepState] = {}

    def survey(self) -> dict[str, StepState]:
        """The state of every step of the plan, from the files as they are now."""
        self._last = {}
        return self.update(())

    def update(self, touched: Collection[str]) -> dict[str, StepState]:
        """The states after some steps were worked on: only they, and what comes after a step that changed, are looked at again.

        Looking at 2,000 folders after each step takes 50 ms, and seconds on a network disk. What others do shows in the next survey.
        """
        states: dict[str, StepState] = {}
        finished: dict[str, FinishedStep] = {}
        moved: set[str] = set()
        for step in self._plan.steps:
            known = self._last.get(step.id)
            if known is None or step.id in touched or not moved.isdisjoint((*step.needs, *step.selects_from)):
                state = self._state(step, states, finished)
                if known is None or (known.status, known.digest) != (state.status, state.digest):
                    moved.add(step.id)
            else:
                state = known
            states[step.id] = state
            if state.finished:
                finished[step.id] = state.finished
        self._last = states
        return states

    def _state(self, step: Step, states: States, finished: Mapping[str, FinishedStep]) -> StepState:
        lease = read_lease(self._store.folder(step.id))
        if lease:
            where = f"{lease.host}, {lease.place}" if lease.place else lease.host
            return StepState(step, "running", f"on {where}, process {lease.pid}", lease=lease)
        waiting = [states[i] for i in (*step.needs, *step.selects_from) if states[i].status != "done"]
        if waiting:
            return _waiting(self._store, step, waiting)
        bare = self._identified(step, finished)
        return _judge(self._store, bare, bare.fingerprint, self._data_check) if bare.fingerprint else bare

    def _identified(self, step: Step, finished: Mapping[str, FinishedStep]) -> StepState:
        """The step with its resolved inputs and its fingerprint."""
        key = [finished[i].result["digest"] for i in (*step.needs, *step.selects_from)]
        known = self._bare.get(step.id)
        if known is None or known[0] != key:
            self._bare[step.id] = known = key, identify(self._plan, step, finished)
        return known[1]


def identify(plan: Plan, step: Step, finished: Mapping[str, FinishedStep]) -> StepState:
    """A step with its inputs, and the fingerprint that its result must have, once its needs are among `finished`."""
    inputs = plan.resolve(step, finished)
    if inputs is None:
        return StepState(step, "todo", "waits for the search")
    upstream = {i: finished[i].result["digest"] for i in step.needs}
    mark = fingerprint(identity(step.kind, inputs, upstream))
    return StepState(step, "todo", inputs=inputs, upstream=upstream, fingerprint=mark)


def _waiting(store: Store, step: Step, waiting: list[StepState]) -> StepState:
    """A step whose needs are not all done. A result it may hold is judged once they are."""
    dead = [s for s in waiting if s.status in ("failed", "blocked")]
    first = (dead or waiting)[0]
    if dead:
        return StepState(step, "blocked", f"needs {first.step.id}, which is {first.status}")
    kept = "; its result is kept and checked then" if (store.folder(step.id) / "result.json").exists() else ""
    more = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
    return StepState(step, "todo", f"waits for {first.step.id}{more}{kept}")


def _judge(store: Store, bare: StepState, mark: str, data_check: DataCheck) -> StepState:
    """Compare what the folder holds with what it should hold."""
    step = bare.step
    result, problem = store.result(step.id)
    if result is not None and result.result["fingerprint"] == mark:
        again = data_check(step, result) if step.kind == "data" else ""
        return _with(bare, "todo", again) if again else _with(bare, "done", finished=result)
    if result is not None:
        changes = changes_since(store, bare)
        return _with(bare, "stale", "; ".join(changes), changes=changes)
    if problem:
        return _with(bare, "todo", f"not done: {problem}")
    failure = store.failure(step.id)
    if failure is not None and failure.fingerprint == mark:
        return _with(bare, "blocked" if failure.prerequisite else "failed", failure.message)
    return bare


def changes_since(store: Store, state: StepState) -> tuple[str, ...]:
    """Field-by-field differences of the inputs that a store's folder was made from to those of an identified step."""
    record = store.record(state.step.id)
    assert record is not None and state.inputs is not None
    lines = differences(record.identity, identity(state.step.kind, state.inputs, state.upstream))
    return tuple(line.removeprefix("inputs.") for line in lines) or ("the step's format changed",)


def _with(
    bare: StepState, status: Status, why: str = "", *, changes: tuple[str, ...] = (), finished: FinishedStep | None = None
) -> StepState:
    return StepState(bare.step, status, why, changes, bare.inputs, bare.upstream, bare.fingerprint, finished)
