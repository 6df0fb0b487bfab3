"""Serving arms: how they are named, what each is, and what it is called in words. A name is read here only; others ask the record."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tunescope.errors import did_you_mean

PATTERN = r"^(?:(base|full|merged|lora_idle|switching)|merged_x([2-9]|[1-9][0-9]+)|adapters_([1-9][0-9]*)(?:_of_([1-9][0-9]*))?(_narrow)?)$"
"""Every name there is, in the part of regular expressions that JSON Schema has too."""
SAME_SHAPE = ("base", "full", "merged")
"""Arms of identical shapes: they must tie, and are the noise check."""


@dataclass(frozen=True)
class Arm:
    """One engine set-up."""

    name: str
    words: str
    """The name as people read it; own modules = only the modules the adapters touch are wrapped."""
    model: Literal["base", "full", "merged"]
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

    @property
    def lora(self) -> bool:
        """Whether the engine has LoRA enabled."""
        return self.slots > 0

    @property
    def switches(self) -> bool:
        """Whether adapters take turns in too few slots: request by request, so that it has rows of its own instead of cells."""
        return self.adapters > self.slots

    @property
    def side_by_side(self) -> bool:
        """Whether every adapter has its slot, no slot is spare and every layer is wrapped: vLLM's own way to serve N adapters.

        What changes with the number of adapters is read from these arms.
        """
        return 0 < self.adapters == self.slots and not self.narrow


_FIXED = {
    arm.name: arm
    for arm in (
        Arm("base", "base", "base"),
        Arm("full", "full fine-tuned", "full"),
        Arm("merged", "merged", "merged"),
        # As many slots as the registered two-adapter arm: their difference is the cost of using adapters, not of enabling them.
        Arm("lora_idle", "adapters on, none used", "base", slots=2),
        # Slots < adapters kept in CPU memory < adapters in all, so that each of the three tiers exists in one engine.
        Arm("switching", "switching", "base", adapters=4, slots=2, cpu_slots=3),
    )
}


@cache
def parse_arm(name: str) -> Arm:
    """The arm of a name.

    Besides the fixed names: `adapters_N`, N adapters side by side; `adapters_N_of_M`, on an engine with more slots, M; either with
    `_narrow`, only the adapters' own modules wrapped; `merged_xK`, K merged engines at once on one device, the alternative to K adapters.

    Raises:
        ValueError: not an arm, fewer slots than adapters, or as many, which is `adapters_N`: one engine under two names would be two arms.
    """
    match = re.fullmatch(PATTERN, name)
    if match is None:
        raise ValueError(
            f"'{name}' is no arm{did_you_mean(name, _like(name))}; there are {', '.join(_FIXED)} and, with other numbers too, "
            "merged_x2, adapters_1, adapters_1_of_2 (2 slots), adapters_1_narrow"
        )
    fixed, engines, adapters, slots, narrow = match.groups()
    if fixed:
        return _FIXED[fixed]
    if engines:
        return Arm(name, f"{engines} merged engines", "merged", engines=int(engines))
    count, held = int(adapters), int(slots or adapters)
    if held < count:
        raise ValueError(f"arm '{name}' has fewer slots than adapters")
    if slots and held == count:
        raise ValueError(f"arm '{name}' has as many slots as adapters: it is 'adapters_{count}{narrow or ''}', write that")
    words = f"{count} adapter{'s' if count > 1 else ''}{f', {held} slots' if slots else ''}{', own modules' if narrow else ''}"
    return Arm(name, words, "base", adapters=count, slots=held, narrow=narrow is not None)


def _like(name: str) -> list[str]:
    """The names an arm may have been meant to have: the fixed ones, and each pattern with the numbers in this name."""
    numbers = re.findall(r"\d+", name) or ["2"]
    several = "adapters_" + "_of_".join(dict.fromkeys(numbers[:2]))
    return [*_FIXED, *(n for n in (f"merged_x{numbers[0]}", several, f"{several}_narrow") if re.fullmatch(PATTERN, n))]


def arm_name(name: str) -> str:
    """An arm in words."""
    return parse_arm(name).words


ArmName = Annotated[str, AfterValidator(lambda name: parse_arm(name).name), Field(json_schema_extra={"pattern": PATTERN})]
"""The name of an arm in a study file; any other is refused with `parse_arm`'s reason."""
