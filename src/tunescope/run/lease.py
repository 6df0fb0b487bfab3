"""Who works in a step folder: a lock held by the worker, and a heartbeat that others can read, also from another host."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from .files import read_json, write_json

HEARTBEAT_S = 1.0
FOREIGN_LIMIT_S = 60.0
"""A heartbeat of another host further than this from our clock looks dead. Clocks differ and jump, so nobody is replaced on that alone:"""
SILENCE_S = 10.0
"""… its heartbeat must also stand still for this long while we watch (`Store.prepare`)."""


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    host: str
    pid: int
    started: float
    """Seconds from boot to its start (Linux), which no change of the clock moves; elsewhere Unix time."""

    @classmethod
    def current(cls) -> "Process":
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "Process":
        """A process of this host.

        Raises:
            ProcessLookupError: there is none of that number.
        """
        started = _started(pid)
        if started is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(socket.gethostname(), pid, started)

    @classmethod
    def parse(cls, text: str) -> "Process":
        """Read what `str(process)` wrote."""
        host, pid, started = text.rsplit(":", 2)
        return cls(host, int(pid), float(started))

    def __str__(self) -> str:
        return f"{self.host}:{self.pid}:{self.started}"

    @property
    def here(self) -> bool:
        return self.host == socket.gethostname()

    def alive(self) -> bool:
        """Whether it runs on this host (a zombie does not)."""
        started = _started(self.pid)
        return started is not None and abs(started - self.started) < 0.005  # half a kernel tick


def _started(pid: int) -> float | None:
    """When a process started; None when it is gone or a zombie.

    Straight from the kernel: psutil adds the boot time, which it derives from the clock, so a corrected clock would make every
    worker take its driver for dead.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _started_elsewhere(pid)
    return None if fields[0] in (b"Z", b"X") else int(fields[19]) / os.sysconf("SC_CLK_TCK")


def _started_elsewhere(pid: int) -> float | None:
    """The same where there is no /proc."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


@dataclass(frozen=True)
class Lease:
    """The last heartbeat of a step's worker."""

    host: str
    pid: int
    started: float
    since: float
    """Unix time the lease was taken."""
    beat: float
    done: int = 0
    total: int = 0
    text: str = ""
    place: str = ""
    """Where on the host, e.g. `gpu 1`."""

    @property
    def process(self) -> Process:
        return Process(self.host, self.pid, self.started)

    def live(self) -> bool:
        """By process on this host, by the distance of the heartbeat from our clock elsewhere."""
        return self.process.alive() if self.process.here else abs(time.time() - self.beat) < FOREIGN_LIMIT_S


class Taken(Exception):
    """Another live worker holds the lease."""


def read_lease(folder: Path) -> Lease | None:
    """The lease of a folder when its worker lives."""
    lease = last_lease(folder)
    return lease if lease and lease.live() else None


def last_lease(folder: Path) -> Lease | None:
    """The lease of a folder, whether its worker lives or not."""
    value = read_json(folder / "lease.json")
    try:
        return Lease(**value) if value else None
    except TypeError:
        return None


class Heartbeat:
    """Writes lease.json about once a second and calls `orphaned` when the driver is gone."""

    def __init__(self, folder: Path, driver: Process | None, orphaned: Callable[[], None], place: str = ""):
        self._path, self._place = folder / "lease.json", place
        self._driver = driver if driver and driver.here else None
        self._orphaned = orphaned
        self._progress = (0, 0, "")
        self._process, self._since = Process.current(), time.time()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def progress(self, done: int, total: int, text: str) -> None:
        """Note how far the step is; the next heartbeat carries it."""
        self._progress = (int(done), int(total), text)

    def start(self) -> None:
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Return once the last heartbeat is written, however slow the disk: one that came later would claim a folder that is free."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _run(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            if self._driver is not None and not self._driver.alive():
                self._orphaned()
                return
            # A full disk or a removed folder must not end the step by way of its heartbeat.
            with contextlib.suppress(OSError):
                self._beat()

    def _beat(self) -> None:
        done, total, text = self._progress
        lease = Lease(**asdict(self._process), since=self._since, beat=time.time(), done=done, total=total, text=text, place=self._place)
        write_json(self._path, asdict(lease), durable=False)


@contextlib.contextmanager
def hold(folder: Path, driver: Process | None, orphaned: Callable[[], None], place: str = "") -> Iterator[Heartbeat]:
    """Hold the lease of a step folder; it is released only after the heartbeat has stopped.

    Raises:
        Taken: another live worker has it.
    """
    lock = FileLock(folder / "lease.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Taken(str(folder)) from error
    heartbeat = Heartbeat(folder, driver, orphaned, place)
    try:
        heartbeat.start()
        yield heartbeat
    finally:
        heartbeat.stop()
        lock.release()


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Keep workers of this host out of a folder while it is replaced; False when one is in it (also one that has only just come)."""
    if not folder.exists():
        yield True
        return
    lock = FileLock(folder / "lease.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
