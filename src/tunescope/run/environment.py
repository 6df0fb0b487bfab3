"""The environment of a worker, fixed before its process starts: threads, determinism, device."""

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

from tunescope.errors import PrerequisiteError


def worker_environment(threads: int, device: str, gpu: int | str | None = None) -> dict[str, str]:
    """Variables that must be set before torch, BLAS or CUDA start.

    CUBLAS_WORKSPACE_CONFIG makes cuBLAS deterministic and is read at the first CUDA call; PYTHONHASHSEED at interpreter start.
    """
    values = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "MPLBACKEND": "Agg",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",  # pyarrow would start a thread on import, before the fork
    }
    if device == "cpu":
        values["CUDA_VISIBLE_DEVICES"] = ""
    elif gpu is not None:
        values["CUDA_VISIBLE_DEVICES"] = str(gpu)
        values["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # the order of nvidia-smi, whose indices these are; CUDA's own puts the fastest first
    return values


def visible_gpus() -> list[str]:
    """GPUs this process may use, by the name CUDA_VISIBLE_DEVICES takes; asks the driver, so torch stays unimported."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [name for name in given.split(",") if name.strip() not in ("", "-1")]
    count = len(gpu_lines("index")) or len(list(Path("/dev").glob("nvidia[0-9]*")))  # some containers lack the tool
    return [str(i) for i in range(count)]


def gpu_lines(query: str) -> list[str]:
    """One line per GPU of `nvidia-smi --query-gpu`; [] without a driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines() if done.returncode == 0 else []


def choose_device(wanted: str) -> str:
    """`cpu` or `cuda`; auto takes a GPU when there is one and torch can use it.

    Raises:
        PrerequisiteError: cuda was asked for and there is none.
    """
    if wanted == "cpu":
        return "cpu"
    cpu_build = metadata.version("torch").endswith("+cpu")
    if visible_gpus() and not cpu_build:
        return "cuda"
    if wanted == "cuda":
        reason = "the installed torch is a CPU build" if cpu_build else "there is no GPU"
        raise PrerequisiteError(f"execution.device is cuda, but {reason}: install a CUDA build of torch, or use execution.device=cpu")
    return "cpu"


def cores() -> int:
    """CPU cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
