"""Faults on purpose. After each: nothing finished is lost, nothing half-done counts as done, and the end is that of a clean run."""

import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

import fake_steps
from fake_steps import control
from tunescope.cli import main
from tunescope.errors import OutOfMemoryError
from tunescope.run import lease as leases
from tunescope.run.driver import Policy
from tunescope.run.files import read_json
from tunescope.run.lease import Lease, Process, hold
from tunescope.run.local import LocalExecutor
from tunescope.run.selection import Selection
from tunescope.run.store import Store

TESTS = Path(__file__).parents[2]
ONE = Selection(only=("data/rte",))


def forked(jobs: int = 2) -> LocalExecutor:
    return LocalExecutor(jobs, 1, "cpu", context=multiprocessing.get_context("fork"))


def digests(root: Path) -> dict[str, str]:
    """Of every usable result, by the store's own judgement."""
    store, steps = Store(root / "runs"), root / "runs" / "steps"
    found = {i: store.result(i)[0] for i in (str(p.parent.relative_to(steps)) for p in steps.rglob("result.json"))}
    return {i: f.result["digest"] for i, f in found.items() if f}


def die_at(point: int) -> None:
    """Kill this process at its nth touch of a file: opening, renaming, removing, making a folder."""
    seen = 0

    def hook(event: str, _: object) -> None:
        nonlocal seen
        if event in ("open", "os.rename", "os.remove", "os.mkdir"):
            seen += 1
            if seen == point:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def in_a_fork(function) -> int:
    """Exit code of a function in a forked process; negative for a signal."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
def test_a_driver_and_worker_killed_at_any_touch_of_a_file_lose_nothing(bench, tmp_path):
    """Driver and worker in one process, killed at the 1st, 2nd, … file operation, then run again to the end."""
    bench.run(ONE)
    clean = digests(bench.root)
    killed = 0
    for point in range(1, 400):
        bench.root = tmp_path / str(point)

        def doomed(point=point):
            die_at(point)
            bench.run(ONE)

        code = in_a_fork(doomed)
        kept = digests(bench.root)
        assert set(kept.items()) <= set(clean.items()), f"half a result counted at point {point}"
        bench.calls()
        states = bench.run(ONE)
        assert states["data/rte"].status == "done" and digests(bench.root) == clean
        assert not kept or bench.calls() == [], f"a finished step ran again after point {point}"
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
    assert code == 0 and killed >= 30


@pytest.mark.slow
def test_fifty_kills_of_workers_and_drivers_at_random_times_leave_the_digests_of_a_clean_run(tmp_path):
    control(tmp_path / "clean" / "data")
    assert start(tmp_path / "clean").wait(120) == 0
    clean, chance = digests(tmp_path / "clean"), random.Random(1337)
    root, kills, settled = tmp_path / "hurt", {"driver": 0, "worker": 0}, {}
    control(root / "data", sleep_s=0.3)
    driver, limit = start(root), time.monotonic() + 200
    while driver.poll() is None or len(digests(root)) < len(clean):
        if driver.poll() is not None:
            driver = start(root)
        time.sleep(chance.uniform(0.0, 0.25))
        if sum(kills.values()) >= 60:
            control(root / "data")
        elif chance.random() < 0.25:
            driver.kill()
            driver.wait()
            kills["driver"] += 1
        else:
            for pid in holders(root)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    kills["worker"] += 1
        now = digests(root)
        assert settled.items() <= now.items(), "a finished step was lost"
        settled = now
        assert time.monotonic() < limit, f"not finished: {len(now)} of {len(clean)} steps, {kills}"
    driver.wait(60)
    assert digests(root) == clean
    assert kills["driver"] >= 5 and sum(kills.values()) >= 50, kills


def start(root: Path) -> subprocess.Popen:
    """A driver that tries failed steps again as often as it takes."""
    command = [sys.executable, str(TESTS / "fake_driver.py"), str(root), "--retries", "1000", "--tasks", "sst2", "rte"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True)


def holders(root: Path) -> list[int]:
    """Processes that hold a lease now."""
    found = (read_json(p) for p in (root / "runs" / "steps").rglob("lease.json"))
    return [v["pid"] for v in found if v and Process(v["host"], v["pid"], v["started"]).alive()]


@pytest.mark.parametrize("name", ["result.json", "step.json"])
def test_no_bit_of_a_result_can_change_unnoticed(bench, name):
    bench.run(ONE)
    path = bench.store.folder("data/rte") / name
    whole, chance = path.read_bytes(), random.Random(7)
    for position in chance.sample(range(len(whole)), 120):
        hurt = bytearray(whole)
        hurt[position] ^= 1 << chance.randrange(8)
        path.write_bytes(bytes(hurt))
        if _same(bytes(hurt), whole) and name == "result.json":
            continue  # white space, or another spelling of the same number
        assert bench.states()["data/rte"].status == "todo", (position, whole[position], hurt[position])
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:length])
        assert bench.states()["data/rte"].status == "todo"
    assert bench.run(ONE)["data/rte"].status == "done"


def _same(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_an_artefact_with_a_flipped_bit_is_not_read(bench):
    """Its size is right, so only the hash tells; the step that would read it says which file, and nothing is computed from it."""
    bench.run(Selection(kinds=("train", "base-probe"), tasks=("sst2",)))
    train = "train/sst2/lora/final/seed-42"
    path = bench.store.folder(train) / "out.txt"
    text = path.read_text()
    path.write_text(text[:-1] + ("0" if text[-1] != "0" else "1"))
    state = bench.run(Selection(only=("drift/sst2",)))["drift/sst2"]
    assert state.status == "blocked" and f"{train}: out.txt is not what the step wrote" in state.why
    path.write_text(text)
    assert bench.run(Selection(only=("drift/sst2",)))["drift/sst2"].status == "done"


def test_checkpoints_stay_until_the_result_is_written(bench, monkeypatch):
    from tunescope import steps
    from tunescope.run import provenance

    def train(inputs, ctx):
        (ctx.folder / "checkpoints" / "probes").mkdir(parents=True, exist_ok=True)
        (ctx.folder / "checkpoints" / "probes" / "step-1").write_text("rows")
        return fake_steps.fake_step(inputs, ctx)

    monkeypatch.setattr(steps, "step_function", lambda kind: train)
    monkeypatch.setattr(provenance, "write_provenance", lambda store, record: 1 / 0)
    folder = bench.store.folder("data/rte")
    assert bench.run(ONE)["data/rte"].status == "failed" and (folder / "checkpoints").exists()
    monkeypatch.setattr(provenance, "write_provenance", lambda store, record: None)
    state = bench.run(ONE, policy=Policy(retries=0, retry_failed=True))["data/rte"]
    assert state.status == "done" and state.finished.result["files"] == {} and not (folder / "checkpoints").exists()


def test_a_full_disk_blocks_the_step_and_the_next_run_does_it(bench, monkeypatch):
    from tunescope import steps

    def full(inputs, ctx):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(ctx.folder / "big.bin"))

    monkeypatch.setattr(steps, "step_function", lambda kind: full)
    state = bench.run(ONE, policy=Policy(retries=3))["data/rte"]
    assert state.status == "blocked" and "No space left" in state.why and "big.bin" in state.why
    monkeypatch.undo()
    fake_steps.guard(monkeypatch)
    assert bench.run(ONE)["data/rte"].status == "done"


def test_a_limit_on_file_sizes_hits_the_real_write(bench):
    """The kernel refuses the write itself: no half file stays, and the driver ends with an error that names the file."""

    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        with contextlib.suppress(OSError):
            bench.run(ONE)
            os._exit(9)
        os._exit(5)

    assert in_a_fork(limited) == 5
    assert digests(bench.root) == {} and not list(bench.root.rglob("*.tmp"))
    assert bench.run(ONE)["data/rte"].status == "done"


def test_a_tmpfs_that_is_full_is_exit_3_and_resumes(tmp_path, monkeypatch, capfd):
    small = tmp_path / "small"
    small.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        check_unwritable(small, monkeypatch, capfd, lambda: fill(small), lambda: (small / "filler").unlink(), "No space left")
    finally:
        subprocess.run(["umount", small], check=True)


def fill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


def test_a_read_only_folder_is_exit_3_and_can_still_be_looked_at(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "store"
    folder.mkdir()
    if os.getuid() != 0 or subprocess.run(["mount", "--bind", folder, folder], capture_output=True).returncode:
        pytest.skip("a read-only bind mount needs root")

    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,bind,{mode}", folder], check=True)

    try:
        check_unwritable(folder, monkeypatch, capfd, lambda: remount("ro"), lambda: remount("rw"), "Read-only file system")
    finally:
        subprocess.run(["umount", folder], check=True)


def check_unwritable(folder: Path, monkeypatch, capfd, shut, reopen, expected: str) -> None:
    """One step done; then the folder takes nothing more: exit 3, a message, the done step stays; then it takes writes again."""
    fake_steps.guard(monkeypatch)
    monkeypatch.setattr("tunescope.run.session.LocalExecutor", lambda *a, **k: fake_steps.Inline())
    monkeypatch.chdir(folder.parent)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    command = ["run", "quickstart", "--display", "none", "--set", f"execution.paths.runs={folder}", "--set", "serving=null", "--only"]
    try:
        assert main([*command, "data/rte"]) == 0
        shut()
        capfd.readouterr()
        assert main([*command, "data/sst2"]) == 3
        assert expected in capfd.readouterr().err
        assert main(["status", "quickstart", "--set", f"execution.paths.runs={folder}", "--set", "serving=null", "--only", "data/*"]) == 0
        assert "1 done" in capfd.readouterr().out
        reopen()
        assert main([*command, "data/sst2"]) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_clock_that_jumps_makes_nobody_dead(tmp_path, monkeypatch):
    """NTP moves the clock by hours: neither driver nor lease holder may be taken for another process, here or on another host."""
    me = Process.current()
    with hold(tmp_path, me, lambda: pytest.fail("took its driver for dead")):
        now = time.time()
        for jump in (-86_400, 86_400):
            monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
            time.sleep(1.2)
            assert Process.current() == me and me.alive()
            assert leases.read_lease(tmp_path) is not None
    assert leases.read_lease(tmp_path) is None


def test_a_worker_of_a_host_whose_clock_is_off_is_not_replaced_and_a_dead_one_is(bench, monkeypatch):
    bench.run(ONE)
    record = bench.store.record("data/rte")
    store, folder = bench.store, bench.store.folder("data/rte")
    (folder / "result.json").unlink()
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def beat(at: float) -> None:
        (folder / "lease.json").write_text(json.dumps(asdict(Lease("elsewhere", 1, 0.0, 0.0, at))))

    for at in range(5):  # its clock is years behind, but the heartbeat moves
        beat(float(at))
        assert store.prepare(record) is None
        clock[0] += leases.SILENCE_S - 1
    clock[0] += 2
    assert store.prepare(record) == folder
    beat(time.time() + 30)  # looks fresh, and stands still: given up after the long wait only
    assert store.prepare(record) is None
    clock[0] += leases.SILENCE_S + 1
    assert store.prepare(record) is None
    clock[0] += leases.FOREIGN_LIMIT_S
    assert store.prepare(record) == folder


def test_a_driver_that_looked_too_early_does_not_undo_what_another_finished(bench):
    """Between one driver's look at the folders and its start of a step, another driver may have done the step."""
    bench.run(ONE)
    result = bench.store.result("data/rte")[0].result
    assert bench.store.prepare(bench.store.record("data/rte")) is None
    assert Store(bench.store.root).result("data/rte")[0].result == result
    assert not bench.store.attic().exists()


def test_a_slow_disk_cannot_revive_a_lease_that_was_released(tmp_path, monkeypatch):
    """The last heartbeat hangs in its write for longer than any wait; the lease is released only after it."""
    write = leases.write_json

    def slow(path, value, *, durable=True):
        time.sleep(0.8)
        write(path, value, durable=durable)

    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    with hold(tmp_path, None, lambda: None):
        monkeypatch.setattr(leases, "write_json", slow)
        time.sleep(0.2)
    assert not (tmp_path / "lease.json").exists()
    time.sleep(1.0)
    assert not (tmp_path / "lease.json").exists()


def test_a_hanging_worker_is_stopped_and_tried_again(bench):
    bench.control(trouble={"data/rte": "hang once"})
    states = bench.run(ONE, policy=Policy(retries=1, timeout_s=1.5), executor=forked())
    assert states["data/rte"].status == "done" and bench.calls() == ["data/rte"] * 2
    assert any("execution.step_timeout_s" in note for note in bench.notes)


class Crowd(fake_steps.Inline):
    """Ends the workers of some steps as the kernel does when memory runs out, while anything runs beside them."""

    def __init__(self, victims):
        super().__init__(capacity=3)
        self.victims, self.alone = set(victims), set()

    def poll(self, timeout_s):
        from tunescope.run.local import Ended

        if self.waiting and self.waiting[0][0] in self.victims:
            if len(self.waiting) > 1 or self.beside[self.waiting[0][0]]:
                return [Ended(self.waiting.pop(0)[0], -signal.SIGKILL)]
            self.alone.add(self.waiting[0][0])
        return super().poll(timeout_s)


def test_what_ran_out_of_memory_in_company_is_tried_again_with_nothing_beside_it(bench):
    crowd = Crowd({"baseline/sst2", "base-probe/rte"})
    states = bench.run(policy=Policy(retries=1), executor=crowd)
    assert {s.status for s in states.values()} == {"done"}
    assert crowd.alone == crowd.victims
    assert sum("with nothing beside it" in note for note in bench.notes) == 2


def test_out_of_gpu_memory_alone_is_final(bench, monkeypatch):
    from tunescope import steps

    tries = []

    def full(inputs, ctx):
        tries.append(ctx.folder)
        raise OutOfMemoryError("out of GPU memory at micro-batch 1")

    monkeypatch.setattr(steps, "step_function", lambda kind: full)
    assert bench.run(ONE, policy=Policy(retries=5))["data/rte"].status == "failed"
    assert len(tries) == 1
    tries.clear()
    bench.run(Selection(kinds=("data",)), policy=Policy(retries=1, retry_failed=True))
    assert len(tries) == 4  # both in company, then each alone


def test_a_run_has_a_retry_budget(bench):
    bench.control(trouble={f"{kind}/{task}": "bug" for kind in ("baseline", "base-probe") for task in ("sst2", "rte")})
    bench.run(Selection(kinds=("baseline", "base-probe")), policy=Policy(retries=5, retry_budget=3))
    assert len([i for i in bench.calls() if not i.startswith("data/")]) == 4 + 3
