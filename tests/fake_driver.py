"""A driver over fake steps, as a process that tests can kill: `python fake_driver.py ROOT [--retries N] [--ray ADDRESS] [--phase P …]`."""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import fake_steps
from simulated_store import small_study
from tunescope.console import PlainDisplay
from tunescope.errors import TunescopeError
from tunescope.run import driver
from tunescope.run.data_folder import DataFolder
from tunescope.run.driver import Driver, Policy
from tunescope.run.local import Executor, LocalExecutor
from tunescope.run.selection import Selection, select
from tunescope.run.state import survey
from tunescope.run.store import Launch, Store
from tunescope.study.plan import Plan, build_plan
from tunescope.study.schema import TASKS, RaySpec, Study, TaskSpec

PLACEMENT: dict[str, Any] = {
    "vm1": {"train": ("mrpc", "sst2"), "drift": ("mrpc", "sst2")},
    "vm2": {"train": ("squad_v2", "rte"), "drift": ("squad_v2", "rte")},
    "vm3": {"baseline": "all", "base-probe": "all", "correlate": "all"},
}


def open_executor(plan: Plan, store: Store, address: str | None) -> Executor:
    if address is None:
        return LocalExecutor(3, 1, "cpu", context=multiprocessing.get_context("fork"))
    from tunescope.run.ray_cluster import RayExecutor

    return RayExecutor(RaySpec(address=address), None, 1, "cpu", {s.id: s.machine for s in plan.steps}, store.root)


def hang(limit_s: float) -> None:
    """Let ending the workers hang; the driver waits `limit_s` for it."""
    driver.CLOSE_S = limit_s
    LocalExecutor.close = lambda self: time.sleep(600)  # type: ignore[method-assign]


def placed(study: Study) -> Plan:
    """The plan's three machines, for the tasks that the study has."""
    machines = {
        vm: {kind: tasks if tasks == "all" else [t for t in tasks if t in study.tasks] for kind, tasks in kinds.items()}
        for vm, kinds in PLACEMENT.items()
    }
    return build_plan(study, machines)


def main(root: Path, tasks: list[str], retries: int, address: str | None, phase: str | None, machine: str | None) -> None:
    fake_steps.install()
    study = small_study(serving=None, tasks={t: TaskSpec(max_length=512) for t in tasks})
    plan, store, data = placed(study), Store(root / "runs"), DataFolder(root / "data")
    chosen = select(plan, Selection(phase=phase, machine=machine))
    launch = Launch(data_dir=str(root / "data"))
    display = PlainDisplay(chosen, survey(plan, store, data.check))
    executor = open_executor(plan, store, address)
    policy = Policy(retries=retries, retry_failed=retries > 0, retry_budget=retries)
    Driver(plan, store, executor, chosen, launch, display, data.check, policy).run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--retries", type=int, default=0)
    for name in ("--ray", "--phase", "--machine"):
        parser.add_argument(name)
    parser.add_argument("--hang", type=float)
    given = parser.parse_args()
    if given.hang:
        hang(given.hang)
    try:
        main(given.root, given.tasks, given.retries, given.ray, given.phase, given.machine)
    except TunescopeError as error:
        sys.exit(f"error: {error}")
