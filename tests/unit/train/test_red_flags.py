"""Each red flag of training by a run that raises it and one that does not."""

import pytest

from tunescope.records import Metric
from tunescope.train.proofs import MERGE_TOLERANCE
from tunescope.train.red_flags import adapter_flags, training_flags

GOOD = {
    "base_unchanged": True, "largest_adapter_weight": 0.3, "adapter_norms": {"A": 2.0, "B": 0.5, "all": 2.1},
    "unload_restores_base": True, "reload_restores_adapter": True,
}  # fmt: skip


def proof(**values: float) -> list[Metric]:
    good = {"merge_max_abs_logit_difference": 1e-5, "merge_bf16_label_agreement": 0.99, "merge_bf16_score_gap": 0.005}
    return [Metric(name=name, value=value, unit="x") for name, value in (good | values).items()]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.0, 0.5, 0.09], []),
        ([0.09], []),
        ([0.05, 0.06], ["did not fall (0.050 to 0.060)"]),
        ([2.0, 0.11], ["is 0.110 at the end, above 0.1"]),
        ([2.0, 2.0], ["did not fall", "at the end"]),
    ],
)
def test_training_loss(losses, expected):
    flags = training_flags([{"eval_loss": 9.0}, *({"loss": v} for v in losses)])
    assert len(flags) == len(expected) and all(e in f for e, f in zip(expected, flags, strict=True))


def test_a_sound_adapter_raises_nothing():
    assert adapter_flags(GOOD, proof(), MERGE_TOLERANCE) == []
    ia3 = {"base_unchanged": True, "largest_adapter_weight": 1.1, "adapter_norms": {"all": 30.0}}
    assert adapter_flags(ia3, [], MERGE_TOLERANCE) == []  # a PEFT type that cannot be merged has no such proofs


@pytest.mark.parametrize(
    ("facts", "values", "expected"),
    [
        ({"base_unchanged": False}, {}, "base weights changed"),
        ({"adapter_norms": {"A": 2.0, "B": 0.0, "all": 2.0}}, {}, "all zero"),
        ({"largest_adapter_weight": 101.0}, {}, "explode (largest 101)"),
        ({"largest_adapter_weight": float("nan")}, {}, "explode"),
        ({}, {"merge_max_abs_logit_difference": 1.1e-4}, "differ by 0.00011 in a logit"),
        ({}, {"merge_max_abs_logit_difference": float("nan")}, "in a logit"),
        ({}, {"merge_bf16_label_agreement": 0.989}, "98.9% equal predictions (at least 99% wanted)"),
        ({}, {"merge_bf16_score_gap": 0.0051}, "moves by 0.51 points (at most 0.5 allowed)"),
        ({"conversion_max_abs_logit_difference": 2e-4}, {}, "kept for the untouched base differs"),
        ({"unload_restores_base": False}, {}, "unloading the adapter"),
        ({"reload_restores_adapter": False}, {}, "loading the saved adapter"),
    ],
)
def test_each_adapter_flag_alone(facts, values, expected):
    flags = adapter_flags(GOOD | facts, proof(**values), MERGE_TOLERANCE)
    assert len(flags) == 1 and expected in flags[0]
