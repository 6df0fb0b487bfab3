"""One step in a process of its own: `tunescope run-step FOLDER`."""

import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tunescope.errors import OutOfMemoryError, PrerequisiteError, TunescopeError
from tunescope.records import Metric, StepContext, StepResult
from tunescope.study.inputs import INPUTS

from .data_folder import check_preparation
from .environment import worker_environment
from .files import read_json, unwritable
from .lease import Heartbeat, Process, Taken, hold
from .store import StepRecord, Store

TAKEN = 75
"""Exit code: another live worker has the step (EX_TEMPFAIL)."""
BUG = 70
"""Exit code: an unexpected exception, with its traceback in log.txt (EX_SOFTWARE)."""


def work(folder: Path, driver: Process | None = None) -> int:
    """Run the step described by `folder/step.json`.

    Args:
        folder: a prepared step folder.
        driver: the process to live and die with; None when a user started the step by hand.

    Returns:
        0 when the step is done, TAKEN, BUG, or the exit code of a user error.
    """
    value = read_json(folder / "step.json")
    if value is None:
        raise PrerequisiteError(f"{folder} is not a prepared step folder: it holds no readable step.json; start steps with `tunescope run`")
    record = StepRecord.model_validate(value)
    store = Store.of_folder(folder, record.id)
    try:
        with hold(folder, driver, _abandon, _place(record)) as heartbeat, _log(folder):
            result, _ = store.result(record.id)
            if result is not None and result.result["fingerprint"] == record.fingerprint:
                return 0
            return _attempt(store, record, heartbeat)
    except Taken:
        return TAKEN


def child_main(folder: Path, driver: Process | None) -> None:
    """Entry point of a worker that a driver started: a session of its own, so that it can be ended with all its children."""
    if os.getpgid(0) != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = work(folder, driver)
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries leave threads and atexit hooks behind that may hang; everything that counts is on disk.
    os._exit(code)


def _attempt(store: Store, record: StepRecord, heartbeat: Heartbeat) -> int:
    """Run the step function once and record success or failure."""
    started, clock = time.time(), time.monotonic()
    print(f"--- {record.id}: started {time.strftime('%Y-%m-%dT%H:%M:%S%z')}, process {os.getpid()}", flush=True)
    try:
        result = _call(store, record, heartbeat)
        from .provenance import gpu_peak_bytes, write_provenance

        write_provenance(store, record)
        peak = gpu_peak_bytes()
        if peak is not None:
            result.resources.append(Metric(name="process_gpu_reserved_bytes", value=peak, unit="bytes"))
        store.finish(record, result, started, time.monotonic() - clock)
    except TunescopeError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        missing, full = isinstance(error, PrerequisiteError), isinstance(error, OutOfMemoryError)
        store.fail(record, type(error).__name__, str(error), prerequisite=missing, retryable=full)
        return error.exit_code
    except Exception as error:
        refused = unwritable(error) if isinstance(error, OSError) else None
        if refused:
            store.fail(record, type(error).__name__, refused, prerequisite=True)
            return PrerequisiteError.exit_code
        traceback.print_exc()
        message = f"{type(error).__name__}: {error} (an unexpected error; traceback in {store.folder(record.id) / 'log.txt'})"
        store.fail(record, type(error).__name__, message, retryable=True)
        return BUG
    print(f"--- {record.id}: done in {time.monotonic() - clock:.1f} s", flush=True)
    return 0


def _call(store: Store, record: StepRecord, heartbeat: Heartbeat) -> StepResult:
    for key, value in worker_environment(record.launch.threads, record.launch.device).items():
        os.environ.setdefault(key, value)
    from tunescope.steps import step_function

    inputs = INPUTS[record.kind].model_validate(record.inputs)
    function = step_function(record.kind)
    with _tracker(store, record) as tracker:
        context = StepContext(
            folder=store.folder(record.id),
            data_dir=Path(record.launch.data_dir),
            upstream={i: store.folder(i) for i in record.upstream},
            device=record.launch.device,
            tracker=tracker,
            progress=heartbeat.progress,
            files_dir=Path(record.launch.files_dir) if record.launch.files_dir else None,
        )
        _check_data(store, record)
        _check_artefacts(store, record)
        result = function(inputs, context)  # type: ignore[arg-type]
        _check_data(store, record)
        tracker.summary({f"{m.split}/{m.name}" if m.split else m.name: m.value for m in [*result.metrics, *result.resources]})
    return result


def _check_data(store: Store, record: StepRecord) -> None:
    """Before and after the step, so that a change while it read is noticed too."""
    for need in record.upstream:
        if need.startswith("data/"):
            check_preparation(Path(record.launch.data_dir), store.result(need)[0])


def _check_artefacts(store: Store, record: StepRecord) -> None:
    """Refuse bytes that changed on disk since their step wrote them: sizes alone are looked at when states are derived."""
    damage = [f"{need}: {why}" for need in record.upstream if (why := store.damaged(need))]
    if damage:
        raise PrerequisiteError(
            "\n".join(damage) + f"\nremove result.json from the folders of these steps below {store.root / 'steps'} and run again"
        )


def _place(record: StepRecord) -> str:
    """Which GPU the worker was given, for displays."""
    gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
    return f"gpu {gpu}" if gpu and record.launch.device.startswith("cuda") else ""


def _tracker(store: Store, record: StepRecord) -> AbstractContextManager[Any]:
    from tunescope.tracking import open_tracker

    tracking = record.launch.tracking
    return open_tracker(
        store.folder(record.id),
        tracking=tracking,
        project=tracking.phase1_project if record.phase == "1" else tracking.phase2_project,
        group=record.study,
        job_type=record.kind,
        name=record.id,
        config=record.inputs,
    )


@contextmanager
def _log(folder: Path) -> Iterator[None]:
    """Send stdout and stderr to log.txt at the level of file descriptors, so that native code and children are caught too."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    handle = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    try:
        with (
            open(1, "w", buffering=1, closefd=False) as out,
            open(2, "w", buffering=1, closefd=False) as err,
            redirect_stdout(out),
            redirect_stderr(err),
        ):
            yield
    finally:
        for source, target in zip(saved, (1, 2), strict=True):
            os.dup2(source, target)
            os.close(source)


def _abandon() -> None:
    """The driver is gone: end this process and its children; the next run takes over."""
    if os.getpgid(0) == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)
