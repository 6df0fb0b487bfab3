"""In what precision a run computes and keeps its weights, and what follows from it: packed batches, captured steps, fp32 probes."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tunescope.errors import StudyError
from tunescope.study.schema import TrainingSpec


@dataclass(frozen=True)
class Precision:
    """How a run computes. Weights that are trained are fp32 except in the labelled variant `bf16`."""

    name: Literal["fp32", "bf16-mixed", "bf16"]
    device: str

    @property
    def autocast(self) -> bool:
        return self.name == "bf16-mixed"

    def context(self, *, keep_copies: bool = True) -> AbstractContextManager[Any]:
        """Autocast of a training or selection pass. `keep_copies`: hold the bf16 copy of every trained weight until the end of the pass.

        A backward pass needs the copies; without one they would be 2 bytes a weight for nothing.
        """
        kind = torch.device(self.device).type
        return torch.autocast(kind, torch.bfloat16, cache_enabled=keep_copies) if self.autocast else nullcontext()


def resolve_precision(wanted: str, device: str) -> Precision:
    """`auto` is bf16 autocast over fp32 weights on a GPU that has bf16, fp32 elsewhere: emulated bf16 is 8 times slower on a CPU."""
    if wanted == "auto":
        wanted = "bf16-mixed" if device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"
    return Precision(wanted, device)  # type: ignore[arg-type]


def packs(spec: TrainingSpec, precision: Precision) -> bool:
    """Whether rows are flattened. auto: in half precision on a GPU, where a kernel keeps them apart (elsewhere a block mask does)."""
    fast = precision.device.startswith("cuda") and precision.name != "fp32"
    return spec.batching == "packed" or (spec.batching == "auto" and fast)


def captures(spec: TrainingSpec, precision: Precision) -> bool:
    """Whether forward and backward are captured as CUDA graphs. auto: wherever they can be.

    Raises:
        StudyError: `always` where they cannot.
    """
    obstacles = {
        "execution.device is not cuda": not precision.device.startswith("cuda"),
        "training.batching is padded, or precision fp32": not packs(spec, precision) or precision.name == "fp32",
        "training.gradient_checkpointing is on": spec.gradient_checkpointing,
        "training.optimizer works inside the backward pass": spec.optimizer == "adamw_in_backward",
    }
    found = [reason for reason, there in obstacles.items() if there]
    if spec.capture == "always" and found:
        raise StudyError(f"training.capture is always, but {', and '.join(found)}; set capture to auto")
    return spec.capture != "never" and not found


def set_storage(model: nn.Module, precision: Precision) -> None:
    """Choose the dtype weights are kept in while training.

    Frozen weights go to bf16 under autocast where that loses nothing (a bf16 checkpoint), which halves them; trained weights stay fp32.
    """
    if precision.name == "bf16":
        for parameter in model.parameters():  # not model.to(): rotary frequencies are buffers and must stay fp32
            parameter.data = parameter.data.bfloat16()
    elif precision.autocast and isinstance(model, PeftModel):
        for parameter in model.parameters():
            if not parameter.requires_grad and torch.equal(parameter.data.bfloat16().float(), parameter.data):
                parameter.data = parameter.data.bfloat16()
        for module in model.modules():
            if isinstance(module, BaseTunerLayer):
                layer: Any = module
                layer.cast_input_dtype_enabled = False  # autocast does it; PEFT's own casts cost kernels at every adapted layer


@contextmanager
def in_fp32(model: nn.Module) -> Iterator[None]:
    """Compute in fp32 for a while (probes): each module's weights are fp32 while it runs, which is lossless for bf16.

    One module at a time, so that a frozen bf16 base never stands in memory as fp32; and every weight comes back in the very storage it
    had, because captured steps read it by address.
    """
    with ExitStack() as stack:
        adapter = {id(p) for p in model.parameters() if p.requires_grad} if isinstance(model, PeftModel) else set()
        # PEFT casts activations to the dtype of its small matrices before it runs them, so these are fp32 throughout.
        stack.enter_context(_widened([p for p in model.parameters() if id(p) in adapter]))
        for module in model.modules():
            own = [p for p in module.parameters(recurse=False) if p.dtype != torch.float32 and id(p) not in adapter]
            if own:
                _widen_while_running(module, own, stack)
        yield


@contextmanager
def _widened(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Put fp32 copies in place of parameters, then their own storage back."""
    stored = [p.data for p in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    try:
        yield
    finally:
        for parameter, data in zip(parameters, stored, strict=True):
            parameter.data = data


def _widen_while_running(module: nn.Module, parameters: list[nn.Parameter], stack: ExitStack) -> None:
    """`_widened` for the time of each forward pass of a module, until the stack closes."""
    running = ExitStack()
    stack.callback(module.register_forward_pre_hook(lambda *_: running.enter_context(_widened(parameters)), prepend=True).remove)
    stack.callback(module.register_forward_hook(lambda *_: running.close(), always_call=True).remove)
