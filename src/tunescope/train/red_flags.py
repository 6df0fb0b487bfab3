"""What looks wrong about a run, in words. Flags are shown by `status` and the report and never change a verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from tunescope.records import Metric

HIGH_TRAIN_LOSS = 0.1
"""Nats a completion token above which a finished run has not fitted its training data."""
MERGED_BF16_AGREEMENT = 0.99
"""Share of test examples for which the model merged in bf16 must predict what the adapter predicted."""
MERGED_BF16_GAP = 0.005
"""Largest difference (fraction) between their scores on the task's primary metric."""
EXPLODED = 100.0
"""Absolute adapter weight; a trained LoRA weight is of the order of 0.01 to 1."""


def training_flags(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Training loss not falling, or high at the end."""
    losses = [row["loss"] for row in history if "loss" in row]
    flags = []
    if len(losses) > 1 and losses[-1] >= losses[0]:
        flags.append(f"training loss did not fall ({losses[0]:.3f} to {losses[-1]:.3f})")
    if losses and losses[-1] > HIGH_TRAIN_LOSS:
        flags.append(f"training loss is {losses[-1]:.3f} at the end, above {HIGH_TRAIN_LOSS}")
    return flags


def adapter_flags(facts: Mapping[str, Any], proofs: Sequence[Metric], tolerance: float) -> list[str]:
    """Base weights changed, update all zero or exploding, merge outside tolerance, unload or reload not exact."""
    flags = []
    if not facts["base_unchanged"]:
        flags.append("base weights changed during adapter training (hash before and after differ)")
    largest = facts["largest_adapter_weight"]
    norms = facts["adapter_norms"]
    if any(norms[k] == 0 for k in ("A", "B", "all") if k in norms):  # one factor of zeros makes the update zero
        flags.append("adapter weights are all zero: nothing was learned")
    if not largest < EXPLODED:
        flags.append(f"adapter weights explode (largest {largest:.3g})")
    gap = next((m.value for m in proofs if m.name == "merge_max_abs_logit_difference"), None)
    if gap is not None and not gap <= tolerance:
        flags.append(f"merged and adapted model differ by {gap:.2g} in a logit (tolerance {tolerance:g} in fp32)")
    flags += _bf16_flags({m.name: m.value for m in proofs if m.value is not None})
    moved = facts.get("conversion_max_abs_logit_difference")
    if moved is not None and not moved <= tolerance:
        flags.append(f"the adapter kept for the untouched base differs by {moved:.2g} in a logit from the trained model ({tolerance:g})")
    if facts.get("unload_restores_base") is False:
        flags.append("unloading the adapter does not restore the base model's logits exactly")
    if facts.get("reload_restores_adapter") is False:
        flags.append("loading the saved adapter again does not restore its logits exactly")
    return flags


def _bf16_flags(values: Mapping[str, float]) -> list[str]:
    agreement, gap = values.get("merge_bf16_label_agreement"), values.get("merge_bf16_score_gap")
    flags = []
    if agreement is not None and not agreement >= MERGED_BF16_AGREEMENT:
        flags.append(f"merged in bf16 the model gives {agreement:.1%} equal predictions (at least {MERGED_BF16_AGREEMENT:.0%} wanted)")
    if gap is not None and not gap <= MERGED_BF16_GAP + 1e-9:
        flags.append(f"merged in bf16 the model's score moves by {100 * gap:.2f} points (at most {100 * MERGED_BF16_GAP:g} allowed)")
    return flags
