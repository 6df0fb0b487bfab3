"""AdamW inside the backward pass: each weight is updated as soon as its gradient is there, and the gradient is freed at once.

Gradients of the whole model never stand in memory together (fp32: 4 bytes a trained weight). Clipping needs their common norm before the
first update, so the backward pass runs twice over one forward pass: once for the norms, once for the updates (Lv et al. 2023, LOMO,
section 3.3). The numbers are those of plain AdamW, bit for bit; the price is one more backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class InBackward:
    """Hooks on every trained weight. An effective batch must be one micro-batch: a weight is updated by the first gradient it gets."""

    def __init__(self, model: nn.Module, max_norm: float, optimizer: Callable[[], Any]):
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._max_norm, self._optimizer = max_norm, optimizer
        self._updating = False
        self.norms: dict[nn.Parameter, Tensor] = {}
        """Gradient norms of the last step, before clipping."""
        self.norm = torch.zeros(())
        """Of all of them together."""
        self._hooks = [p.register_post_accumulate_grad_hook(self._take) for p in self._trained]

    def step(self, loss: Tensor) -> None:
        """Backward twice: norms, then updates clipped to the common norm."""
        self.norms = {}
        loss.backward(retain_graph=True)
        self.norm = torch.linalg.vector_norm(torch.stack([self.norms[p] for p in self._trained if p in self.norms]))
        self._factor = (self._max_norm / (self.norm + 1e-6)).clamp(max=1.0)  # as torch.nn.utils.clip_grad_norm_
        self._updating = True
        try:
            loss.backward()
        finally:
            self._updating = False

    def close(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def _take(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter) and parameter.grad is not None
        if self._updating:
            parameter.grad.mul_(self._factor)
            self._optimizer().step()  # passes over weights without a gradient, which are all the others
        else:
            self.norms[parameter] = torch.linalg.vector_norm(parameter.grad)
        parameter.grad = None
