"""Which steps share which GPU: as many as their memory allows."""

import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tunescope.study.outline import gpu_bytes
from tunescope.study.plan import Plan, Step

from .environment import gpu_lines, visible_gpus
from .store import Store

CONTEXT_BYTES = 512 * 2**20
"""What a process takes beside its tensors: CUDA context and kernels."""
MEASURED_MARGIN = 1.1
"""Over the largest measured peak: data order and the allocator's fragments differ between seeds."""
FREE_SHARE = 0.95
"""Of the memory that is free when the run starts, what steps may plan with."""
PEAKS = ("process_gpu_reserved_bytes", "peak_memory_reserved_bytes")


@dataclass(frozen=True)
class Gpu:
    """A GPU by the name that CUDA_VISIBLE_DEVICES takes."""

    name: str
    free_bytes: int | None
    """Not used by anyone when the run started; None when nobody can tell (then one step at a time)."""


def inventory() -> list[Gpu]:
    """The GPUs this process may use, with their free memory; asks nvidia-smi, or torch in a child where there is none."""
    names = visible_gpus()
    lines = gpu_lines("index,uuid,memory.total,memory.used")
    if not lines:
        return [Gpu(name, free) for name, free in itertools.zip_longest(names, _asked_of_torch()[: len(names)])]
    free: dict[str, int] = {}
    for line in lines:
        index, uuid, total, used = line.split(", ")
        free[index] = free[uuid] = (int(total.split()[0]) - int(used.split()[0])) * 2**20
    return [Gpu(name, free.get(name)) for name in names]


def _asked_of_torch() -> list[int]:
    """Free bytes of the visible GPUs in order. A child asks, so that this process never loads torch."""
    code = "import torch\nfor i in range(torch.cuda.device_count()):\n    print(torch.cuda.mem_get_info(i)[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return [int(line) for line in done.stdout.split()] if done.returncode == 0 else []


class GpuRoom:
    """Keeps account of the memory that running steps may need.

    Args:
        gpus: what there is.
        need: bytes of a step by id; None for a step that must have a GPU to itself.
        most: steps at once on one GPU, whatever their memory: each wants CPU cores too.
    """

    def __init__(self, gpus: Sequence[Gpu], need: Callable[[str], int | None], most: int):
        self._gpus, self._need, self._most = list(gpus), need, most
        self._held: dict[str, tuple[str, int | None]] = {}
        """Running step -> (GPU, bytes set aside)."""

    def fits(self, step_id: str) -> bool:
        """Whether a GPU has room for the step now. An empty one has room for any step: it is the most there will ever be."""
        return self._best(step_id) is not None

    def take(self, step_id: str) -> str:
        """Set memory aside; returns the GPU's name. Where nothing fits (the caller runs the step alone) it is the least used one."""
        name = self._best(step_id) or min(self._gpus, key=lambda g: len(self._on(g))).name
        self._held[step_id] = name, self._need(step_id)
        return name

    def release(self, step_id: str) -> None:
        """Give a step's memory back."""
        self._held.pop(step_id, None)

    def _on(self, gpu: Gpu) -> list[int | None]:
        return [need for name, need in self._held.values() if name == gpu.name]

    def _best(self, step_id: str) -> str | None:
        """The GPU with the most memory left that the step fits on."""
        need, found = self._need(step_id), list[tuple[float, str]]()
        for gpu in self._gpus:
            held = self._on(gpu)
            if not held:
                found.append((gpu.free_bytes or 0, gpu.name))
            elif need is not None and gpu.free_bytes is not None and len(held) < self._most and None not in held:
                left = gpu.free_bytes * FREE_SHARE - sum(h or 0 for h in held) - need
                if left >= 0:
                    found.append((left, gpu.name))
        return max(found)[1] if found else None


class MemoryNeeds:
    """Bytes of GPU memory a step needs: the largest peak of finished steps like it in this store, before that an estimate."""

    def __init__(self, plan: Plan, store: Store):
        self._plan, self._store = plan, store

    def __call__(self, step_id: str) -> int | None:
        step = self._plan[step_id]
        peaks = [peak for other in self._plan.steps if _alike(step, other) and (peak := self._peak(other.id))]
        if peaks:
            return int(max(peaks) * MEASURED_MARGIN) + CONTEXT_BYTES
        estimate = gpu_bytes(self._plan.study, step)
        return estimate + CONTEXT_BYTES if estimate else estimate

    def _peak(self, step_id: str) -> float:
        result, _ = self._store.result(step_id)
        return max((result.metric(name) or 0 for name in PEAKS), default=0) if result else 0


def _alike(step: Step, other: Step) -> bool:
    """Same kind, task, method and batch size; a final run's batch size is not chosen yet, so every search run counts."""
    if (step.kind, step.task, step.method) != (other.kind, other.task, other.method):
        return False
    sizes = [getattr(s.inputs, "batch_size", None) for s in (step, other)]
    return None in sizes or sizes[0] == sizes[1]
