"""PEFT adapters: put one on, take it off, merge it, and measure what it did to the weights."""

import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from tunescope.errors import PrerequisiteError, StepError, StudyError, did_you_mean
from tunescope.study.schema import AdapterSpec

from .checkpoint import target_problems
from .loading import load_model, load_tokenizer

_DEFAULTS = AdapterSpec()
_OWN_FIELDS = ("r", "lora_alpha", "lora_dropout", "target_modules")


def apply_adapter(model: PreTrainedModel, spec: AdapterSpec, seed: int) -> PeftModel:
    """Put a fresh adapter on a model (LoRA: Kaiming-uniform A, zero B), drawn from its own seed.

    The base weights are frozen; adapter weights keep the dtype that the base weights have at this moment.

    Raises:
        StudyError: unknown PEFT type or option (with the nearest valid name), a target that matches no module, or a rank above
            a layer's width.
    """
    config = adapter_config(spec)
    _check_targets(model, spec)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=False)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise StudyError(f"adapter {spec.peft_type}: PEFT refuses it on this model: {' '.join(str(error).split())[:300]}") from error


def adapter_config(spec: AdapterSpec) -> Any:
    """The PEFT config of a study's adapter. Fields that a PEFT type lacks are left out when they stand at the study's default."""
    kinds = {str(getattr(k, "value", k)): v for k, v in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if spec.peft_type not in kinds:
        raise StudyError(
            f"adapter.peft_type '{spec.peft_type}' is unknown{did_you_mean(spec.peft_type, kinds)}; PEFT has {', '.join(sorted(kinds))}"
        )
    kind = kinds[spec.peft_type]
    known = [f.name for f in fields(kind) if f.init]
    values: dict[str, Any] = {"task_type": "CAUSAL_LM"} if "task_type" in known else {}
    for name in _OWN_FIELDS:
        value = getattr(spec, name)
        if name in known and value is not None:
            values[name] = list(value) if isinstance(value, tuple) else value
        elif name not in known and value not in (None, getattr(_DEFAULTS, name)):
            raise StudyError(f"adapter.{name}: {spec.peft_type} has no such option{did_you_mean(name, known)}")
    for name, value in spec.options.items():
        if name not in known:
            raise StudyError(f"adapter.options.{name}: {spec.peft_type} has no such option{did_you_mean(name, known)}")
        values[name] = value
    try:
        config = kind(**values)
    except (ValueError, TypeError) as error:
        raise StudyError(f"adapter {spec.peft_type}: {' '.join(str(error).split())[:300]}") from error
    if getattr(config, "is_prompt_learning", False):
        raise StudyError(
            f"adapter.peft_type '{spec.peft_type}' puts virtual tokens before the prompt, so probes would compare different positions"
        )
    return config


def _check_targets(model: nn.Module, spec: AdapterSpec) -> None:
    leaves = {name: module for name, module in model.named_modules() if not list(module.children())}
    widths = {name: min(module.weight.shape) if isinstance(module, nn.Linear) else None for name, module in leaves.items()}
    if problems := list(target_problems(spec, widths)):
        raise StudyError(problems)


def frozen_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Base weights by their name in the untouched model, adapter weights left out."""
    prefix = getattr(getattr(model, "base_model", None), "prefix", None) if isinstance(model, PeftModel) else None
    for name, parameter in model.named_parameters():
        if prefix and (prefix in name or "modules_to_save." in name):
            continue
        yield name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", ""), parameter


def tensor_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def base_sha256(model: nn.Module) -> str:
    """SHA-256 of the base weights, the same with and without an adapter on them."""
    return tensor_sha256(dict(frozen_parameters(model)))


def start_tensors(model: PeftModel) -> dict[str, torch.Tensor]:
    """A copy of a fresh adapter whose start rewrote the base weights, on the CPU, by the names an adapter file uses.

    Raises:
        StudyError: only plain LoRA layers of one rank can be turned back into an adapter of the untouched base.
    """
    config: Any = model.peft_config["default"]
    odd = [name for name in ("use_dora", "rank_pattern", "alpha_pattern") if getattr(config, name, None)]
    if not any(_lora_layers(model)) or odd:
        what = f"with {', '.join(odd)}" if odd else "of this PEFT type"
        raise StudyError(f"adapter: an adapter {what} that rewrites the base weights at its start cannot be kept apart from them")
    return {name: tensor.detach().float().cpu().clone() for name, tensor in get_peft_model_state_dict(model).items()}


def save_as_update(model: PeftModel, start: dict[str, torch.Tensor], folder: Path) -> None:
    """Save an adapter whose start rewrote the base (PiSSA, OLoRA) as a plain LoRA of twice the rank on the untouched base.

    W + s·(B·A − B0·A0) = W + s·[B, −B0]·[A; A0], where A0 and B0 are what the start took out of W (Meng et al. 2024, PiSSA, appendix C).
    """
    config: Any = copy.deepcopy(model.peft_config["default"])
    config.lora_alpha = config.lora_alpha * (math.sqrt(2) if config.use_rslora else 2)  # keeps the scaling at twice the rank
    config.r, config.init_lora_weights, config.inference_mode = 2 * config.r, True, True
    joined = {}
    for name, tensor in get_peft_model_state_dict(model).items():
        learned, first = tensor.detach().float().cpu(), start[name]
        joined[name] = torch.cat([learned, first], 0) if "lora_A" in name else torch.cat([learned, -first], 1)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(joined, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def adapter_norms(model: nn.Module) -> dict[str, float]:
    """Frobenius norms of the trained weights: `all`, and for LoRA `A` and `B`."""
    norms = {"all": _norm([p for p in model.parameters() if p.requires_grad])}
    layers = list(_lora_layers(model))
    if layers:
        norms["A"] = _norm([a for _, a, _, _ in layers])
        norms["B"] = _norm([b for _, _, b, _ in layers])
    return norms


def _norm(tensors: Sequence[torch.Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm([t.detach().float() for t in tensors])))) if tensors else 0.0


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, torch.Tensor, float]]:
    """(module name, A of rank x in, B of out x rank, scaling) of every linear LoRA layer."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and "default" in module.lora_A:
            a, b = module.lora_A["default"], module.lora_B["default"]
            if isinstance(a, nn.Linear) and isinstance(b, nn.Linear):
                yield name.removeprefix("base_model.model."), a.weight, b.weight, float(module.scaling["default"])


def rank_utilisation(model: nn.Module) -> dict[str, dict[str, Any]]:
    """How much of its rank each LoRA update uses.

    Returns per module: `singular_values` of scaling·B·A (descending), `effective_rank` = exp(entropy of s/Σs) (Roy & Vetterli 2007),
    `stable_rank` = Σs²/max s², `utilisation` = effective rank / r. An all-zero update has effective rank 0.

    Cost: two thin QRs and one r x r SVD a module; B·A is never formed.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, a_RI, b_OR, scaling in _lora_layers(model):
        r_b = torch.linalg.qr(b_OR.detach().double().cpu(), mode="r").R
        r_a = torch.linalg.qr(a_RI.detach().double().cpu().T, mode="r").R
        values = torch.linalg.svdvals(r_b @ r_a.T) * abs(scaling)
        total = float(values.sum())
        shares = values[values > 0] / total if total > 0 else values[:0]
        effective = math.exp(-float((shares * shares.log()).sum())) if total > 0 else 0.0
        stable = float((values**2).sum() / values.max() ** 2) if total > 0 else 0.0
        found[name] = {
            "singular_values": [float(v) for v in values],
            "effective_rank": effective,
            "stable_rank": stable,
            "utilisation": effective / a_RI.shape[0],
        }
    return found


@torch.no_grad()
def last_token_logits(model: nn.Module, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
    """Next-token logits after each prompt, (prompts, vocabulary), fp32 on the CPU; one prompt at a time, so padding plays no part."""
    device = next(model.parameters()).device
    rows = [model(input_ids=torch.tensor([list(p)], device=device), use_cache=False, logits_to_keep=1).logits[0, -1] for p in prompts]
    return torch.stack(rows).float().cpu()


@dataclass(frozen=True)
class MergeEquivalence:
    """Merged against adapted model on the same prompts."""

    max_abs_logit_difference: float
    label_agreement: float
    n: int


def merge_equivalence(adapted_NV: torch.Tensor, merged_NV: torch.Tensor, label_ids: Sequence[int] | None = None) -> MergeEquivalence:
    """Compare next-token logits; labels are the best of `label_ids`, or of the whole vocabulary when None."""
    columns = slice(None) if label_ids is None else list(label_ids)
    agree = adapted_NV[:, columns].argmax(1) == merged_NV[:, columns].argmax(1)
    return MergeEquivalence(float((adapted_NV - merged_NV).abs().max()), float(agree.double().mean()), len(agree))


def merge_adapter(base_path: Path, adapter_path: Path, out_path: Path, dtype: torch.dtype | None = None) -> Path:
    """Merge an adapter into its base in fp32, cast once, and save a Hugging Face folder with its tokenizer.

    Args:
        dtype: of the saved weights; None takes the dtype of the base checkpoint.
    """
    target = dtype or checkpoint_dtype(base_path)
    model = load_finetuned(base_path, adapter_path, torch.float32, "cpu")
    if not isinstance(model, PeftModel):
        raise PrerequisiteError(f"{adapter_path}: no adapter to merge, this folder holds full weights")
    merged = model.merge_and_unload(safe_merge=True).to(target)
    partial = out_path.with_name(out_path.name + ".partial")
    merged.save_pretrained(partial)
    load_tokenizer(base_path).save_pretrained(partial)
    if out_path.exists():
        shutil.rmtree(out_path)
    os.replace(partial, out_path)
    return out_path


def checkpoint_dtype(path: Path) -> torch.dtype:
    """The dtype a checkpoint's config declares; fp32 when it declares none."""
    config = json.loads((path / "config.json").read_text())
    return getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch."))


def load_finetuned(base_path: Path, step_folder: Path, dtype: torch.dtype, device: str) -> nn.Module:
    """Load what a training step kept: `model/` (full weights) or `adapter/` on the base; also takes those folders themselves."""
    for folder in (step_folder / "model", step_folder):
        if (folder / "config.json").is_file():
            return load_model(folder, dtype=dtype, device=device)
    adapter = step_folder / "adapter" if (step_folder / "adapter").is_dir() else step_folder
    if not (adapter / "adapter_config.json").is_file() or not (adapter / "adapter_model.safetensors").is_file():
        raise PrerequisiteError(f"{step_folder}: neither model/ nor adapter/ with safetensors weights; was this a search run, or cleaned?")
    base = load_model(base_path, dtype=dtype, device=device)
    try:
        return PeftModel.from_pretrained(base, str(adapter), autocast_adapter_dtype=False).eval()
    except (RuntimeError, ValueError, KeyError) as error:
        raise StepError(f"{adapter}: does not fit the base model {base_path} ({' '.join(str(error).split())[:300]})") from error
