"""The machine around a launch: load, clocks and heat, and whether something else kept it busy."""

import functools
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLUMNS = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used,index"
"""What is asked of nvidia-smi, as its `--query-gpu` takes it."""

OWN_LOAD = 3.0
"""The load that a launch makes itself: 2.1 to 2.8 on an H100 host, about 1 on a CPU."""

LOOP_TURNS, LOOPS = 100_000, 25
"""Additions of one Python loop (some milliseconds of one core) and how often it is timed."""

UNEVEN = 1.5
"""Slowest over fastest Python loop of a step from which its host is called uneven: a shared H100 host had two speeds, 1.7 times apart."""


def machine_state(device: str) -> dict[str, Any]:
    """Load, cores and speed of the host; clocks, heat and driver of the GPUs this step may use: a drifting session is no slow arm.

    A decoding step of a small model is the host's time, so how fast one core runs Python is told beside it: `python_loop_ms` is the
    median and the slowest of some timings of one loop, the same for every host.
    """
    state: dict[str, Any] = {"load_average_1min": os.getloadavg()[0], "cores": os.cpu_count(), "cpu": cpu_name()}
    state["python_loop_ms"] = python_loop_ms()
    return state if device == "cpu" else state | {"gpu": gpus(device), "gpu_columns": COLUMNS}


def gpus(device: str) -> list[str]:
    """`COLUMNS` of each GPU this step may use; [] on a CPU.

    Where nvidia-smi says nothing (it is absent, or CUDA_VISIBLE_DEVICES names a slice of a card, MIG-…), torch gives the names.
    """
    if device == "cpu":
        return []
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")  # a host may have more GPUs than a step has
    lines = _asked(["nvidia-smi", f"--query-gpu={COLUMNS}", "--format=csv,noheader", *([f"--id={mine}"] if mine else [])])
    return lines or [name + ", [N/A]" * COLUMNS.count(",") for name in _names(mine)]


def python_loop_ms(turns: int = LOOP_TURNS) -> dict[str, float]:
    """Milliseconds of `turns` additions in Python: {"median", "max"} over `LOOPS` timings (about 0.1 s in all)."""
    times = []
    for _ in range(LOOPS):
        start, total = time.perf_counter(), 0
        for number in range(turns):
            total += number
        times.append((time.perf_counter() - start) * 1e3)
    return {"median": statistics.median(times), "max": max(times)}


def cpu_name() -> str:
    """The processor's model, as Linux names it; elsewhere what Python knows, which may be ""."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


@functools.cache
def _names(visible: str | None) -> tuple[str, ...]:
    """Names of the visible GPUs. A child asks, once: CUDA in this process would hold memory that the engines are to have."""
    code = "import torch\nfor i in range(torch.cuda.device_count()):\n    print(torch.cuda.get_device_name(i))"
    return tuple(_asked([sys.executable, "-c", code]))


def _asked(command: list[str]) -> list[str]:
    """The lines a program prints; [] when it fails, hangs or is not there."""
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in told.stdout.splitlines()] if told.returncode == 0 else []


def busy(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many finished launches ran on a busy machine, in words; "" when none, or when their rows do not tell the number of cores.

    Busy: a load above the number of cores before the launch, or above half of it (two threads share a core from there on) and above the
    launch's own after it. The load is a mean over a minute: the one before holds what the step has just prepared, the one after the times.
    """
    good = [r["machine"] for r in rows if r["ok"] and r.get("machine", {}).get("before", {}).get("cores")]
    found = [m for m in good if _load(m, "before") > m["before"]["cores"] or _load(m, "after") > max(m["before"]["cores"] / 2, OWN_LOAD)]
    if not found:
        return ""
    most = max(max(_load(m, "before"), _load(m, "after")) for m in found)
    return f"{len(found)} of {len(good)} launches ran on a busy machine (load up to {most:.1f} on {found[0]['before']['cores']} cores)"


def uneven(rows: Sequence[Mapping[str, Any]]) -> str:
    """That the host's speed changed between finished launches, in words; "" when it did not, or when their rows do not tell it."""
    times = loop_times(rows)
    if not times or max(times) < UNEVEN * min(times):
        return ""
    spread = f"{min(times):.1f} to {max(times):.1f} ms a Python loop, before and after launches"
    return f"the host took up to {max(times) / min(times):.1f} times as long at some launches as at others ({spread})"


def loop_times(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Median milliseconds of the Python loop before and after each finished launch; rows of older records have none."""
    states = [r["machine"][when] for r in rows if r["ok"] and "machine" in r for when in ("before", "after")]
    return [state["python_loop_ms"]["median"] for state in states if "python_loop_ms" in state]


def _load(machine: Mapping[str, Any], when: str) -> float:
    return float(machine[when]["load_average_1min"])
