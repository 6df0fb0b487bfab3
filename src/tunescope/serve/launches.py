"""All launches of one serve step: what each is told, in which order they run, and which finished ones are kept."""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunescope.records import StepContext
from tunescope.study.arms import Arm, parse_arm
from tunescope.study.identity import fingerprint
from tunescope.study.inputs import ServeInputs
from tunescope.study.schema import OpenLoopSpec, ServingSpec

from .arms import accepted_rank, cells, launch_order, max_loras
from .correctness import MINIMUM_DIFFERENCE
from .launch import environment, forked
from .machine import gpus, machine_state
from .session import ForkServer, Row, Started, keep_finished, run_launch, run_session

if TYPE_CHECKING:
    from .prepare import Adapter, Materials

LAUNCH = "tunescope.serve.launch"
Tell = Callable[[Arm, "Materials"], dict[str, Any]]
Start = Callable[[Arm, int, "Materials"], Row]


@dataclass(frozen=True)
class Session:
    """What stays the same over all launches of a step."""

    spec: ServingSpec
    ctx: StepContext
    arms: list[Arm]
    """Of closed and open loop."""
    planned: list[tuple[str, int]]
    """Closed-loop launches in order."""
    planned_open: list[tuple[str, int]]
    dtype: str
    eager: bool
    version: str
    forks: ForkServer | None
    """Starts closed-loop launches of one engine on a CPU."""

    @classmethod
    def open(cls, inputs: ServeInputs, ctx: StepContext, version: str) -> "Session":
        spec, cpu = inputs.serving, ctx.device == "cpu"
        arms = [parse_arm(name) for name in spec.all_arms]
        planned = list(launch_order(list(dict.fromkeys(spec.arms)), spec.launches))
        planned_open = list(launch_order(list(dict.fromkeys(spec.open_loop.arms)), spec.open_loop.launches)) if spec.open_loop else []
        dtype = spec.dtype if spec.dtype != "auto" else "float32" if cpu else "bfloat16"
        eager = cpu if spec.enforce_eager == "auto" else spec.enforce_eager == "always"
        forks = ForkServer(["tunescope.serve.imports"], forked, environment("cpu", eager)) if cpu else None
        return cls(spec, ctx, arms, planned, planned_open, dtype, eager, version, forks)

    @property
    def graphs(self) -> bool:
        """Whether engines replay steps from CUDA graphs."""
        return not self.eager and self.ctx.device != "cpu"

    def run(self, made: "Materials") -> list[Row]:
        """All closed-loop launches; those finished before with the same digest are kept and not repeated."""
        return self._run("launches.jsonl", self.planned, made, self._launch, self.launch_spec)

    def run_open(self, made: "Materials") -> list[Row]:
        """All open-loop launches, likewise."""
        if not self.planned_open:
            return []
        return self._run("open_loop.jsonl", self.planned_open, made, self._launch_open, self.open_spec)

    def _run(self, file: str, planned: list[tuple[str, int]], made: "Materials", start: Start, tell: Tell) -> list[Row]:
        (self.ctx.folder / "logs").mkdir(exist_ok=True)
        wanted = {arm.name: arm for arm in self.arms if any(arm.name == name for name, _ in planned)}
        digests = {n: self.digest(tell(arm, made), made) for n, arm in wanted.items() if n not in made.problems}
        finished = keep_finished(self.ctx.folder / file, digests)
        order = {key: position for position, key in enumerate(planned)}

        def launch(name: str, number: int) -> Row:
            head = {"arm": name, "launch": number, "order": order[name, number], "digest": digests.get(name)}
            if name in made.problems:
                return {**head, "ok": False, "error": made.problems[name], "cells": []}
            row = start(wanted[name], number, made)
            error = None if row["ok"] else f"arm '{name}', launch {number}: {row['error']}"
            return {**head, **row, "error": error}

        def told(row: Row) -> None:
            done = sum(1 for r in read if r["ok"]) + bool(row["ok"])
            read.append(row)
            which = f"{row['arm']} {row['launch'] + 1} of {file.removesuffix('.jsonl')}"
            self.ctx.progress(done, len(planned), which if row["ok"] else f"{which} failed")
            self._track(row, len(read))

        read = list(finished)
        return run_session(self.ctx.folder / file, planned, finished, launch, told)

    def _track(self, row: Row, step: int) -> None:
        if not row["ok"]:
            return
        arm = row["arm"]
        values = {f"{arm}/cold_start_s": row["cold_start_s"]}
        for rate in row.get("rates", ()):
            values[f"{arm}/rate-{rate['request_rate']:g}/e2el_p99_ms"] = rate["e2el_ms"][-1]
        for c in row["cells"]:
            values[f"{arm}/b{c['batch_size']}-p{c['prompt_length']}-{c['sampling']}/ms_per_token"] = c["ms_per_token"]
        self.ctx.tracker.log(values, step)

    def _launch(self, arm: Arm, number: int, made: "Materials") -> Row:
        spec = self.launch_spec(arm, made) | {"started": time.monotonic()}
        return self._child(LAUNCH, spec, arm, made, f"{arm.name}-{number}.txt")

    def _launch_open(self, arm: Arm, number: int, made: "Materials") -> Row:
        spec = self.open_spec(arm, made) | {"client_seed": self.spec.seed + number}
        return self._child("tunescope.serve.open_loop", spec, arm, made, f"open-{arm.name}-{number}.txt")

    def _child(self, module: str, told: dict[str, Any], arm: Arm, made: "Materials", log_name: str) -> Row:
        """Run one launch as `python -m module SPEC.json` and describe the machine around it."""
        work, log = self.ctx.folder / "work", self.ctx.folder / "logs" / log_name
        result, spec_file = work / "row.json", work / "launch.json"
        before = machine_state(self.ctx.device)
        spec_file.write_text(json.dumps(told | {"result": str(result), "log": str(log)}))
        start = self.forks.start if self.forks and module == LAUNCH and arm.engines == 1 else Started
        row = run_launch([sys.executable, "-m", module, str(spec_file)], result, log, self.spec.launch_timeout_s, start)
        flags = {k: v for k, v in sorted(os.environ.items()) if k.startswith("VLLM_")}
        said = {"machine": {"before": before, "after": machine_state(self.ctx.device)}, "flags": flags}
        return self.described(arm, made) | {"cells": []} | row | said

    def described(self, arm: Arm, made: "Materials") -> dict[str, Any]:
        """The part of a row that is known before its launch."""
        adapters = made.adapters.get(arm.name, [])
        held = adapters[: arm.adapters]
        return {
            "model": arm.model,
            "engines": arm.engines,
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
            "max_cudagraph_capture_size": self.spec.max_cudagraph_capture_size if self.graphs else None,
            "gpu_memory_utilization": None if self.ctx.device == "cpu" else self.spec.gpu_memory_utilization,
        }

    def launch_spec(self, arm: Arm, made: "Materials") -> dict[str, Any]:
        """What the child is told."""
        from .prepare import describe, kv_cache_bytes

        said, spec = self.described(arm, made), self.spec
        held = made.adapters.get(arm.name, [])[: arm.adapters]
        lora = {k: said[k] for k in ("max_loras", "max_cpu_loras", "max_lora_rank")} | {"target_modules": said["wrapped_modules"]}
        switching = {"prompt_length": min(spec.prompt_lengths), "bytes_moved": bytes_moved(held, self.dtype)}
        same = ["device", "dtype", "enforce_eager", "max_model_len", "max_num_seqs", "engines"]
        same += ["max_cudagraph_capture_size"] if said["max_cudagraph_capture_size"] else []  # otherwise vLLM decides
        return {k: said[k] for k in same} | {
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
            "switching": switching if arm.switches else None,
            "minimum_difference": MINIMUM_DIFFERENCE[self.dtype],
            "prompts": str(made.prompts),
            "watch_stdin": True,
        }

    def open_spec(self, arm: Arm, made: "Materials") -> dict[str, Any]:
        """What the child of an open-loop launch is told."""
        plan = self.spec.open_loop
        assert isinstance(plan, OpenLoopSpec)
        shared = self.launch_spec(arm, made)
        left_out = ("cells", "requests_per_cell", "switching", "engines", "temperature", "top_p")
        return {k: v for k, v in shared.items() if k not in left_out} | {
            "tokenizer": str(made.base),
            "request_rates": list(plan.request_rates),
            "requests": plan.requests,
            "prompt_length": plan.prompt_length,
            "output_tokens": self.spec.output_tokens,
            "ready_timeout_s": self.spec.launch_timeout_s / 2,
        }

    def digest(self, told: dict[str, Any], made: "Materials") -> str:
        """Identity of an arm's launches: what the child is told, with files by content instead of by path, and the GPU's name.

        Times of two kinds of GPU are never mixed in one cell: on another one, every launch is made anew.
        """
        from .prepare import folder_sha256

        content = {
            "vllm": self.version,
            "gpu": [line.split(",")[0] for line in gpus(self.ctx.device)],
            "model": folder_sha256(Path(told["model"])),
            "adapters": [{"name": a["name"], "sha256": folder_sha256(Path(a["path"]))} for a in told["adapters"]],
            "prompts": fingerprint(json.loads(made.prompts.read_text())),
        }
        return fingerprint({k: v for k, v in told.items() if k != "tokenizer"} | content)


def bytes_moved(adapters: Sequence["Adapter"], dtype: str) -> dict[str, int]:
    """Tier of switching -> bytes of the largest adapter: from disk as saved, from CPU memory in the dtype it is served in."""
    width = 4 if dtype == "float32" else 2
    return {
        "cpu cache": max((a.parameters for a in adapters), default=0) * width,
        "disk": max((a.bytes for a in adapters), default=0),
    }
