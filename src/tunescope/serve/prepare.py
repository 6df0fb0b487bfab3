"""What the arms serve: model folders, adapters, prompts, and reference log-probabilities from Hugging Face and PEFT."""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tunescope.data import load_examples
from tunescope.errors import PrerequisiteError, TunescopeError
from tunescope.models.loading import load_model, load_tokenizer, resolve_model
from tunescope.models.lora_utils import load_finetuned, merge_adapter
from tunescope.records import StepContext, store_root
from tunescope.study.arms import Arm
from tunescope.study.inputs import ServeInputs

from .arms import accepted_rank, pick_adapters

POOL = 256
"""Distinct prompts per length, used in turn."""
ASK_PROMPTS, ASK_POSITIONS, ASK_LENGTH = 3, 4, 64
"""Log-probabilities are compared at this many prompts x positions, within this many tokens."""
COPY_SCALE = 0.01
"""Copy k of an adapter has its B scaled by 1 + k x this, so that all weights are distinct."""


@dataclass(frozen=True)
class Adapter:
    """One adapter folder as served."""

    name: str
    path: Path
    rank: int
    modules: tuple[str, ...]
    """Names of the modules it touches, e.g. q_proj."""
    bytes: int
    """Of its weights as saved."""
    parameters: int


@dataclass
class Materials:
    """Everything the launches need; `problems` names the arms that cannot run, and why."""

    base: Path
    prompts: Path
    asks: list[list[int]]
    models: dict[str, Path] = field(default_factory=dict)
    adapters: dict[str, list[Adapter]] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    references: dict[str, list[float]] = field(default_factory=dict)
    """Log-probabilities of the asks in fp32: `base`, `full`, and one per trained adapter."""


def prepare(inputs: ServeInputs, ctx: StepContext, arms: Sequence[Arm], dtype: str) -> Materials:
    """Find or make what each arm serves, in `<step folder>/work`.

    A missing run, an adapter that does not fit the base, or a rank that vLLM does not serve becomes a problem of the arms that need it.

    Raises:
        PrerequisiteError: no base model or no data for the prompts, without which no arm can run.
    """
    spec, work = inputs.serving, ctx.folder / "work"
    base = resolve_model(inputs.model, store_root(ctx.folder))
    prompts, asks = _write_prompts(inputs, ctx, base, work / "prompts.json")
    found = Materials(base, prompts, asks, models={"base": base})
    finals = trained_runs(ctx.upstream, inputs.candidate_method, spec.seed)
    for arm in arms:
        try:
            _provide(arm, inputs, ctx, finals, found, dtype)
        except TunescopeError as error:
            found.problems[arm.name] = f"arm '{arm.name}': {error}"
    _measure_references(found, ctx, inputs, finals)
    return found


def trained_runs(upstream: Mapping[str, Path], method: str, seed: int) -> dict[str, Path]:
    """Task -> folder of its final run of a method and seed."""
    found = {}
    for step, folder in upstream.items():
        kind, *rest = step.split("/")
        if kind == "train" and rest[1:] == [method, "final", f"seed-{seed}"]:
            found[rest[0]] = folder
    return found


def _write_prompts(inputs: ServeInputs, ctx: StepContext, base: Path, path: Path) -> tuple[Path, list[list[int]]]:
    """Prompts of exact token lengths: prompt i starts with test example i and goes on with the following ones until it is long enough."""
    spec = inputs.serving
    tokenizer = load_tokenizer(base)
    examples = load_examples(ctx.data_dir, spec.task, "test")[:POOL]
    texts = [tokenizer.encode(e.before + e.passage + e.after, add_special_tokens=False) for e in examples]
    if not any(texts):
        raise PrerequisiteError(f"{ctx.data_dir / spec.task}: no test examples to make prompts from; prepare the data first")
    start = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else []
    pools = {length: [exact_prompt(texts, i, length, start) for i in range(len(texts))] for length in spec.prompt_lengths}
    length = min(ASK_LENGTH, min(spec.prompt_lengths))
    asks = [
        exact_prompt(texts, i, length * position // ASK_POSITIONS, start)
        for i in range(ASK_PROMPTS)
        for position in range(1, ASK_POSITIONS + 1)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pools": pools, "asks": asks}))
    return path, asks


def exact_prompt(texts: Sequence[Sequence[int]], first: int, length: int, start: Sequence[int]) -> list[int]:
    """Exactly `length` token ids: `start`, then texts from number `first` on, in a circle, cut at the end."""
    ids = list(start)
    number = first
    while len(ids) < length:
        ids += texts[number % len(texts)]
        number += 1
    return ids[:length]


def _provide(arm: Arm, inputs: ServeInputs, ctx: StepContext, finals: Mapping[str, Path], found: Materials, dtype: str) -> None:
    spec = inputs.serving
    if arm.model == "full":
        runs = trained_runs(ctx.upstream, inputs.reference_method, spec.seed)
        found.models["full"] = _part(runs, spec.task, inputs.reference_method, "model")
    if arm.model == "merged":
        adapter = _part(finals, spec.task, inputs.candidate_method, "adapter")
        read_adapter(spec.task, adapter, found.base)
        found.models["merged"] = merge_adapter(found.base, adapter, ctx.folder / "work" / "merged", getattr(torch, dtype))
    if arm.lora:
        picks = pick_adapters(arm, spec, list(finals)) if arm.adapters else [(spec.task, 0)]
        adapters = [_adapter(t, n, inputs, ctx, finals, found.base) for t, n in picks]
        accepted_rank(max(a.rank for a in adapters))
        found.adapters[arm.name] = adapters


def _part(runs: Mapping[str, Path], task: str, method: str, part: str) -> Path:
    if task not in runs:
        raise PrerequisiteError(f"no finished final run of {method} on {task} among the steps this one needs")
    folder = runs[task] / part
    if not folder.is_dir():
        raise PrerequisiteError(f"{folder}: missing; run that training step again")
    return folder


def _adapter(task: str, copy: int, inputs: ServeInputs, ctx: StepContext, finals: Mapping[str, Path], base: Path) -> Adapter:
    source = _part(finals, task, inputs.candidate_method, "adapter")
    if copy == 0:
        return read_adapter(task, source, base)
    name = f"{task}-copy-{copy}"
    target = ctx.folder / "work" / "adapters" / name
    if not target.is_dir():
        copy_adapter(source, target, 1 + COPY_SCALE * copy)
    return read_adapter(name, target, base)


def copy_adapter(source: Path, target: Path, scale: float) -> None:
    """Copy an adapter with its B matrices scaled."""
    target.mkdir(parents=True)
    shutil.copy(source / "adapter_config.json", target)
    tensors = load_file(source / "adapter_model.safetensors")
    save_file({k: t * scale if ".lora_B." in k else t for k, t in tensors.items()}, target / "adapter_model.safetensors")


def read_adapter(name: str, path: Path, base: Path) -> Adapter:
    """Read an adapter's shape and make sure that it belongs on this base.

    Raises:
        PrerequisiteError: not LoRA, files missing, or a matrix that does not fit the base's weight of that name.
    """
    try:
        config = json.loads((path / "adapter_config.json").read_text())
        weights = safe_open(path / "adapter_model.safetensors", framework="pt")
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"adapter '{name}' at {path} cannot be read ({error})") from error
    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
        raise PrerequisiteError(f"adapter '{name}': vLLM serves plain LoRA, not {kind}; merge it, or leave adapter arms out")
    shapes = _weight_shapes(base)
    modules, size, parameters = set(), 0, 0
    for key in weights.keys():  # noqa: SIM118 - safe_open is no mapping
        slice_ = weights.get_slice(key)
        shape = slice_.get_shape()
        count = math.prod(shape)
        parameters += count
        size += count * (4 if slice_.get_dtype() == "F32" else 2)
        module = key.removeprefix("base_model.model.").split(".lora_")[0]
        modules.add(module.rsplit(".", 1)[-1])
        fits = shapes.get(f"{module}.weight")
        axis = 1 if ".lora_A." in key else 0
        if ".lora_" in key and (fits is None or fits[axis] != shape[axis]):
            raise PrerequisiteError(f"adapter '{name}' does not fit the base model {base}: {key} is {shape}, the base has {fits}")
    ranks = [config["r"], *(config.get("rank_pattern") or {}).values()]
    return Adapter(name, path, max(ranks), tuple(sorted(modules)), size, parameters)


def _weight_shapes(model: Path) -> dict[str, list[int]]:
    shapes: dict[str, list[int]] = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            shapes |= {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    return shapes


def _measure_references(found: Materials, ctx: StepContext, inputs: ServeInputs, finals: Mapping[str, Path]) -> None:
    """References on the CPU in fp32, one model at a time; the GPU stays untouched, because the engines ask for nearly all of it."""
    found.references["base"] = ask_log_probabilities(load_model(found.base, dtype=torch.float32, device="cpu"), found.asks)
    served = {a.name: a.path for adapters in found.adapters.values() for a in adapters}
    if "merged" in found.models:
        served[inputs.serving.task] = finals[inputs.serving.task] / "adapter"
    served |= {"full": found.models["full"]} if "full" in found.models else {}
    for name, path in served.items():
        if "-copy-" not in name:
            found.references[name] = ask_log_probabilities(load_finetuned(found.base, path, torch.float32, "cpu"), found.asks)


@torch.no_grad()
def ask_log_probabilities(model: nn.Module, asks: Sequence[Sequence[int]]) -> list[float]:
    """Log-probability (nats) of each ask's last token after the tokens before it."""
    rows = [model(input_ids=torch.tensor([list(a[:-1])]), use_cache=False).logits[0, -1].float().log_softmax(-1)[a[-1]] for a in asks]
    return [float(v) for v in rows]


def kv_cache_bytes(model: Path, dtype: str, max_model_len: int, max_num_seqs: int) -> int:
    """Bytes of key-value cache for `max_num_seqs` full sequences, in blocks of 128 tokens with some to spare.

    2 x layers x key-value heads x head size x bytes a token. Used on a CPU, where vLLM would otherwise take a share of the machine.
    """
    config = json.loads((model / "config.json").read_text())
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    per_token = 2 * config["num_hidden_layers"] * heads * size * (4 if dtype == "float32" else 2)
    return (max_num_seqs * (-(-max_model_len // 128) + 1) + 8) * 128 * per_token


def folder_sha256(folder: Path) -> str:
    """SHA-256 over the weights and configuration files of a model or adapter folder; an adapter's settings count, not who wrote them."""
    digest = hashlib.sha256()
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*config.json")]):
        digest.update(file.name.encode())
        if file.name == "adapter_config.json":
            digest.update(_adapter_settings(file))
            continue
        with open(file, "rb") as handle:
            digest.update(hashlib.file_digest(handle, "sha256").digest())
    return digest.hexdigest()


def _adapter_settings(file: Path) -> bytes:
    """The settings in an order of their own: PEFT stamps its version, and its lists of modules are sets, whose order changes."""
    config = {k: v for k, v in json.loads(file.read_text()).items() if k != "peft_version"}
    return json.dumps({k: sorted(v, key=str) if isinstance(v, list) else v for k, v in config.items()}, sort_keys=True).encode()


def describe(adapter: Adapter) -> dict[str, Any]:
    """An adapter as a launch is told of it."""
    return {"name": adapter.name, "path": str(adapter.path)}
