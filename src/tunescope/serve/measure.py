"""What one launch does with a running engine: checks first, then warm-up, then timed cells. Knows nothing of vLLM."""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tunescope.errors import StepError

Prompt = Sequence[int]
PERCENTILES = (50, 95, 99)
COMPILING = re.compile(r"during inference|Compiling a graph|Triton autotuning|Autotuning kernel", re.IGNORECASE)
"""Log lines of compilation. vLLM's JIT monitor writes `… during inference: …` after its own warm-up."""
SWITCH_EVERY = (1, 4, 16)
"""Requests between two adapter switches."""


@dataclass(frozen=True)
class Timing:
    """One request's times in seconds on one monotonic clock, that of the engine core."""

    queued: float
    first: float
    last: float
    tokens: int

    @property
    def ttft_ms(self) -> float:
        """Time to first token: first token - queued."""
        return (self.first - self.queued) * 1e3

    @property
    def latency_ms(self) -> float:
        """End to end: last token - queued."""
        return (self.last - self.queued) * 1e3

    @property
    def tpot_ms(self) -> float:
        """Time per output token after the first: (end to end - TTFT) / (tokens - 1)."""
        return (self.last - self.first) * 1e3 / max(self.tokens - 1, 1)


class Engine(Protocol):
    """What a launch asks of an engine. An adapter of None is the base model."""

    def generate(self, prompts: Sequence[Prompt], tokens: int, sampling: str, adapters: Sequence[str | None]) -> list[Timing]: ...

    def log_probabilities(self, asks: Sequence[Prompt], adapters: Sequence[str | None]) -> list[float]:
        """Log-probability (nats) of the last token of each ask after the tokens before it."""
        ...

    def load(self, adapter: str) -> None: ...

    def unload(self, adapter: str) -> None: ...


def percentiles(values: Sequence[float]) -> list[float]:
    """The 50th, 95th and 99th percentile, linearly interpolated. A p99 needs 299 values before any upper bound on it exists."""
    return [float(v) for v in np.percentile(np.asarray(values, float), PERCENTILES)]


def adapters_of(batch: int, batch_size: int, names: Sequence[str]) -> list[str | None]:
    """The adapter of each row of the batch-th batch: requests take the adapters in turn."""
    if not names:
        return [None] * batch_size
    return [names[(batch * batch_size + row) % len(names)] for row in range(batch_size)]


def _batch(engine: Engine, cell: Mapping[str, Any], pool: Sequence[Prompt], number: int, names: Sequence[str]) -> list[Timing]:
    size = cell["batch_size"]
    prompts = [pool[(number * size + row) % len(pool)] for row in range(size)]
    timings = engine.generate(prompts, cell["output_tokens"], cell["sampling"], adapters_of(number, size, names))
    short = [t.tokens for t in timings if t.tokens != cell["output_tokens"]]
    if short:
        raise StepError(f"batch {size}: an answer has {short[0]} tokens instead of {cell['output_tokens']}, so its times do not compare")
    return timings


def warm(engine: Engine, cell: Mapping[str, Any], pool: Sequence[Prompt], calls: int, names: Sequence[str]) -> None:
    """Warm one cell with at least `calls` requests, and enough batches that every adapter is used."""
    for number in range(max(math.ceil(max(calls, len(names)) / cell["batch_size"]), 1)):
        _batch(engine, cell, pool, number, names)


def time_cell(engine: Engine, cell: Mapping[str, Any], pool: Sequence[Prompt], requests: int, names: Sequence[str]) -> dict[str, Any]:
    """Run closed-loop batches until `requests` are done (the last batch is full, so a few more may be) and summarise them.

    `ms_per_token` = mean batch time / output tokens per request, prefill included: the time of one token of every row of the batch, and
    the one definition that overheads use. `tokens_per_s` = all output tokens / time.
    """
    timings: list[Timing] = []
    batches = math.ceil(requests / cell["batch_size"])
    start = time.perf_counter()
    for number in range(batches):
        timings += _batch(engine, cell, pool, number, names)
    seconds = time.perf_counter() - start
    return {
        **cell,
        "requests": len(timings),
        "seconds": seconds,
        "ms_per_token": seconds / batches / cell["output_tokens"] * 1e3,
        "tokens_per_s": len(timings) * cell["output_tokens"] / seconds,
        "ttft_ms": percentiles([t.ttft_ms for t in timings]),
        "tpot_ms": percentiles([t.tpot_ms for t in timings]),
        "latency_ms": percentiles([t.latency_ms for t in timings]),
    }


def check_adapters(engine: Engine, asks: Sequence[Prompt], names: Sequence[str], minimum: float, mixed: bool) -> dict[str, Any]:
    """Log-probabilities without and with each adapter, after making sure that every adapter does something and rows do not mix.

    Args:
        minimum: smallest largest difference from the base, in nats, that counts as different.
        mixed: also send base and all adapters in one batch and compare each row with the same row alone.

    Raises:
        StepError: an adapter gives the base model's output, or a row of a mixed batch gets another row's adapter.
    """
    sources: list[str | None] = [None, *names]
    alone = {name: engine.log_probabilities(asks, [name] * len(asks)) for name in sources}
    effects = {name: _largest_difference(alone[name], alone[None]) for name in names}
    for name, effect in effects.items():
        if not effect > minimum:
            raise StepError(f"adapter '{name}' gives the base model's output (within {effect:.2g} nats): not applied, or all zero")
    if mixed and names:
        rows = [sources[i % len(sources)] for i in range(len(asks))]
        got = engine.log_probabilities(asks, rows)
        allowed = max(minimum, 0.1 * min(effects.values()))
        for i, source in enumerate(rows):
            if abs(got[i] - alone[source][i]) > allowed:
                raise StepError(
                    f"in a mixed batch a row of {source or 'the base model'} gets another output than alone: adapters get mixed up"
                )
    return {"model": alone[None], "adapters": {str(n): alone[n] for n in names}}


def _largest_difference(a: Sequence[float], b: Sequence[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def time_loading(engine: Engine, names: Sequence[str]) -> list[float]:
    """Seconds to load each adapter from disk into a slot."""
    return [_timed(engine.load, name) for name in names]


def time_unloading(engine: Engine, names: Sequence[str]) -> list[float]:
    """Seconds to take each adapter out again."""
    return [_timed(engine.unload, name) for name in names]


def _timed(action: Any, name: str) -> float:
    start = time.perf_counter()
    action(name)
    return time.perf_counter() - start


def time_switching(
    engine: Engine,
    names: Sequence[str],
    slots: int,
    cpu_slots: int,
    pool: Sequence[Prompt],
    requests: int,
    tokens: int,
    moved: Mapping[str, int],
) -> list[dict[str, Any]]:
    """Alternate adapters request by request (batch 1) and compare with staying on one.

    With requests taking n adapters in a cycle under least-recently-used eviction, n <= slots never moves anything (`resident`), slots < n
    <= cpu_slots copies from CPU memory at every switch (`cpu cache`), and more reads the disk at every switch (`disk`).

    Args:
        moved: tier -> bytes of one adapter as that tier moves them; a tier that is not named moves nothing.
    """
    plans = [("one adapter", 1, 1), ("resident", slots, 1)]
    plans += [("cpu cache", cpu_slots, every) for every in SWITCH_EVERY]
    plans += [("disk", len(names), every) for every in SWITCH_EVERY]
    rows: list[dict[str, Any]] = []
    for tier, n, every in plans:
        row = _switch_tier(engine, names[:n], every, pool, requests, tokens)
        stay = rows[0]["ms_per_switched_request"] if rows else row["ms_per_switched_request"]
        added = row["ms_per_switched_request"] - stay
        size = moved.get(tier, 0)
        rows.append(
            {"tier": tier, "adapters": n, "switch_every": every, "output_tokens": tokens, **row, "added_ms": added}
            | {"bytes_moved": size, "gb_per_s": size / added / 1e6 if size and added > 0 else None}
        )
    return rows


def _switch_tier(engine: Engine, names: Sequence[str], every: int, pool: Sequence[Prompt], requests: int, tokens: int) -> dict[str, Any]:
    for name in names:
        engine.generate([pool[0]], tokens, "greedy", [name])
    latencies, switched = [], []
    for i in range(max(requests, every * len(names))):
        start = time.perf_counter()
        engine.generate([pool[i % len(pool)]], tokens, "greedy", [names[i // every % len(names)]])
        latencies.append((time.perf_counter() - start) * 1e3)
        if i % every == 0:
            switched.append(latencies[-1])
    return {
        "requests": len(latencies),
        "ms_per_request": float(np.mean(latencies)),
        "ms_per_switched_request": float(np.median(switched)),
        "latency_ms": percentiles(latencies),
    }


def read_log(path: str | None, start: int = 0) -> str:
    """What the launch and its engine have written to the log since byte `start`."""
    if path is None or not Path(path).is_file():
        return ""
    with open(path, "rb") as log:
        log.seek(start)
        return log.read().decode(errors="replace")


def compilation(log: str) -> str | None:
    """The first log line that reports compilation, None when there is none."""
    return next((line.strip() for line in log.splitlines() if COMPILING.search(line)), None)
