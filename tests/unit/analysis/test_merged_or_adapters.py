"""K merged engines against K adapters, on planted launches."""

import math

import numpy as np
import pytest
from scipy import stats

from launch_rows import cell, row
from tunescope.analysis.merged_or_adapters import choices
from tunescope.study.arms import parse_arm

MIB = 2**20


def planted(times, launches=10, noise=0.0, weights=None, seed=0, device="cuda", cache=None):
    """{arm: ms} -> rows; an arm's adapters follow from its name."""
    rng, rows = np.random.default_rng(seed), []
    for launch in range(launches):
        for arm, ms in times.items():
            names = [f"a{i}" for i in range(parse_arm(arm).adapters)]
            one = row(arm, launch, [cell(ms * math.exp(rng.normal(0, noise)), batch=b) for b in (1, 4, 8)], adapters=names)
            one |= {"weight_bytes": (weights or {}).get(arm), "device": device, "max_loras": len(names) or None}
            rows.append(one | {"kv_blocks": (cache or {}).get(arm), "kv_block_tokens": 16})
    return rows


TIMES = {"merged": 2.0, "merged_x2": 4.0, "merged_x4": 8.0, "adapters_1": 4.0, "adapters_2": 4.0, "adapters_4": 4.0}
"""Equal at K = 2: the ratio is 2 / K."""


def by_measure(rows):
    return {c.measure: c for c in choices(rows)}


def test_the_planted_break_even_is_found_and_the_ratios_are_those_of_each_k():
    found = by_measure(planted(TIMES, noise=0.01))["time"]
    assert found.counts == (1, 2, 4) and found.ratios == pytest.approx((2.0, 1.0, 0.5), rel=0.02) and found.launches == 10
    assert found.low < 2 < found.high and found.at == pytest.approx(2.0, rel=0.02) and not found.extrapolated
    assert "side by side from K = 3 on" in found.text
    assert {c[0] for c in found.cells} == {4, 8}  # a batch of 1 cannot hold 4 adapters


def test_the_interval_of_each_ratio_is_t_over_launches():
    rows = planted({"merged_x2": 4.0, "adapters_2": 3.0}, noise=0.05, launches=6)
    found = by_measure(rows)["time"]
    times = {a: [[c["ms_per_token"] for c in r["cells"] if c["batch_size"] > 1] for r in rows if r["arm"] == a] for a in TIMES}
    logs = (np.log(times["adapters_2"]) - np.log(times["merged_x2"])).mean(axis=1)
    low, high = stats.t.interval(0.90, 5, logs.mean(), stats.sem(logs))
    assert found.intervals[-1] == pytest.approx((math.exp(low), math.exp(high)))


def test_fieller_limits_cover_the_planted_break_even_at_their_level():
    inside = 0
    for seed in range(200):
        found = by_measure(planted(TIMES, noise=0.1, launches=5, seed=seed))["time"]
        inside += found.low is not None and found.low <= 2 <= found.high
    assert 0.84 <= inside / 200 <= 0.96


def test_one_choice_that_always_wins_has_no_need_of_a_break_even():
    found = by_measure(planted(TIMES | {"adapters_1": 1.0, "adapters_2": 1.0, "adapters_4": 1.0}, noise=0.01))["time"]
    assert "Side by side is better at every measured K" in found.text


def test_a_ratio_that_does_not_change_with_k_has_no_break_even():
    flat = {"merged": 2.0, "merged_x2": 4.0, "merged_x4": 8.0, "adapters_1": 2.0, "adapters_2": 4.0, "adapters_4": 8.0}
    found = by_measure(planted(flat, noise=0.05))["time"]
    assert found.at is None and "No break-even can be stated" in found.text


def test_memory_is_weights_with_slots_and_cache_is_better_when_larger():
    weights = {"merged": 100, "merged_x2": 200, "merged_x4": 400, "adapters_1": 130, "adapters_2": 140, "adapters_4": 160}
    cache = {"merged": 1000, "merged_x2": 800, "merged_x4": 400, "adapters_1": 900, "adapters_2": 880, "adapters_4": 850}
    found = by_measure(planted(TIMES, weights={k: v * MIB for k, v in weights.items()}, cache=cache))
    assert found["weights"].ratios == pytest.approx((1.3, 0.7, 0.4)) and 1 < found["weights"].at < 2
    assert found["weights"].low == pytest.approx(found["weights"].at)  # nothing varies over launches
    assert found["cache"].ratios == pytest.approx((0.9, 1.1, 2.125)) and "side by side from K = 2 on" in found["cache"].text


def test_a_cpu_has_no_cache_to_compare_and_one_launch_no_limits():
    assert set(by_measure(planted(TIMES, device="cpu", cache=dict.fromkeys(TIMES, 10)))) == {"time"}
    first = by_measure(planted(TIMES, launches=1))["time"]
    assert first.at is None and first.intervals == (None, None, None) and first.ratios == pytest.approx((2, 1, 0.5))
    assert choices(planted({"merged": 2.0, "adapters_1": 3.0})) == [] == choices([])


def test_only_numbers_measured_both_ways_are_compared():
    rows = planted(TIMES | {"merged_x8": 16.0, "adapters_16": 9.0, "adapters_8_of_16": 1.0, "adapters_8_narrow": 1.0})
    assert by_measure(rows)["time"].counts == (1, 2, 4)
