"""Serving rows: medians over launches per cell, and each cell's time per token against the registered baseline arm."""

import math
from typing import Any

import numpy as np
import pandas as pd

from tunescope.study.schema import Study

from .findings import ServingRow
from .frames import Frames
from .inference import Interval, t_test

_CELL = ["batch_size", "prompt_length", "sampling"]


def serving_rows(frames: Frames, study: Study) -> list[ServingRow]:
    """One row per arm and cell, in the order of the study's arms."""
    launches, arms = frames.launches, study.serving.arms if study.serving else ()
    found = []
    for arm in arms:
        for (batch, prompt, sampling), cell in launches[launches.arm == arm].groupby(_CELL, sort=True):
            twin = launches[(launches.arm == study.analysis.overhead_baseline_arm) & (launches.batch_size == batch)]
            twin = twin[(twin.prompt_length == prompt) & (twin.sampling == sampling)]
            found.append(_row(str(arm), int(batch), int(prompt), str(sampling), cell, twin))
    return found


def _row(arm: str, batch: int, prompt: int, sampling: str, cell: pd.DataFrame, twin: pd.DataFrame) -> ServingRow:
    ratio, interval = (None, None) if arm == (twin.arm.iloc[0] if len(twin) else None) else ratio_to(cell, twin)
    ms = cell.ms_per_token.to_numpy(dtype=np.float64)
    return ServingRow(
        arm=arm, batch_size=batch, prompt_length=prompt, sampling=sampling, adapters=int(cell.adapters_active.max()),
        launches=cell.launch.nunique(), ms_per_token_median=float(np.median(ms)),
        ms_per_token_mad=float(np.median(np.abs(ms - np.median(ms)))), tokens_per_s_median=float(cell.tokens_per_s.median()),
        ttft_ms_median=_median(cell.ttft_ms_p50), latency_p50_ms=_median(cell.latency_ms_p50), latency_p95_ms=_median(cell.latency_ms_p95),
        latency_p99_ms=_median(cell.latency_ms_p99), requests=int(cell.requests.sum()), ratio_to_baseline=ratio, ratio_interval=interval,
        note="; ".join(n for n in dict.fromkeys(cell.note.dropna()) if n), steps=sorted(set(cell.step_id)),
    )  # fmt: skip


def ratio_to(cell: pd.DataFrame, twin: pd.DataFrame, level: float = 0.90) -> tuple[float | None, Interval | None]:
    """Geometric-mean ratio of time per token over launches paired by number, with t limits on the log; None without a pair."""
    pair = cell[["launch", "ms_per_token"]].merge(twin[["launch", "ms_per_token"]], on="launch", suffixes=("", "_twin"))
    if not len(pair):
        return None, None
    logs = np.log(pair.ms_per_token / pair.ms_per_token_twin).to_numpy(dtype=np.float64)
    if len(logs) < 2:
        return math.exp(float(logs.mean())), None
    low, high = t_test(logs).interval(level)
    return math.exp(float(logs.mean())), None if low is None or high is None else (math.exp(low), math.exp(high))


def _median(values: pd.Series) -> float | None:
    median: Any = values.median()
    return None if pd.isna(median) else float(median)
