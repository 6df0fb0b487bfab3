"""Who works in a step folder: a lock held by the worker, and a heartbeat that others can read, also from another host."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from .files import read_json, write_json

HEARTBEAT_S = 1.0
FOREIGN_LIMIT_S = 60.0
"""A heartbeat of another host older than this is dead. Generous, because clocks of hosts differ."""


@dataclass(frozen=True)
class Process:
    """A process that cannot be mistaken for a later one with the same number."""

    host: str
    pid: int
    started: float

    @classmethod
    def current(cls) -> "Process":
        return cls(socket.gethostname(), os.getpid(), psutil.Process().create_time())

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
        try:
            process = psutil.Process(self.pid)
            return abs(process.create_time() - self.started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


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

    @property
    def process(self) -> Process:
        return Process(self.host, self.pid, self.started)

    def live(self) -> bool:
        """By process on this host, by the age of the heartbeat elsewhere."""
        return self.process.alive() if self.process.here else time.time() - self.beat < FOREIGN_LIMIT_S


class Taken(Exception):
    """Another live worker holds the lease."""


def read_lease(folder: Path) -> Lease | None:
    """The lease of a folder when its worker lives."""
    value = read_json(folder / "lease.json")
    try:
        lease = Lease(**value) if value else None
    except TypeError:
        return None
    return lease if lease and lease.live() else None


class Heartbeat:
    """Writes lease.json about once a second and calls `orphaned` when the driver is gone."""

    def __init__(self, folder: Path, driver: Process | None, orphaned: Callable[[], None]):
        self._path = folder / "lease.json"
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
        self._stop.set()
        self._thread.join(timeout=5)
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
        lease = Lease(**asdict(self._process), since=self._since, beat=time.time(), done=done, total=total, text=text)
        write_json(self._path, asdict(lease), durable=False)


@contextlib.contextmanager
def hold(folder: Path, driver: Process | None, orphaned: Callable[[], None]) -> Iterator[Heartbeat]:
    """Hold the lease of a step folder.

    Raises:
        Taken: another live worker has it.
    """
    lock = FileLock(folder / "lease.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise Taken(str(folder)) from error
    heartbeat = Heartbeat(folder, driver, orphaned)
    try:
        heartbeat.start()
        yield heartbeat
    finally:
        heartbeat.stop()
        lock.release()
