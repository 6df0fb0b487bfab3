"""What a probe costs beside its own forward pass: the same batches without hooks, with pooling hooks, and with the drift table.

TinyLlama's shape with random weights and 750 prompts of MRPC-like lengths by default; `--shape tiny` for a CPU. Prints one JSON row per
measurement, then a markdown table. The forward pass is in fp32 without TF32, as every probe's is: its floor on an H100 is
2 FLOP x weights of the layers x tokens / 67 TFLOP/s (1.6 s). `--parity` also compares the GPU's table with numpy's on the same states.

    python benchmarks/bench_probe.py --device cuda
"""

import argparse
import json
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.drift import probe as probe_module
from tunescope.drift.hooks import exact_inference, head_of_last_token
from tunescope.drift.states import ProbeStates
from tunescope.drift.table import drift_table
from tunescope.study.schema import DriftSpec

SHAPES = {
    "tinyllama": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32},
    "tiny": {"vocab_size": 500, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4},
}
TARGET = 1.20
"""A probe may cost its forward pass plus a fifth."""


def build(shape: str, device: str) -> LlamaForCausalLM:
    """A randomly initialised model in fp32, made on its device."""
    sizes = SHAPES[shape]
    config = LlamaConfig(**sizes, num_key_value_heads=4, max_position_embeddings=2048, pad_token_id=0)
    torch.manual_seed(0)
    with torch.device(device):
        return LlamaForCausalLM(config).eval()


def build_probe(prompts: int, tokens: int, vocabulary: int, spec: DriftSpec, device: str) -> probe_module.Probe:
    """Prompts of random tokens; lengths log-normal about `tokens`, as sentence pairs have, ending in one shared token."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(tokens) - 0.06, 0.35, prompts), 8, 500).astype(int)
    ids = {f"test/{i}": [1, *rng.integers(3, vocabulary, n - 2).tolist(), 7] for i, n in enumerate(lengths)}
    examples = [SimpleNamespace(id=name, before="", passage="", after="", golds=()) for name in ids]
    probe_module.encode = lambda _t, example, *_a, **_k: SimpleNamespace(input_ids=ids[example.id], truncated=False)
    return probe_module.Probe("bench", examples, SimpleNamespace(pad_token_id=0), 512, spec, device)


def forward(model: LlamaForCausalLM, probe: probe_module.Probe, size: int, limit: int | None = None) -> None:
    """The same batches, precision and narrowed head as the probe's, and nothing kept."""
    current: list = []
    with exact_inference(model, probe.device), head_of_last_token(model, lambda: current[0]):
        for batch in probe.batches(size, "right", limit):
            current[:] = [batch]
            model(**batch.inputs(), use_cache=False)


def drain(device: str) -> None:
    """Wait until the device has done all it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


def timed(work: Callable[[], object], device: str) -> tuple[float, object]:
    """Wall seconds of one call, the device's queue drained before and after, and its result."""
    drain(device)
    start = time.perf_counter()
    result = work()
    drain(device)
    return time.perf_counter() - start, result


@contextmanager
def counted_waits(device: str) -> Iterator[list[str]]:
    """Collects every call that makes the host wait for the GPU."""
    waits: list[str] = []
    if device == "cpu":
        yield waits
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits += [f"{w.filename.rpartition('/')[2]}:{w.lineno}" for w in caught if "synchronizing" in str(w.message)]


def moved(model: LlamaForCausalLM) -> None:
    """Move every weight a little, so that the table measures something."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.empty_like(p).normal_(std=2e-3, generator=generator))


def parity(base: ProbeStates, tuned: ProbeStates, spec: DriftSpec, device: str) -> None:
    """Largest absolute difference of the device's drift table and numpy's, by measure."""
    keys = ["layer", "pooling", "measure", "block"]
    a, b = (drift_table(base, tuned, spec, False, where).set_index(keys)["value"] for where in (device, "cpu"))
    assert a.index.sort_values().equals(b.index.sort_values())
    gaps = (a - b).abs().groupby("measure").max()
    say(what="parity with numpy", largest_gap={name: float(gap) for name, gap in gaps.items()})


def say(**row: object) -> None:
    """One JSON row on stdout."""
    print(json.dumps(row), flush=True)


def measure(model: LlamaForCausalLM, probe: probe_module.Probe, base: ProbeStates, size: int, repeats: int) -> str:
    """One row of the table: a forward pass, the same with pooling hooks, and the drift table, medians of `repeats`."""
    device, spec = probe.device, probe.spec
    seconds: dict[str, list[float]] = {"forward": [], "states": [], "table": []}
    forward(model, probe, size, limit=2 * size)  # to warm up
    for _ in range(repeats):
        seconds["forward"].append(timed(lambda: forward(model, probe, size), device)[0])
        took, states = timed(lambda: probe.states(model, internals=False, batch_size=size, on_device=device != "cpu"), device)
        seconds["states"].append(took)
        seconds["table"].append(timed(lambda s=states: drift_table(base, s, spec, False, device), device)[0])
    alone, pooled, table = (float(np.median(found)) for found in seconds.values())
    tokens = sum(map(len, probe.tokens))
    weights = sum(p.numel() for p in model.model.layers.parameters())
    say(batch=size, tokens=tokens, tflops=round(2 * weights * tokens / alone / 1e12, 1), within_target=(pooled + table) / alone <= TARGET,
        seconds={k: [round(s, 4) for s in v] for k, v in seconds.items()})  # fmt: skip
    return f"| {size} | {alone:.3f} | {pooled:.3f} ({pooled / alone:.3f}) | {pooled + table:.3f} ({(pooled + table) / alone:.3f}) |"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="tinyllama", choices=SHAPES)
    parser.add_argument("--prompts", type=int, default=750)
    parser.add_argument("--tokens", type=int, default=75, help="mean prompt length (75 is MRPC-like, 190 SQuAD-like)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--parity", action="store_true")
    options = parser.parse_args()
    device = options.device
    name = torch.cuda.get_device_name() if device != "cpu" else "cpu"
    model = build(options.shape, device)
    spec = DriftSpec(batch_size=options.batch_sizes[0])
    probe = build_probe(options.prompts, options.tokens, SHAPES[options.shape]["vocab_size"], spec, device)
    base = probe.states(model, internals=False, name="base")
    with counted_waits(device) as waits:
        again = probe.states(model, internals=False, on_device=device != "cpu")
    start = drift_table(base, again, spec, False, device)
    assert (start.loc[start["measure"] == "cka_drift_debiased", "value"] == 0).all(), "step-0 drift is not exactly 0"
    say(device=name, torch=torch.__version__, batches=len(probe.batches(spec.batch_size, "right")), waits_of_a_probe=len(waits),
        where=dict(Counter(waits)))  # fmt: skip
    moved(model)
    rows = [measure(model, probe, base, size, options.repeats) for size in options.batch_sizes]
    if options.parity:
        parity(base, probe.states(model, internals=False), spec, device)
    peak = f", peak {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB allocated" if device != "cpu" else ""
    print(f"{name}, {options.shape}, {options.prompts} prompts of {options.tokens} tokens{peak}; seconds (over forward):\n")
    print("\n".join(["| batch | forward | with pooling hooks | with the table |", "|---|---|---|---|", *rows]))


if __name__ == "__main__":
    main()
