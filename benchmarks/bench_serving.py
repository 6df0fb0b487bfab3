"""The serving benchmark on a model whose weights are random: speed does not depend on them, so no download is needed.

    python benchmarks/bench_serving.py --work /tmp/serving --out results --launches 10
    python benchmarks/bench_serving.py --shape tiny --arms base,merged,adapters_2 --launches 1 --requests 8 --warmup 2 --batch-sizes 1,2

Makes a TinyLlama-1.1B-shaped base (or takes `--model FOLDER`), a second set of full weights and one rank-8 q,v adapter a task, then runs
the real serve step on them. Finished launches in `--out` are kept, so the command can be given again after an interruption, and with more
`--launches`; `--seconds` starts no launch that would not end in time. `serving_results.py` makes tables and figures of what is there.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.data.prepare import run_data
from tunescope.models.loading import load_model, resolve_model
from tunescope.records import StepContext
from tunescope.serve.deployment_bench import run_serve
from tunescope.serve.overhead import cell_table, common_cells, finished, overhead_ratio
from tunescope.serve.session import read_rows
from tunescope.study.inputs import DataInputs, ServeInputs
from tunescope.study.schema import TASKS, DataSpec, Limits, ModelSpec, OpenLoopSpec, ServingSpec

SHAPES = {
    "tinyllama": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "vocab_size": 32_000, "max_position_embeddings": 2048,
    },
    "tiny": {
        "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "vocab_size": 8192, "max_position_embeddings": 1024,
    },
}  # fmt: skip
FIRST_LAUNCH_S = 150.0
"""Seconds set aside for a launch before any has been timed."""
KEPT = ("launches.jsonl", "open_loop.jsonl", "correctness.json")


class OutOfTimeError(Exception):
    """The next launch would not end within `--seconds`."""


class Printed:
    """A tracker that keeps nothing: the rows are the record."""

    def log(self, values: Any, step: int) -> None: ...


def random_model(shape: str, folder: Path, seed: int) -> Path:
    """A causal LM of the Llama architecture with random bf16 weights and the embedded model's tokenizer."""
    if not (folder / "config.json").is_file():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=2)).bfloat16()
        model.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
            source = resolve_model(ModelSpec(name="sprout-2m")) / name
            if source.is_file():
                shutil.copy(source, folder)
    return folder


def random_adapter(base: Path, folder: Path, seed: int) -> None:
    """A rank-8 q,v adapter with non-zero B, large enough to change every output."""
    if (folder / "adapter_config.json").is_file():
        return
    model = get_peft_model(
        load_model(base, dtype=torch.float32, device="cpu"),
        LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        autocast_adapter_dtype=False,
    )
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.05 * torch.randn(weight.shape, generator=generator)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained(folder, save_embedding_layers=False)


def stage(args: argparse.Namespace) -> tuple[ModelSpec, dict[str, Path]]:
    """The base model and the folders that finished training steps would have left."""
    base = Path(args.model) if args.model else random_model(args.shape, args.work / "base", 0)
    runs = {}
    for number, task in enumerate(TASKS):
        runs[f"train/{task}/lora/final/seed-42"] = args.work / task
        random_adapter(base, args.work / task / "adapter", number + 1)
    full = args.work / "full"
    if args.model:
        shutil.copytree(base, full / "model", dirs_exist_ok=True)
    else:
        random_model(args.shape, full / "model", 99)
    return ModelSpec(name=str(base)), runs | {"train/sst2/full/final/seed-42": full}


def serving_spec(args: argparse.Namespace) -> ServingSpec:
    """The grid of the command line."""
    rates = tuple(float(r) for r in args.rates.split(",") if r)
    opened = OpenLoopSpec(
        arms=tuple(args.open_arms.split(",")), request_rates=rates, requests=args.open_requests, prompt_length=args.open_prompt,
        launches=args.open_launches,
    ) if rates else None  # fmt: skip
    return ServingSpec(
        arms=tuple(args.arms.split(",")), batch_sizes=numbers(args.batch_sizes), prompt_lengths=numbers(args.prompt_lengths),
        sampling=tuple(args.sampling.split(",")), output_tokens=args.output_tokens, prompts_per_cell=args.requests,
        warmup_calls=args.warmup, launches=args.launches, max_num_seqs=max(numbers(args.batch_sizes)), launch_timeout_s=args.timeout,
        max_cudagraph_capture_size=args.max_cudagraph_capture_size or None, open_loop=opened,
    )  # fmt: skip


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    start, args = time.monotonic(), arguments()
    spec = serving_spec(args)
    refuse_forgotten_arms(args.out, spec)
    args.out.mkdir(parents=True, exist_ok=True)
    folder, data = args.work / "steps" / "serve", args.work / "data"
    for each in (folder, args.work / "steps" / "data"):
        each.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        (folder / name).unlink(missing_ok=True)  # another session's: `--out` alone says what is finished
        if (args.out / name).is_file():
            shutil.copy(args.out / name, folder / name)
    model, upstream = stage(args)
    if not (data / "sst2").is_dir():
        inputs = DataInputs(task="sst2", data=DataSpec(source="sample"), limits=Limits(train=20, selection=20, test=50), probe_examples=10)
        run_data(inputs, StepContext(args.work / "steps" / "data", data, {}, "cpu", Printed()))
    (args.out / "asked.json").write_text(json.dumps(asked(args, spec), indent=1))
    ctx = StepContext(folder, data, upstream, args.device, Printed(), teller(folder, args.out, start, args.seconds))
    try:
        result = run_serve(ServeInputs(model=model, serving=spec, reference_method="full", candidate_method="lora"), ctx)
    except OutOfTimeError as stopped:
        print(f"{stopped}; give the command again to go on")
    else:
        (args.out / "result.json").write_text(json.dumps({"outputs": result.outputs, "notes": result.notes}, indent=1))
        print("\n".join(f"note: {n}" for n in result.notes))
    finally:
        save(folder, args.out)
    show(read_rows(args.out / "launches.jsonl"))


def teller(folder: Path, out: Path, start: float, seconds: float | None) -> Callable[[int, int, str], None]:
    """Called before the first launch and after each: keeps what is finished, and stops when one more might not end in time."""
    ends: list[float] = []
    latest: dict[str, float] = {}
    """Arm -> seconds of its last launch: the first of an arm compiles, and later ones do not."""

    def told(done: int, total: int, text: str) -> None:
        ends.append(time.monotonic())
        took = ends[-1] - ends[-2] if len(ends) > 1 else None
        print(f"{done}/{total} {text}" + (f" {took:.0f} s" if took else ""), flush=True)
        save(folder, out)
        if took and len(ends) > 2:  # the first launch includes preparing
            latest[text.split()[0]] = took
        more = max(latest.values(), default=took or FIRST_LAUNCH_S)
        if seconds is not None and done < total and ends[-1] - start + more > seconds:
            raise OutOfTimeError(f"stopped at {done} of {total}: another launch of {more:.0f} s would not end within {seconds:g} s")

    return told


def refuse_forgotten_arms(out: Path, spec: ServingSpec) -> None:
    """A session keeps the launches of the arms it is asked for and no others; those of other arms would be lost."""
    opened = spec.open_loop.arms if spec.open_loop else ()
    for name, arms in (("launches.jsonl", spec.arms), ("open_loop.jsonl", opened)):
        lost = sorted({row["arm"] for row in finished(read_rows(out / name))} - set(arms))
        if lost:
            held = f"{out / name} holds finished launches of {', '.join(lost)}"
            sys.exit(f"{held}, which this command does not name and would drop: name them too, or give another --work and --out")


def asked(args: argparse.Namespace, spec: ServingSpec) -> dict[str, Any]:
    """What was asked for, with every command that was given into `--out`, in order."""
    path = args.out / "asked.json"
    before = json.loads(path.read_text())["command"].splitlines() if path.is_file() else []
    commands = dict.fromkeys([*before, command(args)])
    model = Path(args.model).name if args.model else f"{args.shape}, random weights"
    return {"command": "\n".join(commands), "model": model, "serving": spec.model_dump(mode="json")}


def command(args: argparse.Namespace) -> str:
    """The command with every option that changes a number."""
    said = {k: v for k, v in vars(args).items() if k not in ("work", "out", "seconds") and v != ""}
    said |= {"model": Path(args.model).name} if args.model else {}
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    head = f"CUDA_VISIBLE_DEVICES={devices} " if devices and args.device != "cpu" else ""
    return f"{head}python benchmarks/bench_serving.py " + " ".join(f"--{k.replace('_', '-')} {v}" for k, v in said.items())


def save(folder: Path, out: Path) -> None:
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copy(folder / name, out / name)


def show(rows: list[dict[str, Any]]) -> None:
    """Medians per cell, and each arm's ratio to the merged arm over the cells they share."""
    if not finished(rows):
        return
    table = cell_table(rows)
    if table.empty:  # the switching arm has no cells
        return
    print(
        table.pivot_table(index=["arm", "prompt_length", "sampling"], columns="batch_size", values="ms_per_token_median")
        .round(3)
        .to_string()
    )
    for arm in dict.fromkeys(r["arm"] for r in finished(rows)):
        for cell in common_cells(rows, [arm, "merged"]):
            ratio = overhead_ratio(rows, arm, "merged", [cell])
            if ratio and arm != "merged" and cell[1:] == (256, "greedy"):
                limits = f"{ratio.low:.3f} to {ratio.high:.3f}" if ratio.low is not None and ratio.high is not None else "one launch"
                print(f"{arm:<18} batch {cell[0]:<3} ratio {ratio.ratio:.3f} ({limits}, {ratio.launches} launches)")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/bench_serving"))
    parser.add_argument("--out", type=Path, default=Path("runs/bench_serving/out"))
    parser.add_argument("--model", default="", help="a local model folder instead of random weights")
    parser.add_argument("--shape", choices=list(SHAPES), default="tinyllama")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--arms", default="base,full,merged,lora_idle,adapters_1,adapters_2,adapters_4,switching")
    parser.add_argument("--batch-sizes", default="1,2,4,8,16,64")
    parser.add_argument("--prompt-lengths", default="128,256,512")
    parser.add_argument("--sampling", default="greedy")
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--requests", type=int, default=320)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--launches", type=int, default=10)
    parser.add_argument("--max-cudagraph-capture-size", type=int, default=512, help="tokens; 0 leaves it to vLLM (2 x the largest batch)")
    parser.add_argument("--timeout", type=int, default=1800)
    parser.add_argument("--seconds", type=float, help="start no launch that would not end within so many seconds (slowest last launch)")
    parser.add_argument("--rates", default="", help="open loop: mean arrivals a second, e.g. 4,16; empty leaves it out")
    parser.add_argument("--open-arms", default="base,merged,adapters_2")
    parser.add_argument("--open-requests", type=int, default=500)
    parser.add_argument("--open-prompt", type=int, default=256)
    parser.add_argument("--open-launches", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    main()
