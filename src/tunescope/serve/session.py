"""Launches as child processes: start, time limit, end of the whole process group, and the file that keeps finished launches."""

import json
import multiprocessing
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import psutil

from tunescope.forking import environment, start_server

Row = dict[str, Any]
GIVE_UP_AFTER = 2
"""An arm whose first launches all failed is not started again: it would cost a time limit each."""
_GONE_WITHIN_S = 30.0
_LOG_TAIL = 3
_CAUSE = re.compile(r"(?:^|[\s\]])((?:\w+\.)*\w*(?:Error|Exception): .*)")
_NO_CAUSE = "Engine core initialization failed"
"""What vLLM's front end says when its engine core dies at the start; the reason is in the core's own traceback before it."""


class Child(Protocol):
    """A launch's process, which leads a process group of its own. Its standard input stays open while the process that made this lives."""

    pid: int

    def wait(self, timeout_s: float | None) -> int | None:
        """Its exit code, negative for a signal; None when it still runs."""
        ...

    def let_go(self) -> None:
        """Close its standard input and kill what is left of it."""
        ...


Entry = Callable[[str, str, Connection], None]
Start = Callable[[Sequence[str], Path], Child]
"""Starts a command that prints to the log."""


class Started:
    """A command of its own."""

    def __init__(self, command: Sequence[str], log: Path):
        with open(log, "wb") as out:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
        self.pid = self._process.pid

    def wait(self, timeout_s: float | None) -> int | None:
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def let_go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Forked:
    """A process forked from the fork server; `variables` are the server's environment, should it have to start again."""

    def __init__(self, entry: Entry, spec: str, log: Path, variables: Mapping[str, str]):
        log.write_bytes(b"")
        alive, self._alive = multiprocessing.Pipe(duplex=False)
        self._process = multiprocessing.get_context("forkserver").Process(target=entry, args=(spec, str(log), alive))
        with environment(variables):
            self._process.start()
        alive.close()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def wait(self, timeout_s: float | None) -> int | None:
        self._process.join(timeout_s)
        return self._process.exitcode

    def let_go(self) -> None:
        self._alive.close()
        self._process.kill()
        self._process.join()


@dataclass(frozen=True)
class ForkServer:
    """Starts launches as forks of a process that has imported vLLM. For engines on a CPU: a forked process cannot use CUDA safely."""

    modules: Sequence[str]
    entry: Entry
    """Runs in the fork, with what `python -m tunescope.serve.launch` is told, the log, and what becomes its standard input."""
    variables: Mapping[str, str]

    def start(self, command: Sequence[str], log: Path) -> Child:
        """A fork that does what the command would do; the command itself where the server cannot be had."""
        start_server(self.modules, self.variables, None)
        try:
            return Forked(self.entry, command[-1], log, self.variables)
        except (OSError, EOFError):  # the server died
            return Started(command, log)


def run_launch(command: Sequence[str], result: Path, log: Path, timeout_s: float, start: Start = Started) -> Row:
    """Run one launch in a process group of its own and return its row; a dead or hung child gives an error row.

    Args:
        result: the file the child writes its row to, in one piece.
        log: receives all output of the child and its own children.
        start: starts the command, or what comes to the same.
    """
    result.unlink(missing_ok=True)
    child = start(command, log)
    try:
        code = child.wait(timeout_s)
    finally:
        _end_group(child)
    if result.is_file():
        row: Row = json.loads(result.read_text())
        return row
    if code is None:
        return {"ok": False, "error": f"no result within the time limit of {timeout_s:g} s; its processes were ended ({tail(log)})"}
    how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return {"ok": False, "error": f"the engine's process {how} and left no result ({tail(log)})"}


def _end_group(child: Child) -> None:
    """Kill the child's process group and wait until it is gone: the next engine needs its memory."""
    deadline = time.monotonic() + _GONE_WITHIN_S
    while time.monotonic() < deadline:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):  # PermissionError: macOS, a group of zombies
            break
        child.wait(0)
        if not _runs(child.pid):
            break
        time.sleep(0.02)
    child.let_go()


def _runs(group: int) -> bool:
    """Whether a process of this group still runs.

    Zombies hold no memory, and orphans stay zombies where the first process reaps none. One with threads left is not a zombie yet.
    """
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) == group and (process.status() != psutil.STATUS_ZOMBIE or process.num_threads() > 1):
                return True
    return False


def root_cause(log: Path) -> str | None:
    """The last error that a log names, vLLM's "see root cause above" aside; None when there is none."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    found = (match for line in reversed(lines) if _NO_CAUSE not in line and (match := _CAUSE.search(line)))
    match = next(found, None)
    return match[1].strip()[:400] if match else None


def tail(log: Path) -> str:
    """The last lines of a log, in one line."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.is_file() else []
    return f"see {log.name}: {' | '.join(lines[-_LOG_TAIL:])[-400:]}" if lines else f"{log.name} is empty"


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON-lines file; a torn last line (the writer was killed) is left out."""
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Append one row and force it to the disk."""
    with open(path, "a") as out:
        out.write(json.dumps(row) + "\n")
        out.flush()
        os.fsync(out.fileno())


def keep_finished(path: Path, digests: Mapping[str, str]) -> list[Row]:
    """The finished launches whose arm still has the digest it had then; the file is rewritten to hold exactly these."""
    rows = [row for row in read_rows(path) if row.get("ok") and row.get("arm") in digests]
    kept = [row for row in rows if row.get("digest") == digests[row["arm"]]]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept))
    os.replace(partial, path)
    return kept


def run_session(
    path: Path, planned: Iterable[tuple[str, int]], finished: Sequence[Row], launch: Callable[[str, int], Row], told: Callable[[Row], None]
) -> list[Row]:
    """Run the planned launches that are not finished yet, appending each row; failed ones get one second try at the end.

    An arm whose first launches all failed is given up; other arms go on.

    Args:
        planned: (arm, launch number) in order.
        launch: runs one launch and returns its full row.
        told: called with every new row.

    Returns:
        All rows, old and new, error rows included.
    """
    rows = list(finished)
    done = {(row["arm"], row["launch"]) for row in finished}
    failures: dict[str, int] = {}

    def attempt(arm: str, number: int) -> bool:
        row = launch(arm, number)
        append_row(path, row)
        rows.append(row)
        told(row)
        return bool(row["ok"])

    again = []
    for arm, number in planned:
        works = any(a == arm for a, _ in done)
        if (arm, number) in done or (failures.get(arm, 0) >= GIVE_UP_AFTER and not works):
            continue
        if attempt(arm, number):
            done.add((arm, number))
        else:
            failures[arm] = failures.get(arm, 0) + 1
            again.append((arm, number))
    for arm, number in again:
        if any(a == arm for a, _ in done):
            attempt(arm, number)
    return rows
