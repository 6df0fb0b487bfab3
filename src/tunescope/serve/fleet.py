"""K merged engines at once on one device, the alternative to K adapters side by side: each a launch of its own, all in step."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PATIENCE_S = 1800.0
"""How long an engine waits for its siblings before it gives up; the session's time limit is usually shorter."""
CONTEXT_SHARE = 0.015
"""Of the device's memory: what every engine's process holds beside the share it is given (CUDA context, kernels; 0.5 to 1 GiB)."""


def run_fleet(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Start the engines one after another (each measures free memory at its start), let them work in step, and put their rows together.

    Raises:
        RuntimeError: an engine failed; the message is its own.
    """
    folder, count = Path(spec["result"]).parent / "fleet", spec["engines"]
    shutil.rmtree(folder, ignore_errors=True)  # of the launch before
    folder.mkdir()
    told: list[dict[str, Any]] = []
    children: list[subprocess.Popen[bytes]] = []
    for rank in range(count):
        file = folder / f"spec-{rank}.json"
        told.append(member(spec, rank, folder))
        file.write_text(json.dumps(told[rank]))
        children.append(subprocess.Popen([sys.executable, "-m", "tunescope.serve.launch", str(file)], stdin=subprocess.PIPE))
        _wait(lambda rank=rank: (folder / f"engine-{rank}").exists() or children[rank].poll() is not None or _failed(children))
        if _failed(children):
            break  # the others would only wait for it, after starts of their own
    _wait(lambda: all(c.poll() is not None for c in children) or _failed(children))
    rows = [json.loads(p.read_text()) for rank in range(count) if (p := folder / f"row-{rank}.json").is_file()]
    failed = next((r["error"] for r in rows if not r["ok"]), None if len(rows) == count else "an engine left no result")
    if failed is not None:
        raise RuntimeError(f"one of {count} engines: {failed}")
    # Engines start one after another, so the last one's first answer ends the cold start of all.
    answered = max(each["started"] + row["cold_start_s"] for each, row in zip(told, rows, strict=True))
    return together(rows, spec["cells"]) | {"cold_start_s": answered - spec["started"]}


def _failed(children: Sequence[subprocess.Popen[bytes]]) -> bool:
    return any(child.poll() not in (None, 0) for child in children)


def member(spec: Mapping[str, Any], rank: int, folder: Path) -> dict[str, Any]:
    """What one engine is told: its share of memory, of the rows of each batch, and of the requests."""
    count = spec["engines"]
    return {
        **spec,
        "engines": 1,
        "gpu_memory_utilization": memory_share(spec["gpu_memory_utilization"], count),
        "cells": [{**c, "batch_size": c["batch_size"] // count} for c in spec["cells"]],
        "requests_per_cell": math.ceil(spec["requests_per_cell"] / count),
        "barrier": {"folder": str(folder), "rank": rank, "parties": count},
        "result": str(folder / f"row-{rank}.json"),
        "started": time.monotonic(),
        "watch_stdin": True,
    }


def memory_share(utilization: float, engines: int) -> float:
    """`gpu_memory_utilization` of one engine of a fleet, so that all together hold what one engine on its own does.

    vLLM counts against it only what an engine takes once its CUDA context is there, and refuses to start where less than the share is free.
    Room for one context is left beside `utilization`; the contexts of the further engines come out of the fleet's part.
    """
    return (utilization - CONTEXT_SHARE * (engines - 1)) / engines


def meet(barrier: Mapping[str, Any] | None, name: str) -> None:
    """Wait until every engine of the fleet is at this point; nothing for an engine on its own.

    Raises:
        TimeoutError: a sibling never came.
    """
    if barrier is None:
        return
    folder = Path(barrier["folder"])
    (folder / f"{name}-{barrier['rank']}").touch()
    _wait(lambda: all((folder / f"{name}-{rank}").exists() for rank in range(barrier["parties"])))


def _wait(condition: Any) -> None:
    limit = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > limit:
            raise TimeoutError("an engine of the fleet waits for a sibling that never came")
        time.sleep(0.001)


def together(rows: Sequence[Mapping[str, Any]], cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of a fleet: sums of tokens, memory and blocks; times of the slowest engine, since a round is over when all have answered."""
    merged = []
    for number, cell in enumerate(cells):
        parts = [r["cells"][number] for r in rows]
        seconds = max(p["seconds"] for p in parts)
        merged.append(
            {
                **cell,
                "requests": sum(p["requests"] for p in parts),
                "seconds": seconds,
                "ms_per_token": max(p["ms_per_token"] for p in parts),
                "tokens_per_s": sum(p["requests"] for p in parts) * cell["output_tokens"] / seconds,
            }
            | {key: [max(values) for values in zip(*(p[key] for p in parts), strict=True)] for key in ("ttft_ms", "tpot_ms", "latency_ms")}
        )
    total = {key: _sum(r.get(key) for r in rows) for key in ("kv_blocks", "weight_bytes", "lora_slot_bytes")}
    first = rows[0]
    kept = {
        k: first[k] for k in ("kv_block_tokens", "weight_bytes_source", "versions", "check", "import_s", "engine_start_s") if k in first
    }
    compiled = any(r["compiled_during_inference"] for r in rows)
    return {**kept, **total, "compiled_during_inference": compiled, "cells": merged, "switching": [], "load_s": [], "unload_s": []}


def _sum(values: Any) -> int | None:
    found = list(values)
    return None if any(v is None for v in found) else sum(found)
