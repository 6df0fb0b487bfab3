"""What an engine holds, on planted launches."""

from types import SimpleNamespace

import pytest

from launch_rows import row
from tunescope.analysis.serving_memory import LOG, memory_table
from tunescope.analysis.tables import plain
from tunescope.analysis.tables_serving import memory_table as memory_table_shown

MIB = 2**20


def engine(arm, weights, blocks, adapters=(), **more):
    return row(arm, 0, [], adapters=adapters) | {"weight_bytes": weights * MIB, "kv_blocks": blocks, "kv_block_tokens": 16} | more


def test_the_memory_of_a_slot_is_what_the_engine_holds_more_than_the_base():
    base, two = memory_table([engine("base", 100, 50), engine("adapters_2", 120, 40, ["a", "b"], max_loras=2)])
    assert base["bytes_per_slot"] is None and base["cache_share"] == 1 and base["cache_tokens"] == 800
    assert two["bytes_per_slot"] == 10 * MIB and two["cache_share"] == pytest.approx(0.8) and two["launches"] == 1


def test_bytes_from_a_log_are_as_sharp_as_its_hundredths_of_a_gib():
    """One slot of 12 MiB on 2,099 MiB: the log says 2.05 GiB without, 2.06 with one and 2.10 with four."""
    said = {"weight_bytes_source": LOG}
    rows = [engine("base", 2.05 * 1024, 50, **said)]
    rows += [engine(f"adapters_{n}", gib * 1024, 50, "abcd"[:n], max_loras=n, **said) for n, gib in ((1, 2.06), (4, 2.10))]
    base, one, four = memory_table(rows)
    assert base["rounding"] == pytest.approx(5.12 * MIB) and base["slot_range"] is None
    assert one["bytes_per_slot"] is None and one["slot_range"] == pytest.approx((0, 20.48 * MIB), abs=1)
    assert four["slot_range"] == pytest.approx((10.24 * MIB, 15.36 * MIB))
    frames = SimpleNamespace(of_kind=lambda kind: [kind])
    shown = plain(memory_table_shown(SimpleNamespace(frames=frames), {"memory": memory_table(rows)}))
    last = dict(zip(shown["columns"], shown["rows"][-1], strict=True))
    assert (last["± (MiB)"], last["per slot (MiB)"]) == (pytest.approx(5.12), None)
    assert (last["per slot from (MiB)"], last["per slot to (MiB)"]) == pytest.approx((10.24, 15.36)) and "hundredths" in shown["note"]


def test_slots_that_the_engine_reports_apart_count():
    _, two = memory_table([engine("base", 100, 50), engine("adapters_2", 100, 40, ["a", "b"], max_loras=2, lora_slot_bytes=6 * MIB)])
    assert two["weights_and_slots"] == 106 * MIB and two["bytes_per_slot"] == 3 * MIB


def test_bytes_that_engines_told_go_before_those_of_a_log():
    rows = [engine("merged", 2.05 * 1024, 50, weight_bytes_source=LOG), engine("merged", 2098, 50) | {"launch": 1}]
    rows += [engine("adapters_2", 2.08 * 1024, 50, ["a", "b"], max_loras=2, weight_bytes_source=LOG)]
    rows += [engine("adapters_2", 2098, 50, ["a", "b"], max_loras=2, lora_slot_bytes=26 * MIB) | {"launch": 1}]
    merged, two = memory_table(rows)
    assert (merged["weights_and_slots"], merged["rounding"], merged["launches"]) == (2098 * MIB, 0, 2)
    assert (two["weights_and_slots"], two["bytes_per_slot"], two["slot_range"]) == (2124 * MIB, 13 * MIB, None)


def test_a_slot_that_the_engine_told_needs_no_base():
    rows = [engine("base", 2.05 * 1024, 50, weight_bytes_source=LOG)]
    rows += [engine("lora_idle", 2098, 50, max_loras=2, lora_slot_bytes=26 * MIB)]
    assert memory_table(rows)[1]["bytes_per_slot"] == 13 * MIB
