import math
from collections import OrderedDict

import numpy as np
import pytest

from tunescope.errors import StepError
from tunescope.serve import measure
from tunescope.serve.measure import Timing


class FakeEngine:
    """Counts time on its own clock: one millisecond of prefill a prompt token, then `step_ms` a token for the whole batch."""

    def __init__(self, step_ms=2.0, slots=8, cpu_slots=8, mixes_up=False, dead=()):
        self.now, self.step_ms = 0.0, step_ms
        self.seen, self.mixes_up, self.dead = [], mixes_up, dead
        self.slots, self.cpu = _Lru(slots), _Lru(cpu_slots)

    def generate(self, prompts, tokens, sampling, adapters):
        self.seen.append((len(prompts), sampling, tuple(adapters)))
        for name in adapters:
            self._bring(name)
        start = self.now
        first = start + sum(len(p) for p in prompts) / 1e3
        self.now = first + (tokens - 1) * self.step_ms / 1e3
        return [Timing(start, first, self.now, tokens) for _ in prompts]

    def _bring(self, name):
        if name is None:
            return
        if not self.cpu.touch(name):
            self.now += 0.100
        if not self.slots.touch(name):
            self.now += 0.010

    def log_probabilities(self, asks, adapters):
        last = [a for a in adapters if a is not None][-1:]
        rows = [last[0] if self.mixes_up and last and a is None else a for a in adapters]
        return [-float(len(p)) - (0.0 if a in (None, *self.dead) else sum(map(ord, a)) % 7 + 1) for p, a in zip(asks, rows, strict=True)]

    def load(self, adapter):
        self._bring(adapter)

    def unload(self, adapter):
        self.cpu.held.pop(adapter, None)
        self.slots.held.pop(adapter, None)


class _Lru:
    def __init__(self, size):
        self.size, self.held = size, OrderedDict()

    def touch(self, name):
        had = name in self.held
        self.held[name] = True
        self.held.move_to_end(name)
        if len(self.held) > self.size:
            self.held.popitem(last=False)
        return had


@pytest.fixture
def engine(monkeypatch):
    fake = FakeEngine()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: fake.now)
    return fake


CELL = {"batch_size": 4, "prompt_length": 10, "output_tokens": 5, "sampling": "greedy", "adapters_active": 2, "note": ""}
POOL = [[1] * 10, [2] * 10, [3] * 10]


def test_time_per_token_is_batch_time_over_output_tokens(engine):
    row = measure.time_cell(engine, CELL, POOL, 12, ["a", "b"])
    batch_s = 0.040 + 4 * 0.002
    engine_loads = 2 * 0.110
    assert row["requests"] == 12
    assert row["seconds"] == pytest.approx(3 * batch_s + engine_loads)
    assert row["ms_per_token"] == pytest.approx(row["seconds"] / 3 / 5 * 1e3)
    assert row["tokens_per_s"] == pytest.approx(4 / row["ms_per_token"] * 1e3)
    assert row["ttft_ms"] == pytest.approx([40.0] * 3) and row["tpot_ms"] == pytest.approx([2.0] * 3)
    assert row["latency_ms"] == pytest.approx([48.0] * 3)


def test_the_last_batch_is_full_so_that_every_batch_has_the_same_size(engine):
    row = measure.time_cell(engine, CELL, POOL, 10, [])
    assert row["requests"] == 12 and {size for size, _, _ in engine.seen} == {4}


def test_requests_take_adapters_in_turn_across_batches():
    turn = [measure.adapters_of(n, 2, ["a", "b", "c"]) for n in range(3)]
    assert turn == [["a", "b"], ["c", "a"], ["b", "c"]]
    assert measure.adapters_of(5, 3, []) == [None] * 3


def test_warm_up_touches_every_adapter_even_at_batch_one_and_no_calls(engine):
    measure.warm(engine, CELL | {"batch_size": 1}, POOL, 0, ["a", "b", "c"])
    assert {a for _, _, adapters in engine.seen for a in adapters} == {"a", "b", "c"}


def test_warm_up_makes_the_calls_asked_for(engine):
    measure.warm(engine, CELL, POOL, 10, [])
    assert sum(size for size, _, _ in engine.seen) == 12


def test_a_short_answer_is_refused(engine):
    engine.generate = lambda prompts, tokens, sampling, adapters: [Timing(0, 1, 2, tokens - 1)] * len(prompts)
    with pytest.raises(StepError, match="4 tokens instead of 5"):
        measure.time_cell(engine, CELL, POOL, 4, [])


def test_timing_formulas():
    timing = Timing(queued=10.0, first=10.5, last=12.5, tokens=5)
    assert (timing.ttft_ms, timing.latency_ms, timing.tpot_ms) == (500.0, 2500.0, 500.0)
    assert math.isfinite(Timing(0.0, 1.0, 1.0, 1).tpot_ms)


def test_percentiles_are_linear():
    assert measure.percentiles(list(range(101))) == [50.0, 95.0, 99.0]
    values = np.random.default_rng(0).exponential(size=57)
    assert measure.percentiles(values) == pytest.approx([np.quantile(values, q) for q in (0.5, 0.95, 0.99)])


ASKS = [[1] * n for n in range(2, 14)]


def test_the_check_records_base_and_every_adapter():
    check = measure.check_adapters(FakeEngine(), ASKS, ["sst2", "rte"], 1e-4, mixed=True)
    assert check["model"] == [-float(len(a)) for a in ASKS]
    assert set(check["adapters"]) == {"sst2", "rte"} and check["adapters"]["sst2"] != check["adapters"]["rte"]


def test_an_adapter_that_does_nothing_is_named():
    with pytest.raises(StepError, match="'rte' gives the base model's output"):
        measure.check_adapters(FakeEngine(dead=("rte",)), ASKS, ["sst2", "rte"], 1e-4, mixed=True)


def test_base_rows_that_get_an_adapter_in_a_mixed_batch_are_found():
    with pytest.raises(StepError, match="a row of the base model gets another output"):
        measure.check_adapters(FakeEngine(mixes_up=True), ASKS, ["sst2", "rte"], 1e-4, mixed=True)


def test_a_check_without_adapters_is_the_model_alone():
    assert measure.check_adapters(FakeEngine(), ASKS, [], 1e-4, mixed=True)["adapters"] == {}


def test_switching_reaches_each_tier_at_every_switch_and_only_there(monkeypatch):
    fake = FakeEngine(slots=2, cpu_slots=3)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: fake.now)
    rows = measure.time_switching(fake, ["a", "b", "c", "d"], 2, 3, POOL, 24, 8, {"cpu cache": 10_000_000, "disk": 20_000_000})
    added = {(r["tier"], r["switch_every"]): r["added_ms"] for r in rows}
    assert added[("one adapter", 1)] == 0.0 and added[("resident", 1)] == pytest.approx(0.0)
    for every in (1, 4):
        assert added[("cpu cache", every)] == pytest.approx(10.0)
        assert added[("disk", every)] == pytest.approx(110.0)
    by_tier = {r["tier"]: r for r in rows if r["switch_every"] == 4}
    assert by_tier["disk"]["ms_per_request"] - rows[0]["ms_per_request"] == pytest.approx(110.0 / 4)
    assert by_tier["cpu cache"]["gb_per_s"] == pytest.approx(1.0)
    assert by_tier["disk"]["gb_per_s"] == pytest.approx(20 / 110)
    assert rows[1]["bytes_moved"] == 0 and rows[1]["gb_per_s"] is None


def test_loading_is_timed(engine):
    assert measure.time_loading(engine, ["a", "b"]) == pytest.approx([0.110, 0.110])
    assert measure.time_unloading(engine, ["a"]) == [0.0] and not engine.slots.touch("a")


@pytest.mark.parametrize(
    ("line", "compiles"),
    [
        ("WARNING jit_monitor.py Triton kernel JIT compilation during inference: _lora_shrink", True),
        ("INFO backends.py Compiling a graph for compile range (1, 8192) takes 3 s", True),
        ("Triton autotuning for function x finished after 2 s", True),
        ("INFO llm_engine.py Avg generation throughput: 3 tokens/s", False),
    ],
)
def test_compilation_is_found_in_the_log(line, compiles):
    assert (measure.compilation(f"first line\n{line}\nlast line") == line) is compiles
