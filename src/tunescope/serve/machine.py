"""The machine around a launch: load, clocks and heat, and whether something else kept it busy."""

import functools
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,memory.used,index"
"""What is asked of nvidia-smi, as its `--query-gpu` takes it."""

OWN_LOAD = 3.0
"""The load that a launch makes itself: 2.1 to 2.8 on an H100 host, about 1 on a CPU."""


def machine_state(device: str) -> dict[str, Any]:
    """Load and cores of the whole machine; clocks, heat and driver of the GPUs this step may use: a drifting session is no slow arm.

    Where nvidia-smi says nothing (it is absent, or CUDA_VISIBLE_DEVICES names a slice of a card, MIG-…), torch gives the names.
    """
    state: dict[str, Any] = {"load_average_1min": os.getloadavg()[0], "cores": os.cpu_count()}
    if device == "cpu":
        return state
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")  # a host may have more GPUs than a step has
    lines = _asked(["nvidia-smi", f"--query-gpu={COLUMNS}", "--format=csv,noheader", *([f"--id={mine}"] if mine else [])])
    return state | {"gpu": lines or [name + ", [N/A]" * COLUMNS.count(",") for name in _names(mine)], "gpu_columns": COLUMNS}


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


def _load(machine: Mapping[str, Any], when: str) -> float:
    return float(machine[when]["load_average_1min"])
