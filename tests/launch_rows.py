"""Rows of launches.jsonl with chosen times, for tests of what is computed from them."""

import math
from typing import Any

import numpy as np

GREEDY = "greedy"


def cell(ms: float, batch: int = 2, length: int = 128, requests: int = 20) -> dict[str, Any]:
    return {
        "batch_size": batch, "prompt_length": length, "output_tokens": 16, "sampling": GREEDY, "adapters_active": 0, "requests": requests,
        "seconds": 1.0, "ms_per_token": ms, "tokens_per_s": batch / ms * 1e3, "ttft_ms": [ms * 3, ms * 4, ms * 5], "tpot_ms": [ms, ms, ms],
        "latency_ms": [ms * 10, ms * 20, ms * 30], "note": "",
    }  # fmt: skip


def row(arm: str, launch: int, cells: list[dict[str, Any]], adapters: Any = (), ok: bool = True) -> dict[str, Any]:
    return {"arm": arm, "launch": launch, "ok": ok, "adapters": list(adapters), "cells": cells}


def session(times: dict[str, list[float]], **kwargs: Any) -> list[dict[str, Any]]:
    """{arm: [ms per launch]} -> rows."""
    return [row(arm, k, [cell(ms)], **kwargs) for arm, values in times.items() for k, ms in enumerate(values)]


def engines(overheads: dict[int, float], launches: int = 10, noise: float = 0.0, seed: int = 0, batch: int = 4) -> list[dict[str, Any]]:
    """Rows of merged at 2 ms a token and of adapters_N at 2 * (1 + overhead) ms."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(launches):
        for n, overhead in {0: 0.0, **overheads}.items():
            arm, names = (f"adapters_{n}", [f"a{i}" for i in range(n)]) if n else ("merged", [])
            ms = 2 * (1 + overhead) * math.exp(rng.normal(0, noise))
            rows.append(row(arm, k, [cell(ms, batch=batch)], adapters=names) | {"weight_bytes": 2**20, "lora_slot_bytes": n * 2**10})
    return rows
