import json
import multiprocessing.forkserver
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fake_launch
from tunescope.serve.launch import environment, failed_row, prepare_environment, write_row
from tunescope.serve.session import ForkServer, append_row, keep_finished, read_rows, root_cause, run_launch, run_session


def python(tmp_path, code, timeout=20.0, **kwargs):
    result = tmp_path / "row.json"
    return run_launch([sys.executable, "-c", code, str(result)], result, tmp_path / "log.txt", timeout, **kwargs)


def gone(pid):
    """Whether a process has ended (a zombie that nobody reaps yet counts as ended)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_gone(pid, seconds=10.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not gone(pid):
        time.sleep(0.05)
    return gone(pid)


def killed_once_it_runs(session, pid_file):
    """Kill a session once its launch has told its process id; returns that id."""
    end = time.monotonic() + 20
    while time.monotonic() < end and not (pid_file.is_file() and pid_file.read_text()):
        time.sleep(0.05)
    session.send_signal(signal.SIGKILL)
    session.wait()
    return int(pid_file.read_text())


WRITES = "import json,sys; json.dump({'ok': True, 'error': None, 'x': 1}, open(sys.argv[1], 'w'))"


def test_a_finished_child_gives_its_row(tmp_path):
    assert python(tmp_path, WRITES) == {"ok": True, "error": None, "x": 1}


def test_an_old_result_is_never_taken_for_a_new_one(tmp_path):
    (tmp_path / "row.json").write_text('{"ok": true}')
    assert python(tmp_path, "pass")["ok"] is False


def test_a_dead_child_tells_its_exit_code_and_last_words(tmp_path):
    row = python(tmp_path, "import sys; print('out of memory', file=sys.stderr); sys.exit(7)")
    assert row["ok"] is False and "exit code 7" in row["error"] and "out of memory" in row["error"]


def test_a_killed_child_tells_the_signal(tmp_path):
    row = python(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert "SIGKILL" in row["error"] and "log.txt is empty" in row["error"]


def test_a_hanging_child_ends_at_the_time_limit_with_all_its_children(tmp_path):
    code = (
        "import subprocess, sys, time, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1]).with_name('pid').write_text(str(child.pid))\n"
        "time.sleep(60)"
    )
    start = time.monotonic()
    row = python(tmp_path, code, timeout=1.5)
    assert time.monotonic() - start < 10
    assert row["ok"] is False and "time limit of 1.5 s" in row["error"]
    assert wait_gone(int((tmp_path / "pid").read_text()))


def test_what_a_finished_child_leaves_running_is_ended(tmp_path):
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "pathlib.Path(sys.argv[1]).with_name('pid').write_text(str(child.pid))\n" + WRITES
    )
    assert python(tmp_path, code)["ok"] is True
    assert wait_gone(int((tmp_path / "pid").read_text()))


def test_a_zombie_that_nobody_reaps_is_not_waited_for(tmp_path):
    """The keeper, in a group of its own, never reaps its child, which is in the launch's group: so do some first processes."""
    code = (
        "import os, pathlib, sys, time\n"
        "group = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    os.setpgid(0, 0)\n"
        "    orphan = os.fork()\n"
        "    if orphan == 0:\n"
        "        os.setpgid(0, group)\n"
        "        pathlib.Path(sys.argv[1]).with_name('pids').write_text(f'{os.getppid()} {os.getpid()}')\n"
        "    time.sleep(60)\n"
        "while not pathlib.Path(sys.argv[1]).with_name('pids').exists():\n"
        "    time.sleep(0.01)\n"
        "time.sleep(0.1)\n" + WRITES
    )
    start = time.monotonic()
    row = python(tmp_path, code)
    took, (keeper, orphan) = time.monotonic() - start, map(int, (tmp_path / "pids").read_text().split())
    assert Path(f"/proc/{orphan}").exists() and gone(orphan), "the orphan is a zombie"
    os.kill(keeper, signal.SIGKILL)
    assert row["ok"] and took < 10


def test_a_launch_dies_with_a_killed_session(tmp_path):
    child = (
        "import os, sys, time; from tunescope.serve.launch import die_with_parent; die_with_parent()\n"
        "open(sys.argv[1] + '.pid', 'w').write(str(os.getpid())); time.sleep(60)"
    )
    parent = (
        "import sys; from pathlib import Path; from tunescope.serve.session import run_launch; row = Path(sys.argv[1])\n"
        f"run_launch([sys.executable, '-c', {child!r}, str(row)], row, row.with_name('log'), 60)"
    )
    session = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path / "row")])
    assert wait_gone(killed_once_it_runs(session, tmp_path / "row.pid"))


def fork(tmp_path, what, timeout=20.0, modules=("json",), **variables):
    """The row of a fork of `fake_launch`, or of the command beside it where no fork could be had."""
    server = ForkServer(modules, fake_launch.fork, {"TUNESCOPE_TEST_FORK": what, **variables})
    command = [sys.executable, "-c", "raise SystemExit('started plainly')", str(tmp_path / "row.json")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(multiprocessing.forkserver, "_forkserver", server_of_its_own := multiprocessing.forkserver.ForkServer())
        for name in ("ensure_running", "connect_to_new_process", "set_forkserver_preload"):
            patch.setattr(multiprocessing.forkserver, name, getattr(server_of_its_own, name))
        try:
            return run_launch(command, tmp_path / "row.json", tmp_path / "log.txt", timeout, server.start)
        finally:
            server_of_its_own._stop()


def test_a_forked_launch_gives_its_row_in_the_servers_environment_and_prints_to_its_log(tmp_path):
    row = fork(tmp_path, "row")
    assert row["ok"] and row["said"] == "row" and row["leads"]
    assert (tmp_path / "log.txt").read_text() == "a word\n"


def test_a_forked_launch_that_dies_tells_how(tmp_path):
    assert "SIGKILL" in fork(tmp_path, "killed")["error"]
    row = fork(tmp_path, "fails")
    assert "exit code 1" in row["error"] and "out of memory" in row["error"]


def test_a_forked_launch_that_hangs_ends_at_the_time_limit(tmp_path):
    start = time.monotonic()
    assert "time limit of 2 s" in fork(tmp_path, "hangs", timeout=2.0)["error"] and time.monotonic() - start < 15
    assert wait_gone(int((tmp_path / "row.json.pid").read_text()))


def test_a_launch_starts_plainly_when_the_fork_server_dies_while_it_imports(tmp_path):
    (tmp_path / "deadly.py").write_text("import os; os._exit(3)")
    assert "started plainly" in fork(tmp_path, "row", modules=["deadly"], PYTHONPATH=str(tmp_path))["error"]


def test_a_module_that_the_server_lacks_is_left_to_the_fork(tmp_path):
    assert fork(tmp_path, "row", modules=["no_such_module"])["ok"]


def test_a_forked_launch_dies_with_a_killed_session(tmp_path):
    parent = (
        "import sys; sys.path.insert(0, sys.argv[2]); import fake_launch; from pathlib import Path\n"
        "from tunescope.serve.session import ForkServer, run_launch; row = Path(sys.argv[1])\n"
        "server = ForkServer(['json'], fake_launch.fork, {'TUNESCOPE_TEST_FORK': 'hangs'})\n"
        "run_launch(['no such program', str(row)], row, row.with_name('log'), 60, server.start)"
    )
    killed = subprocess.Popen([sys.executable, "-c", parent, str(tmp_path / "row"), str(Path(fake_launch.__file__).parent)])
    assert wait_gone(killed_once_it_runs(killed, tmp_path / "row.pid"))


CORE_DIED = """\
(EngineCore pid=7) ERROR 11-26 [core.py:1165] Traceback (most recent call last):
(EngineCore pid=7) ERROR 11-26 [core.py:1165] ValueError: Free memory on device cuda:0 (30.1/79.1 GiB) is less than desired
(EngineCore pid=7) Process EngineCore:
Traceback (most recent call last):
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""


def test_why_an_engine_core_died_is_read_from_the_log(tmp_path, capsys):
    log = tmp_path / "log.txt"
    log.write_text(CORE_DIED)
    assert root_cause(log) == "ValueError: Free memory on device cuda:0 (30.1/79.1 GiB) is less than desired"
    error = RuntimeError("Engine core initialization failed. See root cause above.")
    assert failed_row(error, str(log))["error"].startswith("ValueError: Free memory on device")
    assert failed_row(ValueError("a rank of 9"), str(log))["error"] == "ValueError: a rank of 9", "an error of its own is its own cause"
    assert "Engine core initialization failed" in capsys.readouterr().err, "the traceback stays in the log"


def test_a_log_without_an_error_has_no_cause(tmp_path):
    (tmp_path / "log.txt").write_text("INFO all quiet\nthis Error is a word\n")
    assert root_cause(tmp_path / "log.txt") is None and root_cause(tmp_path / "none.txt") is None
    (tmp_path / "log.txt").write_text("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nINFO shutting down\n")
    assert root_cause(tmp_path / "log.txt") == "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"


def test_rows_survive_a_torn_last_line(tmp_path):
    path = tmp_path / "launches.jsonl"
    append_row(path, {"arm": "a", "launch": 0, "ok": True, "digest": "d"})
    with open(path, "a") as out:
        out.write('{"arm": "a", "lau')
    assert len(read_rows(path)) == 1
    assert len(keep_finished(path, {"a": "d"})) == 1
    append_row(path, {"arm": "a", "launch": 1, "ok": True, "digest": "d"})
    assert [r["launch"] for r in read_rows(path)] == [0, 1]


def test_only_finished_launches_of_the_same_digest_are_kept(tmp_path):
    path = tmp_path / "launches.jsonl"
    rows = [("a", True, "d"), ("a", False, "d"), ("b", True, "old"), ("gone", True, None)]
    for number, (arm, ok, digest) in enumerate(rows):
        append_row(path, {"arm": arm, "launch": number, "ok": ok, "digest": digest})
    assert [r["launch"] for r in keep_finished(path, {"a": "d", "b": "new"})] == [0]
    assert [r["launch"] for r in read_rows(path)] == [0]


PLAN = [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def session(tmp_path, fails=lambda arm, number, attempt: False, finished=()):
    started = []

    def launch(arm, number):
        started.append((arm, number))
        bad = fails(arm, number, started.count((arm, number)))
        return {"arm": arm, "launch": number, "ok": not bad, "error": f"arm '{arm}' died" if bad else None}

    rows = run_session(tmp_path / "launches.jsonl", PLAN, finished, launch, lambda row: None)
    return started, rows


def test_finished_launches_are_not_repeated(tmp_path):
    done = [{"arm": "a", "launch": 0, "ok": True}, {"arm": "b", "launch": 1, "ok": True}]
    started, rows = session(tmp_path, finished=done)
    assert started == [("b", 0), ("a", 1), ("a", 2), ("b", 2)] and len(rows) == 6
    assert len(read_rows(tmp_path / "launches.jsonl")) == 4


def test_an_arm_that_never_starts_is_given_up_and_the_others_go_on(tmp_path):
    started, rows = session(tmp_path, fails=lambda arm, number, attempt: arm == "b")
    assert [key for key in started if key[0] == "b"] == [("b", 0), ("b", 1)]
    assert sorted(r["launch"] for r in rows if r["ok"]) == [0, 1, 2]
    assert {r["error"] for r in rows if not r["ok"]} == {"arm 'b' died"}


def test_a_single_failure_gets_one_second_try_at_the_end(tmp_path):
    started, rows = session(tmp_path, fails=lambda arm, number, attempt: (arm, number, attempt) == ("b", 1, 1))
    assert started == [*PLAN, ("b", 1)]
    assert {(r["arm"], r["launch"]) for r in rows if r["ok"]} == set(PLAN)


def test_a_launch_that_keeps_failing_is_tried_twice_and_no_more(tmp_path):
    started, _ = session(tmp_path, fails=lambda arm, number, attempt: (arm, number) == ("b", 1))
    assert started.count(("b", 1)) == 2


def test_the_environment_of_a_cpu_launch_is_one_process_and_one_thread(monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "4")
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for name, value in environment("cpu", True).items():
        monkeypatch.setenv(name, value)
    prepare_environment("cpu", True)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and os.environ["OMP_NUM_THREADS"] == "1"
    assert "VLLM_CPU_KVCACHE_SPACE" not in os.environ and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in environment("cuda", False)
    assert environment("cpu", True)["TORCH_COMPILE_DISABLE"] == "1"
    assert all("TORCH_COMPILE_DISABLE" not in environment(*other) for other in (("cpu", False), ("cuda", True), ("cuda", False)))


def test_a_row_is_written_in_one_piece(tmp_path):
    write_row(str(tmp_path / "row.json"), {"ok": True})
    assert json.loads((tmp_path / "row.json").read_text()) == {"ok": True} and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("module", ["launch", "session", "arms", "measure", "deployment_bench"])
def test_the_parent_side_imports_neither_torch_nor_vllm(module):
    code = f"import sys, tunescope.serve.{module}; print([m for m in ('torch', 'vllm', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
