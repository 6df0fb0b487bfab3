"""Real processes: kills, leases, interrupts, the fork server."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fake_steps import calls, control
from tunescope.forking import environment
from tunescope.run.driver import Policy
from tunescope.run.environment import worker_environment
from tunescope.run.files import read_json, write_json
from tunescope.run.gpus import Gpu, GpuRoom
from tunescope.run.lease import Process, Taken, hold, read_lease
from tunescope.run.local import PRELOAD, LocalExecutor
from tunescope.run.selection import Selection
from tunescope.run.session import Session
from tunescope.run.store import StepRecord

TESTS = Path(__file__).parents[2]


def forked(jobs: int = 2) -> LocalExecutor:
    return LocalExecutor(jobs, 1, "cpu", context=multiprocessing.get_context("fork"))


def start_driver(root: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, str(TESTS / "fake_driver.py"), str(root)], stderr=subprocess.DEVNULL, start_new_session=True)


def wait_for(condition, seconds: float = 20.0):
    limit = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.05)
    return value


def digests(root: Path) -> dict[str, str]:
    steps = root / "runs" / "steps"
    return {str(p.parent.relative_to(steps)): json.loads(p.read_text())["digest"] for p in steps.rglob("result.json")}


def live_workers(root: Path) -> list[int]:
    leases = [read_json(p) for p in (root / "runs" / "steps").rglob("lease.json")]
    return [lease["pid"] for lease in leases if lease and Process(lease["host"], lease["pid"], lease["started"]).alive()]


def test_kill_9_of_the_driver_and_resume_give_the_same_digests(tmp_path):
    control(tmp_path / "a" / "data")
    start_driver(tmp_path / "a").wait(60)
    control(tmp_path / "b" / "data", sleep_s=0.3)
    driver = start_driver(tmp_path / "b")
    wait_for(lambda: len(digests(tmp_path / "b")) >= 5 and live_workers(tmp_path / "b"))  # killed while a step is at work
    driver.kill()
    driver.wait()
    wait_for(lambda: not live_workers(tmp_path / "b"), 10)
    kept = digests(tmp_path / "b")
    calls(tmp_path / "b" / "data")
    control(tmp_path / "b" / "data")
    start_driver(tmp_path / "b").wait(60)
    assert digests(tmp_path / "b") == digests(tmp_path / "a")
    assert not set(calls(tmp_path / "b" / "data")) & set(kept)


def test_two_drivers_share_the_work_without_doing_it_twice(tmp_path):
    control(tmp_path / "data", sleep_s=0.1)
    drivers = [start_driver(tmp_path) for _ in range(2)]
    assert [d.wait(90) for d in drivers] == [0, 0]
    started = calls(tmp_path / "data")
    assert len(started) == len(set(started)) == len(digests(tmp_path))


def test_a_worker_that_is_killed_is_retried_then_reported(bench):
    bench.control(trouble={"base-probe/rte": "kill"})
    states = bench.run(Selection(only=("base-probe/*",)), policy=Policy(retries=1), executor=forked())
    assert bench.calls().count("base-probe/rte") == 2
    assert states["base-probe/rte"].status == "failed" and "signal 9" in states["base-probe/rte"].why
    assert states["base-probe/sst2"].status == "done"


def test_a_step_over_its_time_limit_is_stopped(bench):
    bench.control(sleep_s=30)
    began = time.monotonic()
    states = bench.run(Selection(only=("data/rte",)), policy=Policy(retries=0, timeout_s=1), executor=forked())
    assert states["data/rte"].status == "failed" and "execution.step_timeout_s" in states["data/rte"].why
    assert time.monotonic() - began < 10


def test_closing_the_executor_ends_its_workers(bench):
    bench.control(sleep_s=30)
    executor = forked()

    class Stop(BaseException):
        pass

    class Interrupting(type(executor)):
        def poll(self, timeout_s):
            wait_for(lambda: live_workers(bench.root))
            raise Stop

    executor.__class__ = Interrupting
    with pytest.raises(Stop):
        bench.run(executor=executor)
    assert live_workers(bench.root) == []
    assert digests(bench.root) == {}


def test_one_lease_at_a_time(tmp_path):
    with hold(tmp_path, None, lambda: None) as heartbeat:
        heartbeat.progress(2, 5, "two of five")
        with pytest.raises(Taken), hold(tmp_path, None, lambda: None):
            pass
        lease = wait_for(lambda: (found := read_lease(tmp_path)) and found.done and found)
        assert (lease.done, lease.total, lease.text, lease.pid) == (2, 5, "two of five", os.getpid())
    assert read_lease(tmp_path) is None


def test_the_heartbeat_notices_a_dead_driver(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    driver = Process.of(child.pid)
    noticed: list[bool] = []
    with hold(tmp_path, Process.parse(str(driver)), lambda: noticed.append(True)):
        child.kill()
        child.wait()
        wait_for(lambda: noticed, 5)


def test_a_write_is_whole_or_absent(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError, match="nan"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "b.json").write_text('{"x": ')
    assert read_json(tmp_path / "b.json") is None


@pytest.mark.slow
def test_the_fork_server_starts_no_thread_and_no_cuda():
    """A thread that lives at the fork is missing in the child, with its locks held."""
    code = (
        "import importlib, os, sys\n"
        "for name in sys.argv[1:]:\n    importlib.import_module(name)\n"
        "import torch\n"
        "print(len(os.listdir('/proc/self/task')), torch.cuda.is_initialized(), os.environ['OMP_NUM_THREADS'])\n"
    )
    with environment(worker_environment(2, "cpu")):
        done = subprocess.run([sys.executable, "-c", code, *PRELOAD], capture_output=True, text=True)
    assert done.stdout.split() == ["1", "False", "2"], done.stderr[-2000:]


@pytest.mark.slow
def test_the_fork_server_runs_real_data_steps(tmp_path):
    """The default executor end to end, through the installed command; no file shows a key of its environment."""
    command = [sys.executable, "-m", "tunescope", "run", "quickstart", "--only", "data/rte", "--only", "data/sst2", "--display", "plain"]
    keys = {"WANDB_API_KEY": "0123456789abcdef" * 2, "HF_TOKEN": "hf_planted_planted", "RAY_AUTH_TOKEN": "ray_planted_planted"}
    variables = {**os.environ, **keys, "WANDB_MODE": "offline", "HOME": str(tmp_path / "home")}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    provenance = read_json(tmp_path / "runs" / "quickstart" / "steps" / "data" / "rte" / "provenance.json")
    assert provenance["packages"]["torch"] and provenance["threads"] == 1 and provenance["data"]["source"] == "sample"
    assert len(list(tmp_path.rglob("offline-run-*/run-*.wandb"))) == 2 and "exec wandb sync" in done.stderr
    for path in (p for p in tmp_path.rglob("*") if p.is_file()):
        assert not any(key.encode() in path.read_bytes() for key in keys.values()), f"a key was written to {path}"


TINY = ["training.max_steps=4", "training.eval_every=2", "training.checkpoint_every=2", "training.log_every=1", "drift.probe_examples=20",
        "drift.every=2", "drift.early_steps=[1]", "seeds=[42]", "execution.tracking.wandb=off",
        "tasks.sst2.limits={train: 32, selection: 16, test: 16}"]  # fmt: skip
ONE_RUN = "train/sst2/lora/search-lr0.003-bs16/seed-42"


def tunescope(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tunescope", *arguments]


def tiny_run(only: str) -> list[str]:
    return tunescope("run", "quickstart", "--only", only, "--display", "plain", *(p for item in TINY for p in ("--set", item)))


@pytest.mark.slow
def test_forked_and_plain_workers_give_the_same_digest(tmp_path):
    """The fork server is a way to start, never a way to compute."""
    done = subprocess.run(tiny_run(ONE_RUN), cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "quickstart" / "steps" / ONE_RUN
    forked_result = read_json(folder / "result.json")
    step = (folder / "step.json").read_text()
    folder.rename(tmp_path / "forked")
    folder.mkdir()
    (folder / "step.json").write_text(step)
    plain = tunescope("run-step", str(folder.relative_to(tmp_path)))
    variables = {**os.environ, **worker_environment(1, "cpu")}
    subprocess.run(plain, cwd=tmp_path, env=variables, check=True, timeout=240)
    assert read_json(folder / "result.json")["digest"] == forked_result["digest"]


@pytest.mark.slow
def test_ctrl_c_is_exit_130_and_leaves_no_worker(tmp_path):
    driver = subprocess.Popen(tiny_run("train/sst2/*"), cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    steps = tmp_path / "runs" / "quickstart" / "steps"
    workers = wait_for(lambda: [lease for p in steps.rglob("train/**/lease.json") if (lease := read_json(p))], 120)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(20) == 130
    assert "goes on where this stopped" in driver.stderr.read()
    for lease in workers:
        wait_for(lambda lease=lease: not Process(lease["host"], lease["pid"], lease["started"]).alive(), 5)


def test_an_executor_that_hangs_when_it_closes_does_not_hang_the_driver_and_leaves_no_worker(tmp_path):
    control(tmp_path / "data", sleep_s=300)
    command = [sys.executable, str(TESTS / "fake_driver.py"), str(tmp_path), "--tasks", "rte", "--hang", "1"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        lease = wait_for(lambda: next((lease for p in (tmp_path / "runs/steps").rglob("lease.json") if (lease := read_json(p))), None))
        driver.send_signal(signal.SIGINT)
        assert driver.wait(20) == 130
    finally:
        driver.kill()
    said = driver.stderr.read()
    assert said.count("hangs since 1 s: given up") == 1 and "Traceback" not in said
    wait_for(lambda: not Process(lease["host"], lease["pid"], lease["started"]).alive(), 5)


@pytest.mark.slow
def test_plain_workers_start_with_their_gpu_and_end_on_time(tmp_path, monkeypatch):
    """The way of CUDA and of serving: a new interpreter, one GPU name a slot."""
    monkeypatch.chdir(tmp_path)
    session = Session.open("quickstart", ["execution.tracking.wandb=off"])
    executor = LocalExecutor(2, 1, "cuda", GpuRoom([Gpu("7", 2**30), Gpu("8", 2**30)], lambda step_id: 0, 1))
    for step_id in ("data/rte", "data/mrpc"):
        step = session.plan[step_id]
        inputs = step.inputs.model_dump(mode="json")
        record = StepRecord(
            study="quickstart", id=step_id, kind="data", phase="1", inputs=inputs, upstream={}, fingerprint="0" * 64,
            launch=session.launch().model_copy(update={"device": "cuda"}),
        )  # fmt: skip
        executor.submit(step_id, "data", session.store.prepare(record))
    seen = {psutil.Process(worker.pid).environ().get("CUDA_VISIBLE_DEVICES") for worker in executor._workers.values()}
    ended = wait_for(lambda: executor.poll(1.0), 120)
    assert seen == {"7", "8"}
    ended += wait_for(lambda: executor.poll(1.0), 120) if len(ended) < 2 else []
    assert {e.code for e in ended} == {0}
    assert session.store.result("data/rte")[0] is not None
