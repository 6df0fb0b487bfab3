"""Serving rows: medians over launches per cell, and each cell's time per token against the registered baseline arm."""

import math
from typing import Any

from tunescope.serve.overhead import Row, cell_table, overhead_ratio
from tunescope.serve.scaling import summary
from tunescope.study.schema import Study

from .findings import ServingRow
from .frames import Frames
from .overhead import launch_rows


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
        launches=int(line["launches"]), ms_per_token_median=line["ms_per_token_median"], ms_per_token_mad=line["ms_per_token_mad"],
        tokens_per_s_median=line["tokens_per_s_median"], ttft_ms_median=finite(line["ttft_ms_median"]),
        latency_p50_ms=finite(line["latency_p50_ms"]), latency_p95_ms=finite(line["latency_p95_ms"]),
        latency_p99_ms=finite(line["latency_p99_ms"]), requests=int(line["requests"]), ratio_to_baseline=ratio.ratio if ratio else None,
        ratio_interval=ratio.interval if ratio and ratio.low is not None else None, note=line["note"], steps=steps,
    )  # fmt: skip


def finite(value: float | None) -> float | None:
    """The number, None when it is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def overhead_summary(frames: Frames, study: Study) -> dict[str, Any]:
    """Tie check, overhead against the number of adapters, break-even and recommendations, at the registered limit; {} without launches."""
    rows, spec = launch_rows(frames), study.analysis
    if not rows:
        return {}
    cpu = any(frames.outputs(step).get("cpu_figures") for step in frames.of_kind("serve"))
    return summary(rows, spec.overhead_limit, spec.min_launches, cpu, spec.overhead_baseline_arm)
