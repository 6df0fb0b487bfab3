"""Serving rows: medians over launches per cell, and each cell's time per token against the registered baseline arm."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunescope.serve.overhead import Row, cell_table, finished, overhead_ratio, spread, tie_check
from tunescope.study.schema import Study

from .findings import ServingRow
from .frames import Frames
from .merged_or_adapters import choices
from .overhead import launch_rows
from .overhead_scaling import break_even, overhead_model
from .overhead_surface import surface
from .serving_advice import recommendations
from .serving_memory import memory_table


def serving_rows(frames: Frames, study: Study) -> list[ServingRow]:
    """One row per arm and cell, in the order of the study's arms, then by cell."""
    rows, baseline = launch_rows(frames), study.analysis.overhead_baseline_arm
    arms = list(study.serving.arms) if study.serving else []
    lines = [line for line in cell_table(rows).to_dict("records") if line["arm"] in arms]
    lines.sort(key=lambda x: (arms.index(x["arm"]), x["sampling"], x["prompt_length"], x["batch_size"]))
    return [_row(line, rows, baseline, frames.of_kind("serve")) for line in lines]


def _row(line: dict[Any, Any], rows: list[Row], baseline: str, steps: list[str]) -> ServingRow:
    cell = (int(line["batch_size"]), int(line["prompt_length"]), str(line["sampling"]))
    ratio = None if line["arm"] == baseline else overhead_ratio(rows, line["arm"], baseline, [cell])
    return ServingRow(
        arm=line["arm"], batch_size=cell[0], prompt_length=cell[1], sampling=cell[2], adapters=int(line["adapters"]),
        launches=int(line["launches"]), ms_per_token_median=line["ms_per_token_median"], ms_per_token_mad=finite(line["ms_per_token_mad"]),
        tokens_per_s_median=line["tokens_per_s_median"], ttft_ms_median=finite(line["ttft_ms_median"]),
        latency_p50_ms=finite(line["latency_p50_ms"]), latency_p95_ms=finite(line["latency_p95_ms"]),
        latency_p99_ms=finite(line["latency_p99_ms"]), requests=int(line["requests"]), ratio_to_baseline=ratio.ratio if ratio else None,
        ratio_launches=ratio.launches if ratio else None,
        ratio_interval=ratio.interval if ratio and ratio.low is not None else None, note=line["note"], steps=steps,
    )  # fmt: skip


def switching_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One row per tier and switching frequency: medians over launches, with the arm's load and unload times (ms)."""
    mine = [r for r in finished(rows) if r.get("switching")]
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in mine:
        for entry in row["switching"]:
            groups.setdefault((entry["tier"], entry["switch_every"]), []).append(entry)
    calls = {f"{what}_ms": _middle([1e3 * v for r in mine for v in r.get(f"{what}_s", [])]) for what in ("load", "unload")}
    return [_switching_row(tier, every, entries) | calls for (tier, every), entries in groups.items()]


def _switching_row(tier: str, every: int, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """GB/s is that of the median time added, and of launches that all found some: one launch near 0 would give any speed."""
    added, times = [e["added_ms"] for e in entries], [e["ms_per_request"] for e in entries]
    moved = entries[0]["bytes_moved"] if min(added) > 0 else 0
    return {
        "tier": tier, "switch_every": every, "adapters": entries[0]["adapters"], "launches": len(entries),
        "ms_per_request": _middle(times), "ms_mad": finite(spread(times)), "added_ms": float(np.median(added)),
        "added_mad": finite(spread(added)),
        "gb_per_s": moved / float(np.median(added)) / 1e6 if moved else None,
    }  # fmt: skip


def _middle(values: Sequence[float]) -> float | None:
    return float(np.median(values)) if len(values) else None


def open_loop_rows(frames: Frames) -> list[dict[str, Any]]:
    """One row per arm and request rate of the open loop: medians over launches of each launch's percentiles, counts summed."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for step in frames.of_kind("serve"):
        for row in frames.documents.get(step, {}).get("open_loop.jsonl", []):
            for rate in row["rates"] if row["ok"] else []:
                groups.setdefault((row["arm"], rate["request_rate"]), []).append(rate)
    return [_open_row(arm, rate, found) for (arm, rate), found in sorted(groups.items())]


def _open_row(arm: str, rate: float, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"arm": arm, "request_rate": rate, "launches": len(found)}
    row |= {name: sum(f[name] for f in found) for name in ("requests", "completed")} | {
        "requests_per_s": _middle([f["requests_per_s"] for f in found])
    }
    for name in ("ttft", "tpot", "itl", "e2el"):
        row |= {f"{name}_p{q}_ms": _middle([f[f"{name}_ms"][i] for f in found]) for i, q in enumerate((50, 95, 99))}
    return row


def finite(value: float | None) -> float | None:
    """The number, None when it is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def overhead_summary(frames: Frames, study: Study) -> dict[str, Any]:
    """Tie check, models of overhead, break-evens, memory and recommendations, at the registered limit; {} without launches."""
    rows, spec = launch_rows(frames), study.analysis
    if not rows:
        return {}
    baseline, limit = spec.overhead_baseline_arm, spec.overhead_limit
    cpu = any(frames.outputs(step).get("cpu_figures") for step in frames.of_kind("serve"))
    model, joint = overhead_model(rows, baseline), surface(rows, baseline)
    return {
        "tie_check": tie_check(rows),
        "model": {**vars(model), "apart_text": model.apart_text()} if model else None,
        "break_even": vars(break_even(model, limit)) if model else None,
        "surface": joint.plain() if joint else None,
        "choices": [vars(choice) for choice in choices(rows)],
        "memory": memory_table(rows),
        "recommendations": recommendations(rows, limit, spec.min_launches, cpu, baseline),
    }
