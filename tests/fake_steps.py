"""Step functions that take no time, for tests of the store and the driver. What goes wrong is told by files in the data folder."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from tunescope import steps
from tunescope.data import manifest
from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import Metric, StepContext, StepResult
from tunescope.run import provenance
from tunescope.run.worker import work
from tunescope.study.identity import fingerprint
from tunescope.study.schema import KINDS


def install() -> None:
    """Let every kind run `fake_step`, track nothing, and leave out the slow half of provenance. Tests restore this by `guard`."""
    steps.FUNCTIONS.update(dict.fromkeys(KINDS, "fake_steps:fake_step"))
    tracking = ModuleType("tunescope.tracking")
    tracking.open_tracker = no_tracker  # type: ignore[attr-defined]
    sys.modules["tunescope.tracking"] = tracking
    provenance.packages = lambda cache=None: {"torch": "0"}  # type: ignore[assignment]
    provenance.sources = lambda inputs, root, cache=None: {"model/weights": "0" * 64} if inputs.get("model") else {}  # type: ignore[assignment]
    provenance.code = lambda: {"version": "0", "commit": None, "diff_sha256": None}


def guard(monkeypatch: Any) -> None:
    """Note what `install` replaces, so that the test's end puts it back; then install."""
    monkeypatch.setattr(steps, "FUNCTIONS", dict(steps.FUNCTIONS))
    monkeypatch.setitem(sys.modules, "tunescope.tracking", sys)
    for name in ("packages", "sources", "code"):
        monkeypatch.setattr(provenance, name, getattr(provenance, name))
    install()


@contextmanager
def no_tracker(folder: Path, **_: Any) -> Iterator[Any]:
    yield SimpleNamespace(log=lambda *a, **k: None, histogram=lambda *a, **k: None, summary=lambda *a, **k: None)


def control(data_dir: Path, **settings: Any) -> None:
    """Settings for the fakes: `trouble` {step id: bug|user|prerequisite|kill|once|hang once}, `sleep_s`, `salt` {step id: text}."""
    data_dir.mkdir(parents=True, exist_ok=True)
    (data_dir / "control.json").write_text(json.dumps(settings))


def calls(data_dir: Path) -> list[str]:
    """Step ids in the order in which they were started, since the last call."""
    path = data_dir / "calls.log"
    found = path.read_text().split() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def fake_step(inputs: Any, ctx: StepContext) -> StepResult:
    step_id = json.loads((ctx.folder / "step.json").read_text())["id"]
    ctx.data_dir.mkdir(parents=True, exist_ok=True)
    with (ctx.data_dir / "calls.log").open("a") as log:
        log.write(step_id + "\n")
    path = ctx.data_dir / "control.json"
    settings = json.loads(path.read_text()) if path.exists() else {}
    ctx.progress(1, 2, "half way")
    _trouble(settings.get("trouble", {}).get(step_id), ctx)
    time.sleep(settings.get("sleep_s", 0))
    if inputs.kind == "data":
        return _data(inputs, ctx)
    upstream = {i: (folder / "out.txt").read_text() for i, folder in ctx.upstream.items() if not i.startswith("data/")}
    salt = settings.get("salt", {}).get(step_id, "")
    text = fingerprint({"inputs": inputs, "upstream": upstream, "salt": salt})
    (ctx.folder / "out.txt").write_text(text)
    rate = getattr(inputs, "learning_rate", None)
    metrics = [Metric(name="accuracy", value=int(text[:8], 16) / 2**32, unit="fraction", split="test")]
    if rate:
        metrics.append(Metric(name="selection_loss", value=1 - rate, unit="nats/token", split="selection"))
    losses = [metrics[0].value / (i + 1) + 10 * bool(salt) for i in range(9)]  # salted curves never overlap the others, whatever the hash
    (ctx.folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": v}) + "\n" for i, v in enumerate(losses)))
    resources = [Metric(name="wall_s", value=time.time() % 1, unit="s")]
    return StepResult(metrics, resources, {"text": text}, ["out.txt"], [f"flag of {step_id}"] if inputs.kind == "drift" else [])


def _trouble(kind: str | None, ctx: StepContext) -> None:
    if kind == "bug":
        raise ZeroDivisionError("planted")
    if kind == "user":
        raise StepError("non-finite loss at step 3: planted")
    if kind == "prerequisite":
        raise PrerequisiteError("vLLM is not installed: pip install 'tunescope[serve]'")
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    mark = ctx.folder / "tried.log"
    if kind == "hang once" and not mark.exists():
        mark.touch()
        time.sleep(600)
    if kind == "once" and not mark.exists():
        mark.touch()
        raise ZeroDivisionError("planted, the first time only")


def _data(inputs: Any, ctx: StepContext) -> StepResult:
    folder = ctx.data_dir / inputs.task
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.txt").write_text(f"{inputs.task} {inputs.limits.train}")
    manifest.write_entry(ctx.data_dir, inputs.task, {"source": "fake", "files": manifest.checksums(folder, ctx.data_dir)})
    return StepResult(outputs={"data_sha256": manifest.verify(ctx.data_dir, inputs.task)})


class Inline:
    """An executor that runs each worker in this process: one at a time, oldest first, when polled."""

    device = "cpu"

    def __init__(self, capacity: int = 2):
        self.capacity = capacity
        self.waiting: list[tuple[str, Path]] = []
        self.beside: dict[str, set[str]] = {}
        """Step id -> what was running when it was started."""

    def submit(self, step_id: str, kind: str, folder: Path) -> None:
        self.beside[step_id] = {i for i, _ in self.waiting}
        self.waiting.append((step_id, folder))

    def poll(self, timeout_s: float) -> list[Any]:
        from tunescope.run.local import Ended

        if not self.waiting:
            return []
        step_id, folder = self.waiting.pop(0)
        return [Ended(step_id, work(folder))]

    def fits(self, step_id: str) -> bool:
        return True

    def waiting(self, step_id: str) -> bool:
        return False

    def cancel(self, step_id: str) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.waiting.clear()
