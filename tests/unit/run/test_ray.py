"""A real Ray cluster of several nodes on this machine: the same digests as the local executor, whatever is lost on the way."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fake_steps import calls, control

pytest.importorskip("ray", reason="Ray is not installed (requirements/cluster.txt)")
pytestmark = [pytest.mark.ray, pytest.mark.slow]
TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    """Steps of child processes are fakes; Ray asks nobody for anything and reports nothing."""
    with pytest.MonkeyPatch.context() as patch:
        paths = [str(TESTS / "fake_site"), str(TESTS), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "5")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


class Machines:
    """A head without cores, and nodes that say that they are vm1 and vm2; no node is vm3, so its steps run anywhere."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.nodes = {name: self.add(name) for name in ("vm1", "vm2")}

    def add(self, name: str) -> Any:
        return self.cluster.add_node(num_cpus=2, resources={f"machine:{name}": 1}, include_dashboard=False)

    @property
    def address(self) -> str:
        return self.cluster.address


@pytest.fixture(scope="module")
def machines(environment: None) -> Iterator[Machines]:
    found = Machines()
    yield found
    found.cluster.shutdown()


def start(root: Path, address: str | None) -> subprocess.Popen[str]:
    command = [sys.executable, str(TESTS / "fake_driver.py"), str(root), "--tasks", "sst2", "rte", *(["--ray", address] if address else [])]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def local(environment: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the local executor."""
    root = tmp_path_factory.mktemp("local")
    driver = start(root, None)
    assert driver.wait(120) == 0, driver.stderr.read()
    return digests(root)


def digests(root: Path) -> dict[str, str]:
    steps = root / "runs" / "steps"
    return {str(p.parent.relative_to(steps)): json.loads(p.read_text())["digest"] for p in steps.rglob("result.json")}


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    limit = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)
    return value


def running(root: Path) -> list[psutil.Process]:
    """Live workers of a store."""
    return [p for p in psutil.process_iter(["cmdline"]) if "run-step" in (c := p.info["cmdline"] or []) and any(str(root) in a for a in c)]


def test_the_same_digests_as_the_local_executor_and_each_step_once(tmp_path, machines, local):
    driver = start(tmp_path, machines.address)
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    assert digests(tmp_path) == local
    started = calls(tmp_path / "data")
    assert sorted(started) == sorted(local)


def test_a_node_that_is_lost_costs_only_what_ran_on_it(tmp_path, machines, local):
    control(tmp_path / "data", sleep_s=1.0)
    driver = start(tmp_path, machines.address)
    node = machines.nodes["vm2"]
    raylet = node.all_processes["raylet"][0].process.pid
    mine = wait_for(lambda: [w for w in running(tmp_path) if raylet in {p.pid for p in w.parents()}])
    lost = {step for w in mine for step in local if any(part.endswith(f"/steps/{step}") for part in w.cmdline())}
    machines.cluster.remove_node(node, allow_graceful=False)
    wait_for(lambda: not any(w.is_running() and w.status() != psutil.STATUS_ZOMBIE for w in mine), 15)
    control(tmp_path / "data")
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode == 0, errors
    assert digests(tmp_path) == local
    started = calls(tmp_path / "data")
    assert lost and {i for i in started if started.count(i) > 1} <= lost
    machines.nodes["vm2"] = machines.add("vm2")


def test_interrupting_the_driver_leaves_no_worker(tmp_path, machines):
    control(tmp_path / "data", sleep_s=30)
    driver = start(tmp_path, machines.address)
    wait_for(lambda: running(tmp_path))
    driver.send_signal(signal.SIGINT)
    try:
        driver.wait(30)
    except subprocess.TimeoutExpired:  # Ray can lose the exception in a callback of its own; a user presses again
        driver.send_signal(signal.SIGINT)
        driver.wait(30)
    wait_for(lambda: not running(tmp_path), 10)


def test_a_head_that_is_lost_ends_the_driver_and_a_new_one_goes_on(tmp_path, machines, local):
    """Last in this file: it takes the head away."""
    control(tmp_path / "data", sleep_s=0.5)
    driver = start(tmp_path, machines.address)
    wait_for(lambda: len(digests(tmp_path)) >= 4)
    machines.cluster.head_node.kill_gcs_server(check_alive=False)
    _, errors = driver.communicate(timeout=240)
    assert driver.returncode not in (0, None) and "Failed to connect to GCS" in errors
    machines.cluster.shutdown()
    wait_for(lambda: not running(tmp_path), 30)
    kept = digests(tmp_path)
    assert 4 <= len(kept) < len(local)
    calls(tmp_path / "data")
    control(tmp_path / "data")
    again = Machines()
    try:
        driver = start(tmp_path, again.address)
        _, errors = driver.communicate(timeout=240)
    finally:
        again.cluster.shutdown()
    assert driver.returncode == 0, errors
    assert digests(tmp_path) == local
    assert not set(calls(tmp_path / "data")) & set(kept)
