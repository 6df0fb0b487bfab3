"""Where a step logs its time series: local files always, Weights & Biases or Trackio behind them when they can.

`metrics.jsonl` holds one object a line: {"step", "time_s", name: value, ...}; `histograms.jsonl` one histogram a line. The service runs in
a thread of its own behind a queue, so that nothing it does (start-up, a dead network, a bug) can fail or hold up a step.
"""

import json
import math
import netrc
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from tunescope.study.schema import Tracking

from .tracking_services import Mode, Service, Trackio, Wandb

METRICS, HISTOGRAMS = "metrics.jsonl", "histograms.jsonl"
RUN_ID = "wandb-id.txt"
BINS = 64
SWEEP_VARIABLES = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_RUN_ID")
"""How a sweep's agent tells its child which run it is; W&B reads them itself and then ignores the project and id given here."""


class StepTracker:
    """Logs of one step (see `records.Tracker`). No method raises because of a service."""

    def __init__(self, folder: Path, remote: "Service | None"):
        self._remote = remote
        self._metrics, self._histograms = _Lines(folder / METRICS), _Lines(folder / HISTOGRAMS)
        self._started, self._before = time.perf_counter(), 0.0
        self._fresh = True

    def rewind(self, step: int) -> None:
        """Keep the records of earlier attempts up to and including a step. A step that resumes calls this before it logs.

        Without it, the first record of an attempt discards earlier ones from its own step on. Times go on from the last one kept.
        """
        self._fresh = False
        self._histograms.rewind(step)
        self._before, self._started = self._metrics.rewind(step), time.perf_counter()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record numbers of one step; a value that is no finite number is recorded as null."""
        self._begin(step)
        numbers = {name: _number(value) for name, value in values.items()}
        self._metrics.add({"step": step, "time_s": self._time(), **numbers})
        self._send(lambda run: run.log({"step": step, **{k: math.nan if v is None else v for k, v in numbers.items()}}))

    def histogram(self, name: str, values: Any, step: int) -> None:
        """Record a histogram of an array's finite values, in 64 equal bins between its extremes."""
        self._begin(step)
        flat = np.asarray(values, dtype=np.float64).ravel()
        finite = flat[np.isfinite(flat)]
        if not len(finite):
            return
        counts, edges = np.histogram(finite, bins=BINS)
        row = {"name": name, "low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()}
        self._histograms.add({"step": step, "time_s": self._time(), **row})
        self._send(lambda run: run.log({"step": step, name: run.module.Histogram(np_histogram=(counts, edges))}))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values for the service's run table; locally they are in `result.json`."""
        kept = dict(values)
        self._send(lambda run: run.summarise(kept))

    def image(self, name: str, path: Path) -> None:
        """Show a figure (PNG); locally it is the file itself."""
        self._send(lambda run: run.log({name: run.module.Image(str(path))}))

    def table(self, name: str, frame: Any) -> None:
        """Show a pandas DataFrame; locally tables are published as files."""
        text = frame.astype({c: str for c in frame.columns if frame[c].dtype == object})
        self._send(lambda run: run.log({name: run.module.Table(dataframe=text)}))

    def _begin(self, step: int) -> None:
        if self._fresh:
            started = self._started
            self.rewind(step - 1)
            self._started = started

    def _time(self) -> float:
        return round(self._before + time.perf_counter() - self._started, 6)

    def _send(self, action: Callable[[Any], Any]) -> None:
        if self._remote is not None:
            self._remote.put(action)


@contextmanager
def open_tracker(
    folder: Path, *, tracking: Tracking, project: str, group: str, job_type: str, name: str, config: Mapping[str, Any]
) -> Iterator[StepTracker]:
    """Track one step for the duration of a block.

    Args:
        folder: the step's folder; W&B writes below `wandb/` there, and its run id is kept beside it, so that a resumed step goes on in the
            same W&B run.
        group: the study's name.
        job_type: the step's kind.
        name: the step's id.
        config: the step's inputs.
    """
    mode = "off" if tracking.trackio else resolve_mode(tracking.wandb, os.environ)
    if job_type != "train":  # a sweep's agent wants one run per point: the training step
        for key in SWEEP_VARIABLES:
            os.environ.pop(key, None)
    remote: Service | None = None
    if tracking.trackio:
        # Trackio knows runs by name alone, so the stored id is part of it: another study, or the step done anew, is another run.
        label = f"{name} {_run_id(folder)}"
        remote = Trackio({"project": project, "group": group, "name": label, "config": {"job_type": job_type, **config}})
    elif mode != "off":
        settings = {"project": project, "entity": tracking.entity, "group": group, "job_type": job_type, "name": name}
        remote = Wandb(folder, mode, {**settings, "config": dict(config), "id": _run_id(folder)})
    exit_code = 1
    try:
        yield StepTracker(folder, remote)
        exit_code = 0
    finally:
        if remote is not None:
            remote.close(exit_code)


def resolve_mode(wanted: str, environ: Mapping[str, str]) -> Mode:
    """What W&B may do: WANDB_MODE can only restrict the study's setting; `auto` is online when logged in, else offline."""
    limit = environ.get("WANDB_MODE", "").lower()
    if wanted == "off" or limit == "disabled" or environ.get("WANDB_DISABLED", "").lower() in ("true", "1"):
        return "off"
    if wanted == "offline" or limit in ("offline", "dryrun"):
        return "offline"
    return "online" if wanted == "online" or _logged_in(environ) else "offline"


def _logged_in(environ: Mapping[str, str]) -> bool:
    """Whether W&B would find credentials: a key in the environment, or an entry for its host in the netrc file. The key is not kept."""
    if environ.get("WANDB_API_KEY") or environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(environ.get("HOME") or Path.home())
    host = urlparse(environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    for path in [Path(environ["NETRC"])] if environ.get("NETRC") else [home / ".netrc", home / "_netrc"]:
        try:
            if netrc.netrc(str(path)).hosts.get(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False


def _run_id(folder: Path) -> str:
    """The step's W&B run id, made up once."""
    path = folder / RUN_ID
    known = path.read_text().strip() if path.is_file() else ""
    if not known:
        known = uuid.uuid4().hex[:12]
        path.write_text(known + "\n")
    return known


def _number(value: Any) -> float | None:
    number = float(value)
    if not math.isfinite(number):
        return None
    return int(number) if isinstance(value, int | np.integer) else number


class _Lines:
    """A JSON-lines file that is appended to line by line."""

    def __init__(self, path: Path):
        self._path = path

    def rewind(self, step: int) -> float:
        """Keep whole lines up to a step; returns the largest time kept. A torn last line (a killed writer) goes."""
        if not self._path.is_file():
            return 0.0
        rows = [row for line in self._path.read_text().splitlines() if (row := _parsed(line)) and row["step"] <= step]
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(partial, self._path)
        return max((float(row.get("time_s", 0.0)) for row in rows), default=0.0)

    def add(self, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
