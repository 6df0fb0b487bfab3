"""The loop that takes a plan to its end: start what is ready, watch, retry, and say what happened."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from tunescope.errors import TunescopeError
from tunescope.study.outline import seconds
from tunescope.study.plan import Plan, Step

from .local import PLAIN_START, Ended, Executor
from .registration import register
from .selection import Chosen
from .state import DataCheck, States, StepState, Surveyor, survey
from .store import Launch, StepRecord, Store
from .worker import TAKEN

MEMORY = ("OutOfMemoryError", "MemoryError")
"""Failures that having the machine to itself may cure."""
LOOK_S = 2.0
"""How often all folders are looked at, as other drivers may be at work; in between only those of our own steps."""
CLOSE_S = 60.0
"""How long ending the workers may take. It takes seconds, but the library of a cluster can hang in it, deaf to signals and exceptions."""
INTERRUPTED = 130


class Display(Protocol):
    """Where a run is shown. Talk only; results are files."""

    def started(self, step: Step) -> None: ...

    def finished(self, state: StepState, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def update(self, states: States, running: dict[str, float]) -> None: ...

    def close(self) -> None: ...


@contextmanager
def undisturbed() -> Iterator[None]:
    """Pass over Ctrl-C and polite kills: workers are being ended, which is short, and must not be left behind half ended."""
    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread only
        yield
        return
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: set by a library outside Python


@dataclass(frozen=True)
class Policy:
    """What to do when something goes wrong."""

    retries: int = 1
    timeout_s: float | None = None
    retry_failed: bool = False
    fail_fast: bool = False
    retry_budget: int = 20
    """Retries of the whole run: on a broken machine every step fails, and trying each of them again helps nobody."""


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
    overdue: set[str] = field(default_factory=set)
    """Running steps that were stopped at their time limit."""
    accompanied: set[str] = field(default_factory=set)
    """Steps that had company in their last attempt."""
    alone: set[str] = field(default_factory=set)
    """Steps that ran out of memory in company: they are tried again with nothing beside them."""
    retried: int = 0
    stopping: bool = False

    def run(self) -> dict[str, StepState]:
        """Work until nothing more can be done; returns the last states, from files looked at anew."""
        try:
            states = self._forgive(self.survey())
            looked = self.clock()
            while True:
                contended = self._start_ready(states)
                if not self.started and not contended and not self._elsewhere(states):
                    return survey(self.plan, Store(self.store.root), self.data_check)
                self._end_overdue()
                ended = self.executor.poll(0.25)
                anew = contended or self.clock() - looked > LOOK_S
                if ended or anew:
                    states = self._settle(ended, anew)
                looked = self.clock() if anew else looked
                self.display.update(states, self.started)
        finally:
            self._close()

    def _close(self) -> None:
        """End the workers; when that hangs, leave the process."""
        limit = threading.Timer(CLOSE_S, self._leave, [sys.exception()])
        limit.daemon = True
        with undisturbed():
            limit.start()
            try:
                self.executor.close()
            finally:
                limit.cancel()

    def _leave(self, error: BaseException | None) -> None:
        """End this process at once, whatever hangs in it, and thereby the workers: each ends when it finds its driver gone."""
        why = f"{type(error).__name__}: {error}; " if isinstance(error, Exception) else ""
        try:
            self.display.note(
                f"{why}ending the workers hangs since {CLOSE_S:g} s: given up. They end with this process (jobs of Slurm may stay in its "
                "queue: squeue, scancel); the same command goes on where this stopped"
            )
            self.display.close()
            sys.stdout.flush()
        finally:
            os._exit(error.exit_code if isinstance(error, TunescopeError) else INTERRUPTED)

    def survey(self) -> dict[str, StepState]:
        return self._surveyor.survey()

    @cached_property
    def _surveyor(self) -> Surveyor:
        return Surveyor(self.plan, self.store, self.data_check)

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
        ready.sort(key=lambda s: (self._exclusive(s.step), -self.rank[s.step.id]))
        contended = False
        for state in ready:
            if self.stopping or not self._room(state.step):
                break
            contended |= not self._start(state)
        return contended

    def _room(self, step: Step) -> bool:
        """Whether a step may start now. Smaller ones do not overtake a step that waits for memory: it would wait for ever."""
        if any(self._exclusive(self.plan[i]) for i in self.started):
            return False
        if self._exclusive(step):
            return not self.started
        return len(self.started) < self.executor.capacity and self.executor.fits(step.id)

    def _exclusive(self, step: Step) -> bool:
        """A serve step measures time, so nothing runs beside it; nor beside a step that ran out of memory in company."""
        return step.kind in PLAIN_START or step.id in self.alone

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
        folder = self.store.prepare(record, again=state.again)
        if folder is None:
            return False
        if step.role == "final":
            register(self.plan.study, self.store, step.id)
        if state.status == "stale":
            self.display.note(f"{step.id}: stale ({state.why}); the old result moved to the attic")
        elif state.why:
            self.display.note(f"{step.id}: {state.why}")
        self.executor.submit(step.id, step.kind, folder)
        self.started[step.id] = self.clock()
        self.accompanied.discard(step.id)
        if len(self.started) > 1:
            self.accompanied |= self.started.keys()
        self.attempts[step.id] = self.attempts.get(step.id, 0) + 1
        self.display.started(step)
        return True

    def _settle(self, ended: list[Ended], anew: bool) -> dict[str, StepState]:
        """Record how workers ended and look at their folders, or at all of them; a step that is retried is ready again in the states."""
        took = {item.step_id: self.clock() - self.started.pop(item.step_id) for item in ended}
        for item in ended:
            if item.code == TAKEN:
                self.attempts[item.step_id] -= 1
            elif self._result_missing(item.step_id) and not self._retry(item):
                self._record_crash(item)
        states = self.survey() if anew else self._surveyor.update(took.keys() | self.started.keys())
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
        """Try again after a crash, an unexpected error or the time limit; a user error would only come again, as would a lack of memory
        with nothing beside."""
        failure = self.store.failure(item.step_id)
        memory = failure is not None and failure.type in MEMORY
        if (failure and not failure.retryable) or self.attempts[item.step_id] > self.policy.retries:
            return False
        if (memory and item.step_id not in self.accompanied) or self.retried >= self.policy.retry_budget:
            return False
        if (memory or item.code == -signal.SIGKILL) and item.step_id in self.accompanied - self.overdue:
            self.alone.add(item.step_id)
        self.store.forget_failure(item.step_id)
        how = "trying again with nothing beside it" if item.step_id in self.alone else "trying again"
        self.display.note(f"{item.step_id}: {failure.message if failure else self._ending(item)}; {how}")
        self.retried += 1
        self.overdue.discard(item.step_id)
        return True

    def _record_crash(self, item: Ended) -> None:
        """A worker that could not write its own error.json."""
        record = self.store.record(item.step_id)
        if record is None or self.store.failure(item.step_id):
            return
        kind = "Timeout" if item.step_id in self.overdue else "Crash"
        spent = f"; the run's {self.policy.retry_budget} retries are spent" if self.retried >= self.policy.retry_budget > 0 else ""
        self.store.fail(record, kind, f"{self._ending(item)}; see {self.store.folder(item.step_id) / 'log.txt'}{spent}")

    def _ending(self, item: Ended) -> str:
        """How a worker ended, in words."""
        if item.step_id in self.overdue:
            return f"stopped after {self.policy.timeout_s:g} s (execution.step_timeout_s)"
        if item.code == -signal.SIGKILL:
            return "the worker was killed (signal 9; often: out of memory)"
        return f"the worker died of signal {-item.code}" if item.code < 0 else f"the worker ended with exit code {item.code} and no result"

    def _end_overdue(self) -> None:
        limit = self.policy.timeout_s
        for step_id, since in self.started.items():
            if limit and self.executor.waiting(step_id):
                self.started[step_id] = self.clock()
            elif limit and step_id not in self.overdue and self.clock() - since > limit:
                self.overdue.add(step_id)
                self.executor.cancel(step_id)

    def _elsewhere(self, states: States) -> bool:
        """Whether another driver is at a step that ours need."""
        return not self.stopping and any(states[i].status == "running" for i in self.chosen.needed)
