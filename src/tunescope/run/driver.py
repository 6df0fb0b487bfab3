"""The loop that takes a plan to its end: start what is ready, watch, retry, and say what happened."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from tunescope.study.outline import seconds
from tunescope.study.plan import Plan, Step

from .local import PLAIN_START, Ended, Executor
from .selection import Chosen
from .state import DataCheck, States, StepState, survey
from .store import Launch, StepRecord, Store
from .worker import TAKEN

LOOK_S = 2.0
"""How often folders are looked at while only other drivers' steps run."""


class Display(Protocol):
    """Where a run is shown. Talk only; results are files."""

    def started(self, step: Step) -> None: ...

    def finished(self, state: StepState, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def update(self, states: States, running: dict[str, float]) -> None: ...


@dataclass(frozen=True)
class Policy:
    """What to do when something goes wrong."""

    retries: int = 1
    timeout_s: float | None = None
    retry_failed: bool = False
    fail_fast: bool = False


@dataclass
class Driver:
    """Runs the chosen steps of a plan. All truth is in the store; a killed driver costs nothing."""

    plan: Plan
    store: Store
    executor: Executor
    chosen: Chosen
    launch: Launch
    display: Display
    data_check: DataCheck
    policy: Policy = Policy()
    clock: Callable[[], float] = time.monotonic
    started: dict[str, float] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    stopping: bool = False

    def run(self) -> dict[str, StepState]:
        """Work until nothing more can be done; returns the last states."""
        try:
            states = self._forgive(self.survey())
            looked = self.clock()
            while True:
                contended = self._start_ready(states)
                if not self.started and not contended and not self._elsewhere(states):
                    return states
                self._end_overdue()
                ended = self.executor.poll(0.25)
                if ended or contended or self.clock() - looked > LOOK_S:
                    states, looked = self._settle(ended), self.clock()
                self.display.update(states, self.started)
        finally:
            self.executor.close()

    def survey(self) -> dict[str, StepState]:
        return survey(self.plan, self.store, self.data_check)

    def _forgive(self, states: States) -> dict[str, StepState]:
        """Try again what lacked a prerequisite, and on request what failed."""
        for step_id in self.chosen.run:
            failure = self.store.failure(step_id)
            if failure and states[step_id].status != "running" and (self.policy.retry_failed or failure.prerequisite):
                self.store.forget_failure(step_id)
        return self.survey()

    def _start_ready(self, states: States) -> bool:
        """Fill free slots; returns whether another driver was faster with a step (then the folders must be looked at again)."""
        ready = [s for s in states.values() if s.ready and s.step.id in self.chosen.run and s.step.id not in self.started]
        ready.sort(key=lambda s: (s.step.kind in PLAIN_START, -self.rank[s.step.id]))
        contended = False
        for state in ready:
            if self.stopping or not self._room(state.step):
                break
            contended |= not self._start(state)
        return contended

    def _room(self, step: Step) -> bool:
        """A serve step measures time, so nothing runs beside it."""
        if any(self.plan[i].kind in PLAIN_START for i in self.started):
            return False
        return not self.started if step.kind in PLAIN_START else len(self.started) < self.executor.capacity

    @cached_property
    def rank(self) -> dict[str, float]:
        """Expected seconds on the longest path from a step to the end: starting the largest first keeps slots busy."""
        rank = {s.id: 0.0 for s in self.plan.steps}
        for step in reversed(self.plan.steps):
            rank[step.id] += seconds(self.plan.study, step)
            for need in (*step.needs, *step.selects_from):
                rank[need] = max(rank[need], rank[step.id])
        return rank

    def _start(self, state: StepState) -> bool:
        step = state.step
        assert state.inputs is not None and state.fingerprint is not None
        record = StepRecord(
            study=self.plan.study.name, id=step.id, kind=step.kind, phase=step.phase, inputs=state.inputs.model_dump(mode="json"),
            upstream=dict(state.upstream), fingerprint=state.fingerprint, launch=self.launch,
        )  # fmt: skip
        if state.status == "stale":
            self.display.note(f"{step.id}: stale ({state.why}); the old result moves to the attic")
        elif state.why:
            self.display.note(f"{step.id}: {state.why}")
        folder = self.store.prepare(record)
        if folder is None:
            return False
        self.executor.submit(step.id, step.kind, folder)
        self.started[step.id] = self.clock()
        self.attempts[step.id] = self.attempts.get(step.id, 0) + 1
        self.display.started(step)
        return True

    def _settle(self, ended: list[Ended]) -> dict[str, StepState]:
        """Record how workers ended and look at the folders; a step that is retried is ready again in the returned states."""
        took = {item.step_id: self.clock() - self.started.pop(item.step_id) for item in ended}
        for item in ended:
            if item.code == TAKEN:
                self.attempts[item.step_id] -= 1
            elif self._result_missing(item.step_id) and not self._retry(item):
                self._record_crash(item, took[item.step_id])
        states = self.survey()
        for step_id, duration in took.items():
            state = states[step_id]
            if state.status in ("done", "failed", "blocked"):
                self.display.finished(state, duration)
            self.stopping |= self.policy.fail_fast and state.status in ("failed", "blocked")
        return states

    def _result_missing(self, step_id: str) -> bool:
        """Whether a worker left no usable result of the step as it was prepared."""
        result, record = self.store.result(step_id)[0], self.store.record(step_id)
        return result is None or record is None or result.result["fingerprint"] != record.fingerprint

    def _retry(self, item: Ended) -> bool:
        """Try again after a crash or an unexpected error; a user error would only come again."""
        failure = self.store.failure(item.step_id)
        if (failure and not failure.retryable) or self.attempts[item.step_id] > self.policy.retries:
            return False
        self.store.forget_failure(item.step_id)
        self.display.note(f"{item.step_id}: {failure.message if failure else _ending(item.code)}; trying again")
        return True

    def _record_crash(self, item: Ended, seconds_run: float) -> None:
        """A worker that could not write its own error.json."""
        record = self.store.record(item.step_id)
        if record is None or self.store.failure(item.step_id):
            return
        limit = self.policy.timeout_s
        if limit and seconds_run > limit:
            self.store.fail(record, "Timeout", f"stopped after {limit:g} s (execution.step_timeout_s)")
        else:
            self.store.fail(record, "Crash", f"{_ending(item.code)}; see {self.store.folder(item.step_id) / 'log.txt'}")

    def _end_overdue(self) -> None:
        limit = self.policy.timeout_s
        for step_id, since in self.started.items():
            if limit and self.executor.waiting(step_id):
                self.started[step_id] = self.clock()
            elif limit and self.clock() - since > limit:
                self.executor.cancel(step_id)

    def _elsewhere(self, states: States) -> bool:
        """Whether another driver is at a step that ours need."""
        return not self.stopping and any(states[i].status == "running" for i in self.chosen.needed)


def _ending(code: int) -> str:
    if code == -9:
        return "the worker was killed (signal 9; often: out of memory)"
    return f"the worker died of signal {-code}" if code < 0 else f"the worker ended with exit code {code} and no result"
