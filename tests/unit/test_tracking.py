"""Local records survive anything W&B does; offline runs are real W&B files."""

import importlib.util
import json
import logging
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from tunescope import tracking_services
from tunescope.study.schema import Tracking
from tunescope.tracking import StepTracker, open_tracker, resolve_mode

needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")


@pytest.fixture(autouse=True)
def no_credentials(monkeypatch, tmp_path):
    """No test may use the account of whoever runs it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_DISABLED", "NETRC", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def track(folder: Path, mode: str = "off"):
    folder.mkdir(parents=True, exist_ok=True)
    return open_tracker(
        folder, tracking=Tracking(wandb=mode), project="demo", group="study", job_type="train", name="train/sst2/lora",
        config={"seed": 42, "task_spec": {"max_length": 64}},
    )  # fmt: skip


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_values_are_recorded_one_object_a_line(tmp_path):
    with track(tmp_path) as tracker:
        tracker.log({"loss": np.float32(0.5), "clipped": 1}, 0)
        tracker.log({"loss": float("nan"), "grad_norm/layer_1": 2.0}, 5)
    rows = lines(tmp_path)
    assert [(r["step"], r["loss"]) for r in rows] == [(0, 0.5), (5, None)]
    assert rows[0]["clipped"] == 1 and rows[1]["grad_norm/layer_1"] == 2.0
    assert 0 <= rows[0]["time_s"] <= rows[1]["time_s"] < 5
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    with track(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 1)
        assert len(lines(tmp_path)) == 1


def test_a_resumed_step_keeps_exactly_what_its_checkpoint_had(tmp_path):
    with track(tmp_path) as tracker:
        for step in range(1, 7):
            tracker.log({"loss": float(step)}, step)
            tracker.histogram("lora_A", np.arange(10.0), step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": 9')  # torn by a kill
    kept = lines_time(tmp_path, 4)
    with track(tmp_path) as tracker:
        tracker.rewind(4)
        tracker.log({"loss": -5.0}, 5)
    rows = lines(tmp_path)
    assert [(r["step"], r["loss"]) for r in rows] == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0), (5, -5.0)]
    assert rows[-1]["time_s"] >= kept
    assert [r["step"] for r in lines(tmp_path, "histograms.jsonl")] == [1, 2, 3, 4]


def lines_time(folder: Path, step: int) -> float:
    return next(json.loads(line)["time_s"] for line in (folder / "metrics.jsonl").read_text().splitlines() if f'"step": {step},' in line)


def test_a_step_that_starts_anew_drops_the_earlier_attempt(tmp_path):
    for _ in range(2):
        with track(tmp_path) as tracker:
            tracker.log({"loss": 1.0}, 0)
            tracker.log({"loss": 0.5}, 1)
    assert [r["step"] for r in lines(tmp_path)] == [0, 1]


def test_a_resumed_step_that_does_not_say_so_keeps_what_lies_before_its_first_record(tmp_path):
    for steps in ((1, 2, 3, 4), (3, 4, 5)):
        with track(tmp_path) as tracker:
            for step in steps:
                tracker.log({"attempt": len(steps)}, step)
    assert [(r["step"], r["attempt"]) for r in lines(tmp_path)] == [(1, 4), (2, 4), (3, 3), (4, 3), (5, 3)]


def test_rewinding_within_an_attempt_keeps_time_running(tmp_path):
    with track(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 1)
        time.sleep(0.05)
        tracker.log({"loss": 1.0}, 2)
        tracker.rewind(2)
        tracker.log({"loss": 1.0}, 3)
    times = [r["time_s"] for r in lines(tmp_path)]
    assert times == sorted(times) and times[2] < times[1] + 0.05


def test_a_histogram_counts_every_finite_value_between_the_extremes(tmp_path):
    values = np.concatenate([np.random.default_rng(0).normal(size=(10, 100)).ravel(), [np.nan, np.inf]])
    with track(tmp_path) as tracker:
        tracker.histogram("lora_B", values, 3)
        tracker.histogram("empty", np.array([]), 3)
    (row,) = lines(tmp_path, "histograms.jsonl")
    assert sum(row["counts"]) == 1000 and len(row["counts"]) == 64
    assert (row["low"], row["high"]) == (values[:1000].min(), values[:1000].max())


def test_an_error_in_the_block_comes_through(tmp_path):
    with pytest.raises(KeyError), track(tmp_path) as tracker:
        tracker.log({"loss": 1.0}, 1)
        raise KeyError("mine")
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize(
    ("wanted", "environ", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ("online", {"WANDB_MODE": "disabled"}, "off"),
        ("online", {}, "online"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("offline", {"WANDB_API_KEY": "k", "WANDB_MODE": "online"}, "offline"),
        ("off", {"WANDB_API_KEY": "k"}, "off"),
    ],
)
def test_mode(wanted, environ, mode, tmp_path):
    assert resolve_mode(wanted, {"HOME": str(tmp_path), **environ}) == mode


def test_a_netrc_entry_of_the_right_host_is_a_login(tmp_path):
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert resolve_mode("auto", {"HOME": str(tmp_path)}) == "online"
    assert resolve_mode("auto", {"HOME": str(tmp_path), "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"
    (tmp_path / ".netrc").write_text("machine\n\nthis is no netrc\n")
    assert resolve_mode("auto", {"HOME": str(tmp_path)}) == "offline"


@needs_wandb
def test_an_offline_run_is_real_and_holds_what_was_logged(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    state, numpy_state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with track(tmp_path, "offline") as tracker:
        tracker.log({"loss": 0.25}, 1)
        tracker.log({"loss": 0.125, "bad": float("nan")}, 60)
        tracker.log({"drift": 0.5}, 40)  # the scored checkpoint lies before the last step
        tracker.histogram("lora_A", np.arange(100.0), 60)
        tracker.table("quality", pd.DataFrame({"task": ["sst2"], "value": [0.9]}))
        tracker.summary({"test/accuracy": 0.9})
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    run_id = (tmp_path / "wandb-id.txt").read_text().strip()
    records = list(read_wandb(run / f"run-{run_id}.wandb"))
    (head,) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert (head.project, head.run_group, head.job_type, head.display_name) == ("demo", "study", "train", "train/sst2/lora")
    assert head.entity == ""
    history = [item(h) for h in (r.history for r in records if r.WhichOneof("record_type") == "history")]
    assert [h["step"] for h in history[:4]] == [1, 60, 40, 60]
    assert history[0]["loss"] == 0.25 and history[2]["drift"] == 0.5
    assert history[3]["lora_A/_type"] == "histogram" and sum(history[3]["lora_A/values"]) == 100
    assert history[4]["quality/_type"] == "table-file"
    summaries = [item(r.summary, "update") for r in records if r.WhichOneof("record_type") == "summary"]
    assert any(s.get("test/accuracy") == 0.9 for s in summaries)
    assert capfd.readouterr() == ("", "")
    found = [p for p in tmp_path.rglob("*") if p.is_file() and b"0123456789abcdef0123" in p.read_bytes()]
    assert found == [], "the API key was written"
    assert random.getstate() == state and (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


@needs_wandb
def test_a_resumed_step_goes_on_under_the_same_run_id(tmp_path):
    for step in (1, 2):
        with track(tmp_path, "offline") as tracker:
            tracker.rewind(step - 1)
            tracker.log({"loss": 1.0}, step)
    names = {p.name for p in (tmp_path / "wandb").rglob("run-*.wandb")}
    assert names == {f"run-{(tmp_path / 'wandb-id.txt').read_text().strip()}.wandb"}
    assert [r["step"] for r in lines(tmp_path)] == [1, 2]


@needs_wandb
def test_a_forked_worker_can_track(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_track_once, args=(tmp_path,))
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0
    assert list((tmp_path / "wandb").rglob("run-*.wandb"))


def _track_once(folder: Path) -> None:
    with track(folder, "offline") as tracker:
        tracker.log({"loss": 1.0}, 1)


class Broken:
    """A W&B whose every part fails."""

    def __getattr__(self, name):
        raise RuntimeError(f"wandb.{name} is broken, key 0123456789abcdef")


class FailsLater:
    """A run that starts, then fails on its first log."""

    class Settings:
        model_fields = ()

    summary = None
    calls = 0

    def setup(self, settings): ...

    def init(self, **options):
        return self

    def define_metric(self, *args, **kwargs): ...

    def log(self, values):
        FailsLater.calls += 1
        raise OSError("disk full")


@pytest.mark.parametrize("wandb", [Broken(), FailsLater()], ids=["at start", "later"])
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_failing_wandb_is_reported_once_and_harms_nothing(tmp_path, monkeypatch, caplog, wandb, mode):
    monkeypatch.setattr(tracking_services, "_wandb", lambda: wandb)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with caplog.at_level(logging.WARNING), track(tmp_path, mode) as tracker:
        exercise(tracker)
    assert [r["step"] for r in lines(tmp_path)] == [1, 2]
    assert sum("local records go on" in r.message for r in caplog.records) == 1
    assert "0123456789abcdef" not in caplog.text


class Unreachable(FailsLater):
    """A W&B whose server does not answer; offline it takes everything."""

    def __init__(self):
        self.modes, self.logged = [], []

    class Settings:
        model_fields = ("mode",)

        def __init__(self, mode=None):
            self.mode = mode

    def init(self, settings, **options):
        self.modes.append(settings.mode)
        if settings.mode == "online":
            raise TimeoutError(f"no answer to key {os.environ['WANDB_API_KEY']}, token {os.environ['HF_TOKEN']}")
        return self

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code): ...

    def teardown(self): ...


def test_only_one_step_of_a_study_waits_for_a_server_that_does_not_answer(tmp_path, monkeypatch, caplog):
    wandb, first = Unreachable(), tmp_path / "study/steps/data/sst2"
    monkeypatch.setattr(tracking_services, "_wandb", lambda: wandb)
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "hf_planted_planted")
    for folder in (first, tmp_path / "study/steps/data/rte"):
        with caplog.at_level(logging.WARNING), track(folder, "auto") as tracker:
            tracker.log({"loss": 1.0}, 1)
    assert wandb.modes == ["online", "offline", "offline"] and len(wandb.logged) == 2
    assert "no answer to key ***, token ***" in caplog.text
    mark = tmp_path / "study/wandb-unreachable"
    os.utime(mark, (0, time.time() - tracking_services.OFFLINE_S - 1))
    with track(first, "auto"):
        pass
    assert wandb.modes[3:] == ["online", "offline"], "never tried again"


class FakeTrackio(ModuleType):
    """Trackio as far as it is used, with what it was told."""

    Histogram, Table = staticmethod(lambda **k: k), staticmethod(lambda **k: k)

    def __init__(self):
        super().__init__("trackio")
        self.inits, self.logged = [], []

    def init(self, **options):
        self.inits.append(options)
        return SimpleNamespace(log=lambda values, step=None: self.logged.append((step, values)), finish=lambda: None)


def test_trackio_takes_the_place_of_wandb_and_resumes_by_the_stored_id(tmp_path, monkeypatch):
    """The real package was tried by hand (docs/lab-notebook.md); it is no requirement of the tests."""
    trackio = FakeTrackio()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr(tracking_services, "_wandb", lambda: pytest.fail("W&B was started too"))
    for step in (1, 2):
        with open_tracker(
            tmp_path, tracking=Tracking(trackio=True), project="demo", group="study", job_type="train", name="train/x", config={"seed": 42}
        ) as tracker:
            tracker.log({"loss": 0.5}, step)
            tracker.summary({"test/accuracy": 0.9, "note": "words"})
    first, second = trackio.inits
    assert first == second and first["resume"] == "allow" and (first["project"], first["group"]) == ("demo", "study")
    assert first["name"] == f"train/x {(tmp_path / 'wandb-id.txt').read_text().strip()}"
    assert first["config"] == {"job_type": "train", "seed": 42}
    final = (None, {"final/test/accuracy": 0.9})
    assert trackio.logged == [(1, {"loss": 0.5}), final, (2, {"loss": 0.5}), final]


def test_a_trackio_that_is_not_installed_is_said_once_and_harms_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with (
        caplog.at_level(logging.WARNING),
        open_tracker(tmp_path, tracking=Tracking(trackio=True), project="p", group="g", job_type="t", name="n", config={}) as tracker,
    ):
        exercise(tracker)
    assert [r["step"] for r in lines(tmp_path)] == [1, 2]
    assert caplog.text.count("Trackio stopped, local records go on") == 1


def test_what_was_sent_is_no_longer_named_for_sync(tmp_path):
    for name in ("offline-run-20260101_000000-b", "offline-run-20250101_000000-a", "run-20250101_000000-c"):
        (tmp_path / "wandb" / name).mkdir(parents=True)
    assert [p.name[12:16] for p in tracking_services.offline_runs(tmp_path)] == ["2025", "2026"]
    (tmp_path / "wandb/offline-run-20250101_000000-a/run-a.wandb.synced").touch()
    assert [p.name[12:16] for p in tracking_services.offline_runs(tmp_path)] == ["2026"]


def test_an_absent_wandb_harms_nothing(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with caplog.at_level(logging.WARNING), track(tmp_path, "auto") as tracker:
        exercise(tracker)
    assert [r["step"] for r in lines(tmp_path)] == [1, 2]
    assert "W&B stopped" in caplog.text


def exercise(tracker: StepTracker) -> None:
    tracker.log({"loss": 1.0}, 1)
    tracker.histogram("lora_A", np.arange(4.0), 1)
    tracker.image("figure", Path("absent.png"))
    tracker.table("t", pd.DataFrame({"a": [1]}))
    tracker.summary({"x": 1})
    time.sleep(0.05)
    tracker.log({"loss": 0.5}, 2)


def test_a_hanging_wandb_cannot_hold_up_a_step(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(tracking_services, "_wandb", lambda: time.sleep(30))
    monkeypatch.setattr(tracking_services, "FINISH_S", 0.2)
    started = time.perf_counter()
    with track(tmp_path, "offline") as tracker:
        for step in range(100):
            tracker.log({"loss": 1.0}, step)
        logged = time.perf_counter() - started
    assert logged < 2 and time.perf_counter() - started < 4
    assert len(lines(tmp_path)) == 100 and "not finished" in caplog.text


def test_importing_the_module_imports_no_wandb():
    code = "import sys, tunescope.tracking; sys.exit('wandb' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def read_wandb(path: Path):
    """Records of a .wandb file: a 7-byte head, then the LevelDB log format (blocks of 32 KiB; crc, length, type before each fragment)."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    position, whole = 7, b""
    while position + 7 <= len(data):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # full, or the last fragment
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def item(record, field: str = "item") -> dict:
    return {(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in getattr(record, field)}
