"""A small study over fake steps, run in this process."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import fake_steps
from simulated_store import small_study
from tunescope.run.data_folder import DataFolder
from tunescope.run.driver import Driver, Policy
from tunescope.run.selection import Selection, select
from tunescope.run.state import StepState, survey
from tunescope.run.store import Launch, Store
from tunescope.study.plan import build_plan
from tunescope.study.schema import Study, TaskSpec


@dataclass
class Silent:
    """A display that remembers."""

    notes: list[str] = field(default_factory=list)

    def started(self, step: Any) -> None: ...

    def finished(self, state: Any, seconds: float) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, states: Any, running: Any) -> None: ...

    def close(self) -> None: ...


@dataclass
class Bench:
    """One store and the ways tests use it."""

    root: Path
    notes: list[str] = field(default_factory=list)

    @property
    def data_dir(self) -> Path:
        return self.root / "data"

    @property
    def store(self) -> Store:
        return Store(self.root / "runs")

    @staticmethod
    def study(**changes: Any) -> Study:
        """Two tasks are enough, and quicker than four."""
        tasks = {task: TaskSpec(max_length=512) for task in ("sst2", "rte")}
        return small_study(**{"serving": None, "tasks": tasks, **changes})

    def run(
        self, selection: Selection | None = None, policy: Policy | None = None, executor: Any = None, **study: Any
    ) -> dict[str, StepState]:
        plan = build_plan(self.study(**study))
        store, data = self.store, DataFolder(self.data_dir)
        chosen = select(plan, selection or Selection())
        data.verify(plan, store, chosen.needed)
        display = Silent()
        executor = executor or fake_steps.Inline()
        launch = Launch(data_dir=str(self.data_dir))
        driver = Driver(plan, store, executor, chosen, launch, display, data.check, policy or Policy(retries=0))
        try:
            return driver.run()
        finally:
            self.notes = display.notes

    def states(self, **study: Any) -> dict[str, StepState]:
        return survey(build_plan(self.study(**study)), self.store, DataFolder(self.data_dir).check)

    def calls(self) -> list[str]:
        return fake_steps.calls(self.data_dir)

    def control(self, **settings: Any) -> None:
        fake_steps.control(self.data_dir, **settings)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    fake_steps.guard(monkeypatch)
    return Bench(tmp_path)
