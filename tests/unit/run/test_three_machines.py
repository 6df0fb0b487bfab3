"""The plan's three machines without any cluster: a folder each, phases by hand, results merged by copying."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fake_steps import calls, control
from tunescope.run.files import read_json

TESTS = Path(__file__).parents[2]
MACHINES = ("vm1", "vm2", "vm3")


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    control(root / "data")
    return subprocess.Popen(
        [sys.executable, str(TESTS / "fake_driver.py"), str(root), *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def digests(root: Path) -> dict[str, str]:
    steps = root / "runs" / "steps"
    return {str(p.parent.relative_to(steps)): read_json(p)["digest"] for p in steps.rglob("result.json")}


def copy_together(target: Path, *sources: Path) -> None:
    """What a user does between phases: `cp -r` of the steps of every machine."""
    for source in sources:
        shutil.copytree(source / "runs" / "steps", target / "runs" / "steps", dirs_exist_ok=True)


@pytest.mark.slow
def test_three_folders_at_once_merge_to_what_one_machine_gives(tmp_path):
    alone = start(tmp_path / "alone")
    assert alone.wait(120) == 0, alone.stderr.read()
    roots = {vm: tmp_path / vm for vm in MACHINES}
    for phase in ("1", "2a"):
        drivers = [start(root, "--phase", phase, "--machine", vm) for vm, root in roots.items()]
        for driver in drivers:
            assert driver.wait(120) == 0, driver.stderr.read()
        merged = tmp_path / f"merged-{phase}"
        copy_together(merged, *roots.values())
        for root in roots.values():
            copy_together(root, merged)
    assert digests(tmp_path / "merged-2a") == digests(tmp_path / "alone")
    started = [i for root in roots.values() for i in calls(root / "data") if not i.startswith("data/")]
    assert len(started) == len(set(started)), "two machines did the same work"
