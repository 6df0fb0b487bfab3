"""Numbers as words."""

import math

import pytest

from tunescope.report import wording as w

S = w.SPACE


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0123456, "0.0123"),
        (0.05, "0.0500"),
        (0.000123456, "0.000123"),
        (0.00001, f"<{S}0.0001"),
        (1.0, "1"),
        (0.417, "0.417"),
        (None, "–"),
    ],
)
def test_p_values_have_three_significant_digits(p: float | None, text: str) -> None:
    assert w.p_value(p) == text


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.9731, f"97.3{S}%"),
        (1.0, f"100.0{S}%"),
        (0.00102, f"0.10{S}%"),
        (-0.031, f"−3.1{S}%"),
        (0.0, f"0.0{S}%"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_per_cent(fraction: float | None, text: str) -> None:
    assert w.percent(fraction) == text


def test_signs_are_given_when_asked_and_never_to_zero() -> None:
    assert w.percent(0.047, sign=True) == f"+4.7{S}%"
    assert w.percent(-0.047, sign=True) == f"−4.7{S}%"
    assert w.percent(0.0, sign=True) == f"0.0{S}%"
    assert w.decimals(-0.0001, 2) == "0.00"


@pytest.mark.parametrize(
    ("value", "text"),
    [(1234.5, "1,234"), (0.000012, f"1.20{S}×{S}10⁻⁵"), (40.0, "40"), (-2.5, "−2.50"), (0, "0"), (math.inf, "∞"), (-math.inf, "−∞")],
)
def test_numbers(value: float, text: str) -> None:
    assert w.number(value) == text


def test_open_intervals_are_infinite_and_empty_ones_absent() -> None:
    assert w.interval((None, 1.5)) == "[−∞, 1.50]"
    assert w.percent_interval((0.951, None)) == f"[95.1, ∞]{S}%"
    assert w.interval(None) == w.interval((None, None)) == "–"


def test_prose_gets_the_pages_signs_but_keeps_names() -> None:
    assert (
        w.prose("keeps 97% of train/sst2/lora-x/seed-42, ratio - 1 is -0.5")
        == f"keeps 97{S}% of train/sst2/lora-x/seed-42, ratio − 1 is −0.5"
    )


def test_sizes_times_and_stamps() -> None:
    assert w.size(2**31) == f"2{S}GiB" and w.size(3 * 2**20) == f"3{S}MiB"
    assert w.duration(90) == f"90{S}s" and w.duration(600) == f"10{S}min" and w.duration(9000) == f"2.50{S}h"
    assert w.moment("2025-01-02T03:04:05+00:00") == "2025-01-02 03:04 UTC" and w.moment("yesterday") == "yesterday"
    assert w.plural(1, "launch", "launches") == "1 launch" and w.plural(2, "launch", "launches") == "2 launches"
