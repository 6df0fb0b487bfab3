"""Find a base model (embedded, local folder or hub commit) and load it, its tokenizer, or a fine-tuned run of it."""

import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from tunescope.errors import PrerequisiteError
from tunescope.study.schema import ModelSpec

from .checkpoint import EMBEDDED, folder_problem, local_folder, model_problem
from .hub import COMMIT, FILES, download


def resolve_model(spec: ModelSpec, runs_dir: Path | None = None) -> Path:
    """The local folder of a base model.

    Args:
        spec: `sprout-2m`, a local folder, or a hub id. A hub id without a commit is pinned by its first download: the commit is
            written to `<runs_dir>/model-lock.json` and every later run takes that commit.
        runs_dir: where the lock lives; None neither reads nor writes one.

    Raises:
        PrerequisiteError: nothing by that name, not reachable, or no safetensors weights in it.
    """
    if problem := model_problem(spec):
        raise PrerequisiteError(problem)
    return local_folder(spec) or _whole(download(spec, runs_dir))


def hub_identity(spec: ModelSpec, folder: Path) -> tuple[str, str | None] | None:
    """Hub id and commit of a base model that `resolve_model` found in `folder`; None for the embedded one and for local folders."""
    if spec.name == EMBEDDED or Path(spec.name).expanduser().is_dir():
        return None
    return spec.name, folder.name if COMMIT.fullmatch(folder.name) else spec.revision


def model_files(folder: Path) -> list[Path]:
    """The files of a model folder that change what it computes: configuration, tokenizer, weights."""
    return sorted({path for pattern in FILES for path in folder.glob(pattern)})


def _whole(folder: Path) -> Path:
    if problem := folder_problem(folder):
        raise PrerequisiteError(problem)
    return folder


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, padding on the right with a token that never occurs in text and is not the end token.

    Raises:
        PrerequisiteError: no tokenizer, or no token that could pad safely.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError) as error:
        raise PrerequisiteError(f"{path}: no readable tokenizer ({' '.join(str(error).split())[:200]})") from error
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.pad_token = _padding_token(tokenizer, path)
    return tokenizer


def _padding_token(tokenizer: PreTrainedTokenizerBase, path: Path) -> str:
    """A special token that text cannot produce. Padding with the end token would hide the end of an answer from every mask."""
    taken = {tokenizer.eos_token, tokenizer.bos_token}
    special = [t.content for t in getattr(tokenizer, "added_tokens_decoder", {}).values() if t.special and t.content not in taken]
    for wanted in (r"pad", r"reserved|unused", r"^<unk>$"):
        for token in special:
            if re.search(wanted, token, re.IGNORECASE):
                return token
    raise PrerequisiteError(
        f"{path}: the tokenizer has no padding token distinct from the end token {tokenizer.eos_token!r} and no reserved token to use; "
        "add a pad token that never occurs in text to its tokenizer_config.json"
    )


def load_model(path: Path, *, dtype: torch.dtype, device: str, attention: str = "sdpa") -> PreTrainedModel:
    """Load a causal LM in an explicit dtype, in evaluation mode, without a key-value cache.

    Args:
        dtype: always explicit, because the loading default is the checkpoint's own.
        attention: an attention implementation of transformers; probes of attention patterns need `eager`.

    Raises:
        PrerequisiteError: missing weights, or an architecture that is no causal LM.
    """
    _whole(Path(path))
    transformers_logging.disable_progress_bar()
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation=attention, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise PrerequisiteError(f"{path}: cannot be loaded as a causal language model ({' '.join(str(error).split())[:300]})") from error
    model.config.use_cache = False
    model.to(device)
    return model.eval()


def fuse_kernels(model: PreTrainedModel) -> None:
    """Replace RMSNorm, rotary positions and gated MLPs of a model on a GPU by Liger's fused kernels, in place; its head and loss stay.

    Raises:
        PrerequisiteError: no GPU, liger-kernel is not installed, or it has no kernels for this architecture.
    """
    from transformers.integrations.liger import apply_liger_kernel
    from transformers.utils import is_liger_kernel_available

    if model.device.type != "cuda":
        raise PrerequisiteError("training.fused_kernels: these kernels need a CUDA device; set it to false")
    if not is_liger_kernel_available():
        raise PrerequisiteError("training.fused_kernels: liger-kernel is not installed: pip install liger-kernel")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise PrerequisiteError(f"training.fused_kernels: liger-kernel has none for model type '{kind}'; set it to false")
    left_alone = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    apply_liger_kernel(model, {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True, **left_alone})


def parameter_counts(model: torch.nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; tied weights count once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def decoder_layers(model: Any) -> torch.nn.ModuleList:
    """The decoder layers of a causal LM, inside a PEFT wrapper or not."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    layers = getattr(base.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise PrerequisiteError(f"{type(base).__name__} has no list of decoder layers; tunescope needs a Llama-like causal LM")
    return layers
