"""Training steps as CUDA graphs: at small batches a step is bound by kernel launches, and a graph launches them all at once.

Only forward and backward of a micro-batch are captured, one graph for each bucket of shapes; clipping, optimizer, schedule, logging and
checkpoints stay the Trainer's. A bucket runs plainly the first time, which also warms it up, is captured the second time, and replayed from
then on: the same kernels on the same shapes, so that neither the moment of capture nor a resumed run changes a number. Dropout draws from
torch's default generator, whose offset a replay moves on as the plain step would. Plain runs work in the memory that the graphs share: what
a step needs (autocast's copy of every weight, above all) is set aside once and not once for each.

Legend: T tokens of all rows together, M completion tokens, S sequences.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunescope.errors import StepError

from .batching import EffectiveBatch, Row, Shape, pack

MOST_TOKENS = 4096
"""Micro-batches above are bound by arithmetic: they run plainly and unfilled."""
MOST_GRAPHS = 48
BLOCK = 512
"""What PyTorch's allocator rounds a small tensor up to, bytes."""
FILLER = 256
"""Longest sequence of padding that `Shape.bucket` can ask for up to MOST_TOKENS."""


@dataclass(frozen=True)
class _Key:
    """What a graph is made for."""

    shape: Shape
    first: bool
    """Whether it overwrites the gradient or adds to it."""
    watched: bool


@dataclass(frozen=True)
class _Graph:
    graph: Any
    inputs_N: Tensor
    loss: Tensor
    seen: dict[str, Tensor]
    """Layer statistics, where the graph writes them."""


class CapturedSteps:
    """Accumulates the gradient of an effective batch; the weights must keep their storage from the first step on.

    On a CPU everything runs plainly, but with the same filled shapes and gradient buffers, which is what tests can compare.
    """

    def __init__(
        self, model: nn.Module, pad_id: int, longest: int, loss: Callable[[dict[str, Any]], Tensor], watch: Any, *, required: bool = False
    ):
        self._pad_id, self._longest, self._loss, self._watch = pad_id, max(longest, FILLER), loss, watch
        self._required, self.refused = required, ""
        self._trained = [p for p in model.parameters() if p.requires_grad]
        self._device = self._trained[0].device
        self._gradients: dict[nn.Parameter, Tensor] = {}
        self._first, self._touched = True, set[nn.Parameter]()
        self._buffers: dict[nn.Parameter, Tensor] = {}
        self._runs: Counter[_Key] = Counter()
        self._graphs: dict[_Key, _Graph] = {}
        self._cuda = self._device.type == "cuda"
        self._stream = torch.cuda.Stream(self._device) if self._cuda else None
        self._pool: Any = torch.cuda.MemPool() if self._cuda else None
        self._handles = [p.register_post_accumulate_grad_hook(self._keep) for p in self._trained]

    @property
    def graphs(self) -> int:
        """Graphs captured so far."""
        return len(self._graphs)

    def run(self, batch: EffectiveBatch, step: int) -> Tensor:
        """Mean loss of an effective batch (nats a completion token), its gradient left in `grad` of every trained weight."""
        if self._stream is None:
            loss = self._accumulate(batch, step)
        else:  # a graph is captured on a stream of its own; the plain runs that warm it up belong there too
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(self._stream):
                loss = self._accumulate(batch, step)
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        for parameter, gradient in self._gradients.items():
            parameter.grad = gradient
        return loss

    def _accumulate(self, batch: EffectiveBatch, step: int) -> Tensor:
        if not self._buffers:
            self._buffers = {p: torch.empty_like(p) for p in self._trained}
        for parameter in self._trained:
            parameter.grad = None
        losses = [self._micro(rows, batch.completion_tokens, step, first=i == 0) for i, rows in enumerate(batch.parts)]
        return torch.stack(losses).sum()

    def _micro(self, rows: Sequence[Row], completion_tokens: int, step: int, *, first: bool) -> Tensor:
        tokens = sum(len(r.input_ids) for r in rows)
        places = sum(len(r.input_ids) - r.prompt_length for r in rows)
        small = tokens <= MOST_TOKENS
        shape = Shape.bucket(tokens, len(rows), places) if small else Shape(tokens, len(rows), places)
        values = _flat(pack(rows, self._pad_id, shape), tokens, completion_tokens)
        key = _Key(shape, first, self._watch is not None and self._watch.due(step))
        graph = self._graphs.get(key)
        if graph is None and small and self._cuda and self._runs[key] and len(self._graphs) < MOST_GRAPHS and not self.refused:
            graph = self._capture(key, values, step)
        self._runs[key] += 1
        if graph is None:
            inputs = values.to(self._device, non_blocking=True)
            return self._plain(key, inputs, step) if small and self._pool is not None else self._work(key, inputs, step)
        graph.inputs_N.copy_(values, non_blocking=True)
        graph.graph.replay()
        if key.watched:
            self._watch.values.update(graph.seen)
        return graph.loss.clone()

    def _plain(self, key: _Key, inputs_N: Tensor, step: int) -> Tensor:
        """Work outside a graph, in the graphs' memory; what outlives the step is copied out of it, since the next replay overwrites it."""
        earlier: dict[str, Tensor] = {}
        if key.watched:
            earlier, self._watch.values = self._watch.values, {}
        before = torch.cuda.memory_allocated(self._device)
        # A pool serves one thread: the backward pass must stay in this one.
        with torch.cuda.use_mem_pool(self._pool, self._device), torch.autograd.set_multithreading_enabled(False):
            loss = self._work(key, inputs_N, step)
        kept = [loss := loss.clone()]
        if key.watched:
            seen = self._watch.values = {name: value.clone() for name, value in self._watch.values.items()}
            kept += seen.values()
            self._watch.values = earlier | seen
        if torch.cuda.memory_allocated(self._device) - before > sum(-(-t.nbytes // BLOCK) * BLOCK for t in kept):
            self._graphs.clear()  # the model keeps something it made in this step, maybe where a graph works: later graphs go round it
        return loss

    def _capture(self, key: _Key, values: Tensor, step: int) -> _Graph | None:
        """Record a graph without running it; None, and never again, when this model cannot be captured."""
        inputs = values.to(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool.id, stream=self._stream, capture_error_mode="thread_local"):
                loss = self._work(key, inputs, step)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.refused = " ".join(str(error).split())[:200]
            if self._required:
                raise StepError(f"training.capture: this step cannot be captured ({self.refused}); set it to auto or never") from error
            return None
        self._graphs[key] = _Graph(graph, inputs, loss, dict(self._watch.values) if key.watched else {})
        return self._graphs[key]

    def _work(self, key: _Key, inputs_N: Tensor, step: int) -> Tensor:
        """Forward and backward; everything derived from the inputs is derived here, so that a replay derives it anew."""
        batch, completion_tokens = _batch(inputs_N, key.shape, self._longest)
        if self._watch is not None:
            self._watch.look(step, batch)
        self._first = key.first
        self._touched.clear()
        loss = self._loss(batch) / completion_tokens
        loss.backward()
        if key.first:
            for parameter in self._gradients.keys() - self._touched:
                self._gradients[parameter].zero_()
        return loss.detach()

    def _keep(self, parameter: nn.Parameter) -> None:
        """Move a fresh gradient into its buffer, whose address all graphs share, and free it at once."""
        if parameter.grad is None:
            return
        if parameter not in self._gradients:
            self._gradients[parameter] = self._buffers[parameter]
        gradient = self._gradients[parameter]
        self._touched.add(parameter)
        with torch.no_grad():
            gradient.copy_(parameter.grad) if self._first else gradient.add_(parameter.grad)
        parameter.grad = None

    def close(self) -> None:
        """Release graphs, their memory and the gradients."""
        for handle in self._handles:
            handle.remove()
        self._graphs.clear()
        self._pool = None
        self._gradients.clear()
        self._buffers.clear()


def _flat(batch: dict[str, Any], tokens: int, completion_tokens: int) -> Tensor:
    """Everything a step reads as one tensor of whole numbers: one copy brings it to the GPU; pinned, so that nothing waits for it."""
    parts = [batch[name].flatten().long() for name in ("input_ids", "position_ids", "columns", "targets", "cu_seqlens")]
    flat_N = torch.cat([*parts, torch.tensor([tokens, completion_tokens])])
    return flat_N.pin_memory() if torch.cuda.is_available() else flat_N


def _batch(flat_N: Tensor, shape: Shape, longest: int) -> tuple[dict[str, Any], Tensor]:
    """The batch in a flat tensor, and the completion tokens of its effective batch."""
    sizes = [shape.tokens, shape.tokens, shape.completions, shape.completions, shape.sequences + 1, 1, 1]
    ids_T, positions_T, columns_M, targets_M, offsets, tokens, completion_tokens = flat_N.split(sizes)
    batch = {
        "input_ids": ids_T[None],
        "position_ids": positions_T[None],
        "rows": torch.zeros_like(columns_M),
        "columns": columns_M,
        "targets": targets_M,
        "cu_seqlens": offsets.int(),
        "longest": longest,
        "real_BT": torch.arange(shape.tokens, device=flat_N.device)[None] < tokens,
    }
    return batch, completion_tokens[0]
