"""What an engine's worker holds, in bytes. vLLM imports this by name in the worker, so that no function crosses between processes."""

from typing import Any

import torch


class HeldBytes:
    """Added to vLLM's worker class (`worker_extension_cls`); its methods are called by name (`collective_rpc`)."""

    get_model: Any  # the worker's

    def held_bytes(self) -> tuple[int, int]:
        """(weights, preallocated LoRA slots)."""
        return bytes_of(self.get_model())


def bytes_of(model: torch.nn.Module) -> tuple[int, int]:
    """(weights, preallocated LoRA slots) in bytes."""
    stacked: dict[int, torch.Tensor] = {}
    for module in model.modules():
        for name in ("lora_a_stacked", "lora_b_stacked"):
            held = getattr(module, name, ())
            stacked |= {t.data_ptr(): t for t in (held if isinstance(held, tuple | list) else [held]) if isinstance(t, torch.Tensor)}
    slots = sum(t.numel() * t.element_size() for t in stacked.values())
    own = {p.data_ptr(): p.numel() * p.element_size() for p in model.parameters() if p.numel()}
    repacked = sum(_repacked(module) for module in model.modules())
    return sum(size for address, size in own.items() if address not in stacked) + repacked, slots


def _repacked(module: torch.nn.Module) -> int:
    """Bytes of a linear layer whose weight the CPU engine repacked out of sight, leaving an empty parameter: told by its shape."""
    weight = module._parameters.get("weight")
    if weight is None or weight.numel():
        return 0
    sides: list[Any] = [module.input_size_per_partition, module.output_size_per_partition]
    return int(sides[0] * sides[1] * weight.element_size())
