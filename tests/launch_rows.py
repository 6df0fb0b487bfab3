"""Rows of launches.jsonl with chosen times, for tests of what is computed from them."""

from typing import Any

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
