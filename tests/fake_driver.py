"""A driver over fake steps in forked workers, as a process that tests can kill: `python fake_driver.py ROOT [RETRIES]`."""

import multiprocessing
import sys
from pathlib import Path

import fake_steps
from simulated_store import small_study
from tunescope.console import PlainDisplay
from tunescope.run.data_folder import DataFolder
from tunescope.run.driver import Driver, Policy
from tunescope.run.local import LocalExecutor
from tunescope.run.selection import Selection, select
from tunescope.run.state import survey
from tunescope.run.store import Launch, Store
from tunescope.study.plan import build_plan


def main(root: Path, retries: int = 0) -> None:
    fake_steps.install()
    plan, store, data = build_plan(small_study(serving=None)), Store(root / "runs"), DataFolder(root / "data")
    chosen = select(plan, Selection())
    executor = LocalExecutor(3, 1, "cpu", context=multiprocessing.get_context("fork"))
    launch = Launch(data_dir=str(root / "data"))
    display = PlainDisplay(chosen, survey(plan, store, data.check))
    Driver(
        plan, store, executor, chosen, launch, display, data.check, Policy(retries=retries, retry_failed=retries > 0, retry_budget=retries)
    ).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
