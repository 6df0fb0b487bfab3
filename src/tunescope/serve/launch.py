"""One launch as a process: `python -m tunescope.serve.launch SPEC.json`, or a fork that has vLLM. One engine, one row, then gone."""

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .fleet import meet, run_fleet
from .session import root_cause

SWITCH_TOKENS = 8
"""Output tokens of a switching request: few, so that the stall is a visible part of it."""


_kept: list[Any] = []
"""Engines on a CPU, which are this process: what they would tidy up, for 1 to 3 s, goes with it."""


def environment(device: str, eager: bool) -> dict[str, str]:
    """Variables that vLLM and its libraries read while they are imported."""
    common = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if device != "cpu":
        return common
    # One process and one thread keep a launch short on few cores and its times steady.
    common |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1"}
    common |= {"JE_ARROW_MALLOC_CONF": "background_thread:false"}  # pyarrow would start a thread on import, before the fork
    # An eager engine still compiles the ranking of log-probabilities, which only the checks ask for: 2 to 4 s a launch.
    return common | {"TORCH_COMPILE_DISABLE": "1"} if eager else common


def prepare_environment(device: str, eager: bool) -> None:
    """Set the environment; must run before vLLM or torch is imported."""
    os.environ.update(environment(device, eager))
    drop_variables()


def drop_variables() -> None:
    """Forget variables of this process that would change what is timed."""
    os.environ.pop("VLLM_CPU_KVCACHE_SPACE", None)  # it would override the size asked for (whole GiB, seconds of page faults)
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)  # deterministic mode, which the worker sets for training; never while timing


def die_with_parent() -> None:
    """Kill this process group when the parent's end of standard input closes, so that a killed session leaves no engine behind."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def run(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Start the engine of a launch, check it, warm it, time it; returns the launch's row."""
    from . import imports
    from .measure import check_adapters, compilation, read_log, time_loading, time_unloading, warm

    ready = time.monotonic()
    engine, barrier = imports.VllmEngine(spec), spec.get("barrier")
    meet(barrier, "engine")
    prompts = json.loads(Path(spec["prompts"]).read_text())
    pools, names = prompts["pools"], [a["name"] for a in spec["adapters"]]
    engine_start = time.monotonic() - ready
    engine.generate([next(iter(pools.values()))[0]], 1, "greedy", [None])
    answered = time.monotonic()
    cold_start = answered - spec["started"] + imports.before_fork()
    load_s = time_loading(engine, names)
    check = check_adapters(engine, prompts["asks"], names, spec["minimum_difference"], mixed=spec["switching"] is None)
    for cell in [switching_cell(spec["switching"])] if spec["switching"] else spec["cells"]:
        warm(engine, cell, pools[str(cell["prompt_length"])], spec["warmup_calls"], names)
    meet(barrier, "warm")  # engines of a fleet share one log: none may watch it for compilation while another warms up
    sys.stdout.flush()
    sys.stderr.flush()
    position = os.path.getsize(spec["log"]) if spec["log"] else 0
    timed = _timed(engine, spec, pools, names)
    meet(barrier, "timed")  # an engine that ends gives its memory back, on the device where another is still timed
    unload_s = time_unloading(engine, names)
    compiled = compilation(read_log(spec["log"], position))
    row = {"cold_start_s": cold_start, "import_s": imports.SECONDS, "engine_start_s": engine_start, "load_s": load_s, "unload_s": unload_s}
    row |= {"worked_s": time.monotonic() - answered}
    row |= engine.facts() | {"compiled_during_inference": compiled is not None, "check": check, **timed}
    if spec["device"] == "cpu":
        _kept.append(engine)
    else:
        engine.close()
    if compiled is not None:
        return row | {"ok": False, "error": f"rejected: the engine compiled during inference ({compiled[:200]})"}
    return row | {"ok": True, "error": None}


def switching_cell(plan: Mapping[str, Any]) -> dict[str, Any]:
    """What the switching arm sends, one row at a time, as a cell to warm."""
    return {"batch_size": 1, "prompt_length": plan["prompt_length"], "output_tokens": SWITCH_TOKENS, "sampling": "greedy"}


def _timed(engine: Any, spec: Mapping[str, Any], pools: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The timed part: cells, or the switching arm's rows."""
    from .measure import time_cell, time_switching

    cells = []
    for number, c in enumerate(spec["cells"]):
        meet(spec.get("barrier"), f"cell-{number}")
        cells.append(time_cell(engine, c, pools[str(c["prompt_length"])], spec["requests_per_cell"], names))
    plan = spec["switching"]
    if plan is None:
        return {"cells": cells, "switching": []}
    pool, slots, cpu_slots = pools[str(plan["prompt_length"])], spec["lora"]["max_loras"], spec["lora"]["max_cpu_loras"]
    rows = time_switching(engine, names, slots, cpu_slots, pool, spec["requests_per_cell"], SWITCH_TOKENS, plan["bytes_moved"])
    return {"cells": cells, "switching": rows}


def failed_row(error: BaseException, log: str | None) -> dict[str, Any]:
    """The row of a launch that failed, and its traceback in the log.

    Where the engine core runs in a process of its own, the exception here says no more than "see root cause above": the log has it.
    """
    said = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    cause = root_cause(Path(log)) if log and "root cause" in said else None
    traceback.print_exception(error)
    return {"ok": False, "error": said if cause is None else f"{cause}; {said}"}


def write_row(path: str, row: Mapping[str, Any]) -> None:
    """Write the result file in one piece."""
    partial = f"{path}.partial"
    with open(partial, "w") as out:
        out.write(json.dumps(row))
        out.flush()
        os.fsync(out.fileno())
    os.replace(partial, path)


def forked(spec_path: str, log: str, alive: Connection) -> None:
    """Entry point of a launch that is forked from a server which has imported vLLM; the rest is as if it were started plainly."""
    lead(log, alive)
    gc.freeze()  # what was imported stays, so that no collection goes through it again
    main(spec_path, {"started": time.monotonic()})


def lead(log: str, alive: Connection) -> None:
    """Make this process the leader of a group of its own that prints to the log.

    Args:
        alive: becomes standard input; its other end closes with the process that waits for this launch.
    """
    os.setsid()
    with open(log, "wb") as out:
        for source, target in ((alive.fileno(), 0), (out.fileno(), 1), (out.fileno(), 2)):
            os.dup2(source, target)


def main(spec_path: str, also: Mapping[str, Any] | None = None) -> None:
    """Run one launch and leave without the interpreter's clean-up."""
    spec = {**json.loads(Path(spec_path).read_text()), **(also or {})}
    prepare_environment(spec["device"], spec["enforce_eager"])
    if spec["watch_stdin"]:
        die_with_parent()
    try:
        row = run(spec) if spec["engines"] == 1 else {**run_fleet(spec), "ok": True, "error": None}
    except BaseException as error:
        row = failed_row(error, spec["log"])
    write_row(spec["result"], row)
    sys.stdout.flush()
    sys.stderr.flush()
    # The row is safely on disk. Tearing down torch, gloo and the engine costs about 3 s a launch and can hang; the parent ends the rest.
    os._exit(0 if row["ok"] else 1)


if __name__ == "__main__":
    main(sys.argv[1])
