"""The services behind a tracker: Weights & Biases and Trackio, each in a thread of its own that can neither fail nor hold up a step."""

import contextlib
import logging
import os
import queue
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunescope.records import store_root

START_S = 10.0
"""Longest wait for the W&B server at the start (in the background); then the run goes on offline."""
OFFLINE_S = 600.0
"""How long the steps of a study take W&B for unreachable after one of them found it so."""
FINISH_S = 30.0
"""Longest wait for a service at the end of a step; what W&B has not sent by then stays on disk for `wandb sync`."""
SECRET = re.compile(r"API_KEY|TOKEN|SECRET|PASSWORD")
"""Names of variables whose values no log may repeat."""
Mode = Literal["online", "offline", "off"]
_log = logging.getLogger(__name__)


def _wandb() -> Any:
    import wandb

    return wandb


def offline_runs(folder: Path) -> list[Path]:
    """W&B runs of a step (or report) folder that were never sent, in the order in which they were made."""
    return [path for path in sorted((folder / "wandb").glob("offline-run-*")) if not any(path.glob("*.synced"))]


@dataclass
class _Run:
    """A service's run, and its module for histograms, images and tables."""

    module: Any
    run: Any

    def log(self, values: Mapping[str, Any]) -> None:
        self.run.log(dict(values))

    def summarise(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        self.module.teardown()


class _TrackioRun(_Run):
    """Trackio keeps the step apart, and has no run table: final values are logged as numbers of their own."""

    def log(self, values: Mapping[str, Any]) -> None:
        self.run.log({k: v for k, v in values.items() if k != "step"}, step=values.get("step"))

    def summarise(self, values: Mapping[str, Any]) -> None:
        self.run.log({f"final/{name}": value for name, value in values.items() if isinstance(value, int | float)})

    def finish(self, exit_code: int) -> None:
        self.run.finish()


class Service(ABC):
    """A run of a tracking service, used by one daemon thread; after its first failure everything sent to it is dropped."""

    title: str
    rest: str
    """What the user can do about records that were not sent."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Callable[[_Run], Any] | int] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._serve, name=self.title, daemon=True)
        self._thread.start()

    def put(self, action: Callable[[Any], Any]) -> None:
        if not self._failed:
            self._queue.put(action)

    def close(self, exit_code: int) -> None:
        """Finish the run, waiting no longer than FINISH_S."""
        self._queue.put(exit_code)
        self._thread.join(FINISH_S)
        if self._thread.is_alive():
            self._fail(f"not finished after {FINISH_S:.0f} s; {self.rest}")

    def _serve(self) -> None:
        try:
            run = self._start()
            while callable(action := self._queue.get()):
                action(run)
            run.finish(action)
        except BaseException as error:
            self._fail(f"{type(error).__name__}: {error}")

    @abstractmethod
    def _start(self) -> _Run:
        """Open the run, in the thread that uses it."""

    def _fail(self, reason: str) -> None:
        if not self._failed:
            self._failed = True
            _log.warning("%s stopped, local records go on: %s", self.title, _first_line(reason))


class Trackio(Service):
    """Trackio: a database on this machine (`trackio show` opens it), or wherever its own TRACKIO_… variables send it."""

    title, rest = "Trackio", "metrics.jsonl in the step's folder has everything"

    def __init__(self, options: dict[str, Any]):
        self._options = options
        super().__init__()

    def _start(self) -> _Run:
        import trackio as module

        # A resumed step goes on in the run of its name; its own figures of the machine would start threads that outlive the step.
        run = module.init(**self._options, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)
        return _TrackioRun(module, run)


class Wandb(Service):
    """Weights & Biases."""

    title, rest = "W&B", "`wandb sync` can send what is on disk"

    def __init__(self, folder: Path, mode: Mode, options: dict[str, Any]):
        self._folder, self._mode, self._options = folder, mode, options
        self._mark = (store_root(folder) or folder) / "wandb-unreachable"
        super().__init__()

    def _start(self) -> _Run:
        """Start the run; offline when the server cannot be reached.

        What one step has waited for, the study's others need not: they stay offline at once for a while, and then one tries again.
        """
        if self._mode == "offline" or _fresh(self._mark):
            return _Run(_wandb(), self._init("offline"))
        try:
            return _Run(_wandb(), self._init(self._mode))
        except Exception as error:
            _log.warning("W&B cannot be reached, going on offline (%s)", _first_line(error))
            from wandb.errors import CommError

            if isinstance(error, CommError | OSError):  # a refused name or key costs the others no wait
                with contextlib.suppress(OSError):
                    self._mark.touch()
            _wandb().teardown()  # the failed attempt still holds the run id
            return _Run(_wandb(), self._init("offline"))

    def _init(self, mode: Mode) -> Any:
        wandb = _wandb()
        wanted = {
            "mode": mode, "silent": True, "quiet": True, "console": "off", "save_code": False, "disable_code": True, "disable_git": True,
            "disable_job_creation": True, "symlink": False, "init_timeout": START_S, "x_disable_stats": True, "x_disable_meta": True,
            "x_disable_machine_info": True, "x_save_requirements": False,
        }  # fmt: skip
        known = type(wandb.Settings()).model_fields  # settings come and go between versions, and an unknown one is an error
        settings = wandb.Settings(**{k: v for k, v in wanted.items() if k in known})
        wandb.setup(settings=settings)  # or else logging in talks on stderr
        run = wandb.init(dir=str(self._folder), settings=settings, resume="allow", **self._options)
        # A step axis of its own: W&B's must only grow, but the scored checkpoint lies before the last step, and a resumed run goes back.
        run.define_metric("step")
        run.define_metric("*", step_metric="step")
        run.define_metric("selection_loss", step_metric="step", summary="min")  # a sweep ranks runs by it
        return run


def _fresh(mark: Path) -> bool:
    """Whether the server was found unreachable lately."""
    try:
        return abs(time.time() - mark.stat().st_mtime) < OFFLINE_S
    except OSError:
        return False


def _first_line(error: object) -> str:
    """One line of an error without any key that it may quote."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8:
            text = text.replace(value, "***")
    return text
