"""Real tokens a second, memory and loss of our training steps beside the stock Trainer's, alone and several runs on one GPU.

    python benchmarks/bench_training.py --device cuda --out rows.jsonl                 # the whole table, best-valued cells first
    python benchmarks/bench_training.py --device cpu --shape tiny --seconds 2          # does it run?
    python benchmarks/bench_training.py --device cuda --only 'ours/lora/*' parity/*    # cells by name
    python benchmarks/bench_training.py --device cuda --profile-small                  # memory of whole training steps, profile `small`

A cell is system/method/precision/lengths/setting, measured with 1 to 8 runs at once. Every run is a process of its own; the runs of a cell
warm up, wait for each other and are timed over the same window: their sum is real (non-padding) tokens a second of the GPU. Weights are
random in the shape of TinyLlama-1.1B, made on the GPU; lengths are drawn once from distributions with the mean and spread of MRPC and
SQuAD v2 prompts.
"""

import argparse
import dataclasses
import fnmatch
import json
import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from stock import stock_trainer
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

from tunescope.drift.hooks import decoder_layers
from tunescope.models.loading import fuse_kernels
from tunescope.models.lora_utils import apply_adapter
from tunescope.study.schema import AdapterSpec, TrainingSpec
from tunescope.train.batching import Batching, Row, RunDataset, longest_first
from tunescope.train.callbacks import LayerWatch
from tunescope.train.precision import Precision, captures, packs, set_storage
from tunescope.train.trainer import build_trainer, training_arguments

SHAPES = {
    "tinyllama": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "vocab_size": 32000, "max_position_embeddings": 2048,
    },
    "tiny": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 512, "max_position_embeddings": 2048,
    },
}  # fmt: skip
STEP_TOKENS = 16_384
MICRO_TOKENS = 8_192
RATE = 1e-5
CELLS: dict[str, tuple[int, ...]] = {
    "parity/lora/mixed/b8": (1,),
    "parity/lora/mixed/b8-fused": (1,),
    "parity/full/mixed/b8": (1,),
    "parity/full/mixed/b8-fused": (1,),
    "parity/full/bf16/b8-fused": (1,),
    "ours/lora/mixed/mrpc/b8-fused": (1, 4, 8),
    "ours/full/mixed/mrpc/b8-fused": (1, 3),
    "ours/full/bf16/mrpc/b8-fused": (1, 4),
    "ours/lora/mixed/squad/16k-fused": (1,),
    "ours/full/mixed/squad/16k-fused": (1,),
    "ours/full/bf16/squad/16k-fused": (1,),
    "ours/lora/mixed/mrpc/b8": (1, 8),
    "ours/full/mixed/mrpc/b8": (1, 3),
    "ours/full/bf16/mrpc/b8": (1, 4),
    "stock/lora/mixed/mrpc/b8-max": (1, 4),
    "stock/full/mixed/mrpc/b8-max": (1,),
    "stock/full/bf16/mrpc/b8-max": (1,),
    "ours/lora/mixed/squad/16k": (1,),
    "ours/full/mixed/squad/16k": (1,),
    "ours/full/bf16/squad/16k": (1,),
    "stock/lora/mixed/mrpc/b1x8-max": (1,),
    "stock/full/mixed/mrpc/b1x8-max": (1,),
    "stock/lora/mixed/mrpc/b8-flat": (1, 8),
    "stock/full/mixed/mrpc/b8-flat": (1,),
    "ours/lora/mixed/mrpc/b8-plain": (1, 8),
    "ours/full/mixed/mrpc/b8-plain": (1,),
    "ours/lora/mixed/squad/b8-fused": (1, 4),
    "ours/full/mixed/squad/b8-fused": (1,),
    "stock/lora/mixed/squad/b8-max": (1,),
    "stock/full/mixed/squad/b8-max": (1,),
    "ours/lora/mixed/mrpc/b8-padded": (1,),
    "ours/lora/mixed/mrpc/16k-fused": (1,),
    "ours/full/mixed/mrpc/16k-fused": (1,),
}
"""Name and numbers of runs at once, in the order in which they are measured."""


@dataclass(frozen=True)
class Setup:
    """What all cells share."""

    device: str
    shape: str
    warmup: int
    seconds: float


@dataclass(frozen=True)
class Cell:
    """A name in parts. Ours: b8, 16k (packed, captured), …-fused (Liger), b8-plain, b8-padded; stock: b8-max, b8-flat, b1x8-max."""

    system: str
    method: str
    precision: str
    lengths: str
    setting: str

    def batch(self, rows: list[Row]) -> int:
        """Rows of an effective batch."""
        if not self.setting.startswith("16k"):
            return 8
        return max(1, round(STEP_TOKENS / np.mean([len(r.input_ids) for r in rows])))


def draw_rows(lengths: str, n: int, vocabulary: int, seed: int = 0) -> list[Row]:
    """Random tokens in realistic lengths: MRPC about 75 tokens with a one-token answer, SQuAD v2 about 190 with 2 to 12."""
    rng = np.random.default_rng([seed, len(lengths)])
    rows = []
    for _ in range(n):
        if lengths == "mrpc":
            prompt, answer = int(np.clip(rng.normal(74, 17), 30, 140)), 1
        else:
            prompt, answer = int(np.clip(rng.lognormal(np.log(184) - 0.06, 0.35), 60, 740)), 1 + int(min(rng.geometric(0.22), 11))
        rows.append(Row(rng.integers(3, vocabulary, prompt + answer).tolist(), prompt))
    return rows


def build_model(shape: str, device: str, method: str, precision: str, dropout: float = 0.05, fused: bool = False) -> Any:
    """A random model whose frozen weights lose nothing in bf16, as a bf16 checkpoint; ready to train."""
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], attn_implementation="sdpa", use_cache=False))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    if fused:
        fuse_kernels(model)
    if method == "lora":
        model = apply_adapter(model, AdapterSpec(lora_dropout=dropout), 1)
    set_storage(model, our_precision(precision, device))
    return model


def our_precision(name: str, device: str) -> Precision:
    """`mixed`: fp32 master weights under bf16 autocast; `bf16`: weights and optimizer in bf16; `fp32`."""
    return Precision({"mixed": "bf16-mixed"}.get(name, name), device)  # type: ignore[arg-type]


def our_trainer(cell: Cell, model: Any, rows: list[Row], setup: Setup, folder: str, steps: int) -> Trainer:
    """The trainer of tunescope's training step."""
    batch, device = cell.batch(rows), setup.device
    precision = our_precision(cell.precision, device)
    spec = TrainingSpec(
        batching="padded" if cell.setting == "b8-padded" else "packed" if device == "cpu" else "auto",
        capture="never" if cell.setting in ("b8-plain", "b8-padded") else "auto",
        micro_tokens=MICRO_TOKENS if cell.setting.startswith("16k") else None,
        eval_every=10**9, checkpoint_every=10**9,
    )  # fmt: skip
    arguments = training_arguments(spec, folder=folder, device=device, steps=steps, warmup_steps=0, learning_rate=RATE, batch=batch, seed=1)
    arguments.save_strategy = arguments.eval_strategy = "no"
    data = RunDataset(rows, longest_first(np.arange(len(rows)), rows, batch))
    capture = spec.capture if captures(spec, precision) else "never"
    watch = LayerWatch(model, decoder_layers(model), spec.log_every)
    batching = Batching(0, packs(spec, precision), batch, spec.micro_tokens)
    return build_trainer(model, arguments, data, rows[:8], batching, precision, capture=capture, watch=watch)


class Stopwatch(TrainerCallback):
    """Warm up, meet the other runs, then count real tokens for a while."""

    def __init__(self, setup: Setup, tokens_per_step: np.ndarray, peers: Connection | None):
        self.setup, self.peers = setup, peers
        self.tokens = np.cumsum(tokens_per_step)
        self.started = 0.0
        self.result: dict[str, float] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, warmup = state.global_step, self.setup.warmup
        if step < warmup or (step - warmup) % 5:
            return
        if self.setup.device == "cuda":
            torch.cuda.synchronize()
        if step == warmup:
            if self.peers is not None:
                self.peers.send("ready")
                self.peers.recv()
            self.started = time.perf_counter()
            return
        seconds = time.perf_counter() - self.started
        if seconds >= self.setup.seconds:
            tokens = float(self.tokens[step - 1] - self.tokens[warmup - 1])
            self.result = {"tokens_per_s": tokens / seconds, "step_s": seconds / (step - warmup), "seconds": seconds}
            control.should_training_stop = True


def measure(cell: Cell, setup: Setup, peers: Connection | None) -> dict[str, Any]:
    """One run of a cell."""
    vocabulary = SHAPES[setup.shape]["vocab_size"]
    rows = draw_rows(cell.lengths, 8 * 1000, vocabulary)
    batch = cell.batch(rows)
    rows = rows * (4 if cell.setting != "16k" else 20)
    rows = rows[: len(rows) // batch * batch]
    steps = len(rows) // batch
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(setup.shape, setup.device, cell.method, cell.precision, fused=cell.setting.endswith("-fused"))
        if setup.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        build = our_trainer if cell.system == "ours" else stock_trainer
        trainer = build(cell, model, rows, setup, folder, steps)
        per_step = np.array([len(r.input_ids) for r in rows]).reshape(steps, batch).sum(1)
        watch = Stopwatch(setup, per_step, peers)
        trainer.add_callback(watch)
        trainer.train()
    if not watch.result:
        raise RuntimeError(f"the rows were used up before {setup.seconds} s had passed")
    captured = getattr(trainer, "captured", None)
    extra = {} if captured is None else {"graphs": captured.graphs, "refused": captured.refused}
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return watch.result | peak(setup.device) | extra | {"loss": losses[-1]}


def peak(device: str) -> dict[str, float]:
    """Peak GPU memory since training was set up, GiB."""
    if device != "cuda":
        return {}
    return {"reserved_gib": torch.cuda.max_memory_reserved() / 2**30, "allocated_gib": torch.cuda.max_memory_allocated() / 2**30}


def parity(method: str, precision: str, setting: str, setup: Setup) -> dict[str, Any]:
    """Losses of 12 steps on the same rows from the same weights, ours (packed, captured) against the stock Trainer (padded, plain)."""
    rows = draw_rows("mrpc", 8 * 4, SHAPES[setup.shape]["vocab_size"]) * 3
    losses: dict[str, list[float]] = {}
    for system, build in (("ours", our_trainer), ("stock", stock_trainer)):
        fused = system == "ours" and setting.endswith("-fused")
        cell = Cell(system, method, precision, "mrpc", setting if system == "ours" else "b8-longest")
        with tempfile.TemporaryDirectory() as folder:
            model = build_model(setup.shape, setup.device, method, precision, 0.0, fused)
            trainer = build(cell, model, rows, setup, folder, len(rows) // 8)
            trainer.args.logging_steps = 1
            trainer.train()
        losses[system] = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        del trainer
        if setup.device == "cuda":
            torch.cuda.empty_cache()
    gaps = [abs(a - b) / abs(b) for a, b in zip(losses["ours"], losses["stock"], strict=True)]
    return {"max_relative_loss_gap": max(gaps), "first_step_gap": gaps[0], "losses_ours": losses["ours"], "losses_stock": losses["stock"]}


def child(name: str, setup: Setup, peers: Connection) -> None:
    """One process: measure and send the result or the error."""
    transformers.logging.set_verbosity_error()
    if setup.device == "cpu":
        torch.set_num_threads(1)
    try:
        parts = name.split("/")
        result = parity(*parts[1:], setup) if parts[0] == "parity" else measure(Cell(*parts), setup, peers)
        peers.send(result)
    except Exception as error:
        traceback.print_exc()
        peers.send({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"})


def run_cell(name: str, runs: int, setup: Setup) -> dict[str, Any]:
    """All runs of a cell at once; totals over them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["transformers.trainer", "peft", "tunescope.train.callbacks"])  # imports once, not once a run
    pipes = [context.Pipe() for _ in range(runs)]
    processes = [context.Process(target=child, args=(name, setup, there)) for _, there in pipes]
    for process, (_, there) in zip(processes, pipes, strict=True):
        process.start()
        there.close()
    results = list(exchange([here for here, _ in pipes]))
    for process in processes:
        process.join()
    errors = [r["error"] for r in results if "error" in r]
    row = {"cell": name, "runs": runs, **dataclasses.asdict(setup), "results": results}
    if errors:
        return row | {"error": errors[0]}
    if "tokens_per_s" in results[0]:
        row["total_tokens_per_s"] = sum(r["tokens_per_s"] for r in results)
    return row


def exchange(pipes: list[Connection]) -> Iterator[dict[str, Any]]:
    """Wait until every run is ready (or has failed), let all go at once, then collect their results."""
    first = [receive(pipe) for pipe in pipes]
    for pipe, message in zip(pipes, first, strict=True):
        if message == "ready":
            pipe.send("go")
    for pipe, message in zip(pipes, first, strict=True):
        yield receive(pipe) if message == "ready" else message


def receive(pipe: Connection) -> Any:
    """A message, or an error when the process has gone."""
    try:
        return pipe.recv()
    except EOFError:
        return {"error": "the process ended without a result"}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a markdown table."""
    lines = [
        "| cell | runs | real tokens/s, total | a run | ms a step | peak GiB reserved (allocated) | note |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first = row["results"][0]
        if "error" in row:
            lines.append(f"| {row['cell']} | {row['runs']} | | | | | {row['error'][:120]} |")
        elif "max_relative_loss_gap" in first:
            lines.append(f"| {row['cell']} | 1 | | | | | largest relative loss gap over 12 steps {first['max_relative_loss_gap']:.2e} |")
        else:
            most = max(row["results"], key=lambda r: r.get("reserved_gib", 0))
            memory = f"{most['reserved_gib']:.1f} ({most['allocated_gib']:.1f})" if "reserved_gib" in most else ""
            note = f"{first['graphs']} graphs {first['refused']}" if "graphs" in first else ""
            total, step = row["total_tokens_per_s"], np.mean([r["step_s"] for r in row["results"]])
            lines.append(
                f"| {row['cell']} | {row['runs']} | {total:,.0f} | {total / row['runs']:,.0f} | {1e3 * step:.1f} | {memory} | {note} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--shape", default="tinyllama", choices=tuple(SHAPES))
    parser.add_argument("--only", nargs="*", default=["*"], help="names of cells, or of variants of --profile-small, with wildcards")
    parser.add_argument("--runs", help="numbers of runs at once, for instance 1,4,8; default: those of each cell")
    parser.add_argument("--warmup", type=int, default=60, help="steps before the window")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of the window")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds after which no further cell starts")
    parser.add_argument("--out", type=Path, default=Path("bench_training.jsonl"))
    parser.add_argument("--profile-small", action="store_true", help="memory of whole training steps in profile small, instead of cells")
    options = parser.parse_args()
    if options.profile_small:
        from small_profile import profile_small

        profile_small(options.device, SHAPES[options.shape], options.only, options.budget)
        return
    setup = Setup(options.device, options.shape, options.warmup, options.seconds)
    runs = None if options.runs is None else tuple(int(n) for n in options.runs.split(","))
    started, rows = time.monotonic(), []
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    for name in (n for n in CELLS if any(fnmatch.fnmatch(n, pattern) for pattern in options.only)):
        for n in runs if runs and not name.startswith("parity") else CELLS[name]:
            if time.monotonic() - started > options.budget:
                print(f"budget of {options.budget:.0f} s is spent, not measured: {name} x{n}", flush=True)
                continue
            row = run_cell(name, n, setup) | facts
            rows.append(row)
            with options.out.open("a") as stream:
                stream.write(json.dumps(row) + "\n")
            shown = row.get("error") or row.get("total_tokens_per_s") or row["results"][0]["max_relative_loss_gap"]
            print(f"{time.monotonic() - started:6.1f} s  {name} x{n}: {shown}", flush=True)
    print(table(rows), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
