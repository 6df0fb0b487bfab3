"""Steps that do nothing: what planning, running and looking cost by themselves. `pytest -s` prints the figures.

Two thousand are planned. Five hundred are run, which is enough to see a cost that grows; SCALE_STEPS=2000 runs them all (two minutes).
"""

import multiprocessing
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

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
from tunescope.study.schema import StudyFile

SEEDS = (42, *range(1000, 1245))
STEPS = int(os.environ.get("SCALE_STEPS", "500"))


def cpu_s() -> float:
    """Processor seconds of this process and its ended children: unlike the clock, the same on a busy machine."""
    return sum(r.ru_utime + r.ru_stime for r in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)))


@pytest.mark.slow
def test_steps_cost_little_by_themselves(tmp_path, monkeypatch):
    fake_steps.guard(monkeypatch)
    monkeypatch.chdir(tmp_path)
    before = cpu_s()
    assert len(build_plan(small_study(serving=None, seeds=SEEDS)).steps) >= 1990
    planned = cpu_s() - before
    study = small_study(serving=None, seeds=SEEDS[: len(SEEDS) * STEPS // 2000])
    file = StudyFile.model_validate({"study": study.model_dump(mode="json"), "execution": {"tracking": {"wandb": "off"}}})
    Path("study.yaml").write_text(yaml.safe_dump(file.model_dump(mode="json")))
    plan = build_plan(study)
    store, data, chosen = Store(Path("runs") / study.name), DataFolder(Path("data")), select(plan, Selection())
    executor = LocalExecutor(4, 1, "cpu", context=multiprocessing.get_context("fork"))
    display = PlainDisplay(chosen, survey(plan, store, data.check))
    before, clock = cpu_s(), time.monotonic()
    states = Driver(plan, store, executor, chosen, Launch(data_dir="data"), display, data.check, Policy()).run()
    used, took = cpu_s() - before, time.monotonic() - clock
    assert {s.status for s in states.values()} == {"done"}

    before, clock = cpu_s(), time.monotonic()
    done = subprocess.run([sys.executable, "-m", "tunescope", "status", "study.yaml"], capture_output=True, text=True)
    looked, look_took = cpu_s() - before, time.monotonic() - clock
    assert f"{len(plan.steps)} done" in done.stdout, done.stdout[-300:] + done.stderr
    steps, load = len(plan.steps), os.getloadavg()[0]
    print(
        f"\n2,000 steps: plan {planned:.2f} s; {steps} steps: run {took / steps:.3f} s a step ({used / steps:.3f} s of processor); "
        f"status {look_took:.2f} s ({looked:.2f} s of processor); load {load:.1f}"
    )
    assert planned < 2
    assert used / steps < 0.3
    assert looked < 2
