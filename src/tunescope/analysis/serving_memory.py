"""What the engine of each arm holds: weights, adapter slots and key-value cache."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunescope.serve.overhead import Row, finished

LOG = "log line of the engine, slots included"
"""`weight_bytes_source` of launches on a GPU before engines told bytes: GiB with two decimals."""
LOG_ROUNDING = 0.005 * 2**30


def weights_and_slots(row: Row) -> float | None:
    """Bytes of weights and adapter slots of a launch; None where the engine did not say."""
    return None if row.get("weight_bytes") is None else row["weight_bytes"] + (row.get("lora_slot_bytes") or 0)


def rounding(row: Row) -> float:
    """Bytes by which `weights_and_slots` may be off either way: those of a log, once an engine; 0 where the engine told bytes."""
    return LOG_ROUNDING * int(row.get("engines", 1)) if row.get("weight_bytes_source") == LOG else 0.0


def telling(rows: Sequence[Row]) -> list[Row]:
    """The launches to read an arm's bytes from: those whose engine told them, where there are any. All launches of an arm hold alike."""
    return [r for r in rows if not rounding(r)] or list(rows)


def cache_tokens(row: Row) -> float | None:
    """Tokens of key-value cache of a launch; None where the engine did not say."""
    blocks, size = row.get("kv_blocks"), row.get("kv_block_tokens")
    return float(blocks * size) if blocks and size else None


def memory_table(rows: Sequence[Row], baseline: str = "base") -> list[dict[str, Any]]:
    """Per arm: median weight and slot bytes, cache tokens, and what one adapter slot adds over the baseline arm.

    `bytes_per_slot` = bytes of all slots / max_loras where the engine told them, elsewhere what it holds more than the baseline's engine
    / max_loras; None for engines without LoRA. Where a log rounded the bytes, by `rounding` either way, it is None as well and
    `slot_range` has its limits. `cache_share` = cache tokens over the baseline's, None on a CPU, where the size is fixed beforehand.
    """
    typical = {arm: _typical(finished(rows, arm)) for arm in dict.fromkeys(r["arm"] for r in finished(rows))}
    start = typical.get(baseline) or typical.get("merged")
    return [_memory_line(arm, held, start) for arm, held in typical.items() if held["weights_and_slots"] is not None]


def _typical(rows: Sequence[Row]) -> dict[str, Any]:
    def middle(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return float(np.median(known)) if known else None

    cpu, told = any(r.get("device") == "cpu" for r in rows), telling(rows)
    return {
        "weights_and_slots": middle([weights_and_slots(r) for r in told]), "rounding": max(rounding(r) for r in told),
        "slot_bytes": middle([r.get("lora_slot_bytes") for r in told]),
        "cache_tokens": None if cpu else middle([cache_tokens(r) for r in rows]),
        "max_loras": rows[0].get("max_loras"), "adapters": len(rows[0]["adapters"]), "engines": rows[0].get("engines", 1),
        "launches": len(rows),
    }  # fmt: skip


def _memory_line(arm: str, held: Mapping[str, Any], start: Mapping[str, Any] | None) -> dict[str, Any]:
    slots, reference = held["max_loras"], start["weights_and_slots"] if start else None
    added = (held["weights_and_slots"] - reference) / slots if slots and reference is not None else None
    off = (held["rounding"] + start["rounding"]) / slots if slots and start else 0.0
    if slots and held["slot_bytes"] is not None:
        added, off = held["slot_bytes"] / slots, 0.0
    span = None if added is None or not off else (max(added - off, 0.0), added + off)
    cache = start["cache_tokens"] if start else None
    share = held["cache_tokens"] / cache if cache and held["cache_tokens"] is not None else None
    return {"arm": arm, **held, "bytes_per_slot": None if span else added, "slot_range": span, "cache_share": share}
