"""What a probe costs beside its own forward pass: the same batches without hooks, with pooling hooks, and with the drift table.

TinyLlama's shape with random weights and 750 prompts of MRPC-like lengths by default; `--shape tiny` for a CPU. Prints one JSON row per
measurement, then a markdown table. Also compares the GPU's table with numpy's on the same states.

    python benchmarks/bench_probe.py --device cuda
"""

import argparse
import json
import time
from types import SimpleNamespace

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.drift import probe as probe_module
from tunescope.drift.hooks import exact_inference, head_of_last_token
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


def forward(model: LlamaForCausalLM, probe: probe_module.Probe) -> None:
    """The same batches, precision and narrowed head as the probe's, and nothing kept."""
    current: list = []
    with exact_inference(model, probe.device), head_of_last_token(model, lambda: current[0]):
        for batch in probe.batches(probe.spec.batch_size, "right"):
            current[:] = [batch]
            model(**batch.inputs(), use_cache=False)


def seconds(work, device: str, repeats: int) -> list[float]:
    """Wall seconds of each repeat after one to warm up, the device's queue drained."""
    found = []
    for _ in range(repeats + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found[1:]


def moved(model: LlamaForCausalLM) -> None:
    """Move every weight a little, so that the table measures something."""
    generator = torch.Generator(next(model.parameters()).device).manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.empty_like(p).normal_(std=2e-3, generator=generator))


def largest_gap(a, b) -> dict[str, float]:
    """Largest absolute difference of two drift tables by measure."""
    gap = (a["value"] - b["value"]).abs()
    keys = ["layer", "pooling", "measure", "block"]
    assert (a[keys].to_numpy() == b[keys].to_numpy()).all()
    return {name: float(value) for name, value in gap.groupby(a["measure"]).max().items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shape", default="tinyllama", choices=SHAPES)
    parser.add_argument("--prompts", type=int, default=750)
    parser.add_argument("--tokens", type=int, nargs="+", default=[75, 190], help="mean prompt lengths (MRPC-like, SQuAD-like)")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if options.device != "cpu" else "cpu"
    model = build(options.shape, options.device)
    spec = DriftSpec(batch_size=options.batch_size)
    lines = ["| prompts of | forward s | states / forward | probe (states and table) / forward | table s | numpy table s |"]
    lines.append("|---|---|---|---|---|---|")
    for tokens in options.tokens:
        probe = build_probe(options.prompts, tokens, SHAPES[options.shape]["vocab_size"], spec, options.device)
        base = probe.states(model, internals=False, name="base")
        start = drift_table(base, probe.states(model, internals=False), spec, False, options.device)
        assert (start.loc[start["measure"] == "cka_drift_debiased", "value"] == 0).all(), "step-0 drift is not exactly 0"
        moved(model)
        tuned = probe.states(model, internals=False)
        works = {
            "forward": lambda p=probe: forward(model, p),
            "states": lambda p=probe: p.states(model, internals=False),
            "probe": lambda p=probe, b=base: drift_table(b, p.states(model, internals=False), spec, False, options.device),
            "table": lambda b=base, t=tuned: drift_table(b, t, spec, False, options.device),
            "numpy table": lambda b=base, t=tuned: drift_table(b, t, spec, False, "cpu"),
        }
        medians = {}
        for what, work in works.items():
            found = seconds(work, options.device, options.repeats if what != "numpy table" else 1)
            medians[what] = float(np.median(found))
            row = {"what": what, "device": name, "prompts": options.prompts, "mean_tokens": tokens, "seconds": [round(s, 4) for s in found]}
            print(json.dumps(row), flush=True)
        gaps = largest_gap(drift_table(base, tuned, spec, False, options.device), drift_table(base, tuned, spec, False, "cpu"))
        memory = torch.cuda.max_memory_reserved() / 2**30 if options.device != "cpu" else None
        ratio = medians["probe"] / medians["forward"]
        print(json.dumps({"what": "summary", "mean_tokens": tokens, "probe_over_forward": ratio, "within_target": ratio <= TARGET,
                          "gap_to_numpy": gaps, "peak_reserved_gib": memory, "torch": torch.__version__}), flush=True)  # fmt: skip
        shares = [f"{medians[w] / medians['forward']:.3f}" for w in ("states", "probe")]
        cells = [f"{tokens} tokens", f"{medians['forward']:.3f}", *shares, f"{medians['table']:.3f}", f"{medians['numpy table']:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    print("\n".join([f"{name}, {options.shape}, {options.prompts} prompts, batch {options.batch_size}:", "", *lines]))


if __name__ == "__main__":
    main()
