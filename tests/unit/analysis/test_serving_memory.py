"""What an engine holds, on planted launches."""

import pytest

from launch_rows import row
from tunescope.analysis.serving_memory import memory_table

MIB = 2**20


def engine(arm, weights, blocks, adapters=(), **more):
    return row(arm, 0, [], adapters=adapters) | {"weight_bytes": weights * MIB, "kv_blocks": blocks, "kv_block_tokens": 16} | more


def test_the_memory_of_a_slot_is_what_the_engine_holds_more_than_the_base():
    base, two = memory_table([engine("base", 100, 50), engine("adapters_2", 120, 40, ["a", "b"], max_loras=2)])
    assert base["bytes_per_slot"] is None and base["cache_share"] == 1 and base["cache_tokens"] == 800
    assert two["bytes_per_slot"] == 10 * MIB and two["cache_share"] == pytest.approx(0.8) and two["launches"] == 1


def test_slots_that_the_engine_reports_apart_count():
    _, two = memory_table([engine("base", 100, 50), engine("adapters_2", 100, 40, ["a", "b"], max_loras=2, lora_slot_bytes=6 * MIB)])
    assert two["weights_and_slots"] == 106 * MIB and two["bytes_per_slot"] == 3 * MIB
