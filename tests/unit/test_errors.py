"""Suggestions for mistyped names."""

import pytest

from tunescope.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "meant"),
    [
        ("LROA", ["ROAD", "ADALORA", "LORA", "GLORA"], "LORA"),  # neighbours swapped: one slip, ROAD is two away
        ("lora", ["LOHA", "LORA"], "LORA"),
        ("clams", ["costs", "claims", "master"], "claims"),
        ("alpha", ["r", "lora_alpha", "lora_dropout"], "lora_alpha"),
    ],
)
def test_the_name_with_the_fewest_slips_is_offered(name, known, meant):
    assert did_you_mean(name, known) == f" (did you mean '{meant}'?)"


def test_a_name_near_to_none_gets_no_offer():
    assert did_you_mean("xyz", ["LORA"]) == did_you_mean("xyz", []) == ""
