"""Forward hooks that pool hidden states where they arise, so that no full activation ever leaves its layer.

Legend: B batch, T padded length, d width, N probe examples.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunescope.drift.gram import StatesError


@dataclass(frozen=True)
class Batch:
    """One padded batch. Masks come from lengths, never from ids != pad: pad may equal eos."""

    rows: list[int]
    """Positions of its examples in the probe."""
    ids_BT: Tensor
    real_BT: Tensor
    averaged_BT: Tensor
    """Real tokens without position 0, which carries massive activations."""
    last_B: Tensor
    """Index of the last prompt token."""
    left: bool

    def inputs(self) -> dict[str, Tensor]:
        """Model inputs. Right padding needs no mask: a causal model never looks ahead."""
        if not self.left:
            return {"input_ids": self.ids_BT}
        positions = (self.real_BT.long().cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": self.ids_BT, "attention_mask": self.real_BT.long(), "position_ids": positions}


def make_batch(rows: list[int], tokens: list[list[int]], pad: int, left: bool, device: str) -> Batch:
    """Pad the token ids of some probe rows into one batch."""
    lengths = [len(tokens[row]) for row in rows]
    width = max(lengths)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    real = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        span = slice(width - lengths[i], width) if left else slice(0, lengths[i])
        ids[i, span] = torch.tensor(tokens[row])
        real[i, span] = True
    averaged = real.clone()
    averaged[torch.arange(len(rows)), real.int().argmax(dim=1)] = False
    last = torch.full((len(rows),), width - 1) if left else torch.tensor(lengths) - 1
    return Batch(rows, ids.to(device), real.to(device), averaged.to(device), last.to(device), left)


def base_of(model: nn.Module) -> Any:
    """The causal LM itself, inside a PEFT wrapper or not."""
    unwrap: Any = getattr(model, "get_base_model", None)
    return unwrap() if unwrap is not None else model


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """The list of decoder layers of a causal LM: the outermost module list as long as `num_hidden_layers`."""
    base = base_of(model)
    count = base.config.get_text_config().num_hidden_layers
    found = [(name.count("."), name, m) for name, m in base.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise StatesError(f"{type(base).__name__}: no list of {count} decoder layers found; probes need a Llama-like causal LM")
    return min(found, key=lambda entry: entry[:2])[2]


def hidden_of(value: Any) -> Tensor:
    """The hidden states of a layer's output: the tensor itself or the first of a tuple."""
    return value[0] if isinstance(value, tuple) else value


Keep = Callable[[int, Tensor], None]


@contextmanager
def watching(model: nn.Module, keep: Keep) -> Iterator[None]:
    """Call `keep(layer, hidden_BTd)` for layer 0 (input of the first decoder layer) and each decoder layer's output 1..L."""
    layers = decoder_layers(model)

    def embedding(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        keep(0, args[0] if args else kwargs["hidden_states"])

    def output(layer: int) -> Callable[..., None]:
        return lambda _module, _args, result: keep(layer, hidden_of(result))

    with ExitStack() as stack:
        stack.callback(layers[0].register_forward_pre_hook(embedding, with_kwargs=True).remove)
        for k, module in enumerate(layers, start=1):
            stack.callback(module.register_forward_hook(output(k)).remove)
        yield


@contextmanager
def head_of_last_token(model: nn.Module, batch: Callable[[], Batch]) -> Iterator[None]:
    """Let the output head see only each example's last prompt token: the logits become (B, 1, vocabulary).

    Without this the head costs as much as all layers of a small model.
    """
    head = base_of(model).get_output_embeddings()

    def narrow(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        now = batch()
        last = now.last_B + hidden.shape[1] - now.ids_BT.shape[1]  # virtual prompt tokens stand before the real ones
        return (hidden[torch.arange(hidden.shape[0], device=hidden.device), last][:, None], *args[1:])

    handle = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


@contextmanager
def exact_inference(model: nn.Module, device: str) -> Iterator[None]:
    """Evaluation mode, no gradients, no autocast, no TF32; every module's own mode is restored afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    precision = torch.get_float32_matmul_precision()
    model.eval()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), torch.autocast(device_type=torch.device(device).type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
        for module, mode in modes:
            module.training = mode
