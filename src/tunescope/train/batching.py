"""Rows, their order over a whole run, batches padded or packed, and the loss on completion tokens.

Legend: B rows, T padded length (packed: tokens of all rows together), M completion tokens of a batch, S sequences, V vocabulary, d width.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from tunescope.errors import StudyError
from tunescope.models.tokenization import encode

from .attention import isolating

IGNORED = -100
"""Target of a place that only fills a bucket; cross-entropy skips it."""


def stream_seed(seed: int, stream: str) -> int:
    """An independent 32-bit seed for one purpose (`order`, `init`, `dropout`), so that changing one stream leaves the others alone."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Row:
    """One tokenised training example."""

    input_ids: list[int]
    prompt_length: int


@dataclass(frozen=True)
class Truncation:
    """What a length limit cost one part of the data."""

    examples: int
    truncated: int
    answers_lost: int


def encode_rows(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Any], max_length: int, *, end: bool) -> tuple[list[Row], Truncation]:
    """Tokenise labelled examples with their completions; counts truncated prompts and answers that truncation made unreachable."""
    missing = next((e.id for e in examples if e.completion is None), None)
    if missing is not None:
        raise StudyError(f"example {missing} has no label, so it cannot be trained on; prepare the data again")
    encoded = [encode(tokenizer, e, max_length, completion=e.completion, end=end) for e in examples]
    rows = [Row(e.input_ids, e.prompt_length) for e in encoded]
    return rows, Truncation(len(rows), sum(e.truncated for e in encoded), sum(e.answer_lost for e in encoded))


def run_length(examples: int, batch_size: int, max_epochs: float, max_steps: int | None) -> tuple[int, int]:
    """(optimizer steps, rows seen) of a whole run: at most `max_epochs`, at most `max_steps`; only the last step may be short."""
    rows = max(round(examples * max_epochs), 1)
    if max_steps is not None:
        rows = min(rows, max_steps * batch_size)
    return -(-rows // batch_size), rows


def run_order(examples: int, rows: int, seed: int) -> np.ndarray:
    """Row numbers in the order of the whole run: one fresh permutation an epoch, drawn from `seed` alone.

    The same for every method, learning rate and batch size at equal seed, so that runs pair up.
    """
    epochs = -(-rows // examples)
    shuffled = [np.random.default_rng([seed, epoch]).permutation(examples) for epoch in range(epochs)]
    return np.concatenate(shuffled)[:rows]


def longest_first(order: np.ndarray, rows: Sequence[Row], batch_size: int) -> np.ndarray:
    """Sort each effective batch by length: the same examples a step, but micro-batches of similar length, which saves padding."""
    lengths = np.array([len(r.input_ids) for r in rows])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return np.concatenate([batch[np.argsort(-lengths[batch], kind="stable")] for batch in batches])


class RunDataset(Dataset[Row]):
    """All rows of a run in training order: one pass over it is the run, however many epochs that is."""

    def __init__(self, rows: Sequence[Row], order: np.ndarray):
        self._rows, self._order = rows, order

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Row:
        return self._rows[self._order[index]]

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(r.input_ids) for r in self._rows)


def micro_batch_size(batch_size: int, wanted: int | None) -> int:
    """The largest divisor of the effective batch that is at most `wanted` (None: the whole batch)."""
    limit = min(wanted or batch_size, batch_size)
    return next(size for size in range(limit, 0, -1) if batch_size % size == 0)


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """Pad on the right to the longest row.

    Returns `input_ids` (B, T); `rows`, `columns`, `targets` (M,): where each completion token is predicted, and which it is;
    `real_BT`: which tokens are no padding.
    Right padding needs no attention mask under causal attention, and no mask keeps the fast kernels.
    """
    lengths = [len(r.input_ids) for r in rows]
    longest = max(lengths)
    ids = torch.tensor([r.input_ids + [pad_id] * (longest - n) for r, n in zip(rows, lengths, strict=True)])
    places = [(b, t) for b, r in enumerate(rows) for t in range(r.prompt_length - 1, len(r.input_ids) - 1)]
    where_M2 = torch.tensor(places)
    return {
        "input_ids": ids,
        "rows": where_M2[:, 0],
        "columns": where_M2[:, 1],
        "targets": ids[where_M2[:, 0], where_M2[:, 1] + 1],
        "real_BT": torch.arange(longest) < torch.tensor(lengths)[:, None],
    }


@dataclass(frozen=True)
class Shape:
    """The sizes of a packed batch, all a kernel launch depends on."""

    tokens: int
    sequences: int
    completions: int

    @classmethod
    def bucket(cls, tokens: int, sequences: int, completions: int) -> "Shape":
        """The next larger shape of a coarse grid: at most a sixteenth more tokens (32 at the least), one more sequence to hold them."""
        step = max(32, 1 << max(tokens.bit_length() - 5, 0))
        return cls(-(-tokens // step) * step, -(-(sequences + 1) // 8) * 8, max(8, 1 << (completions - 1).bit_length()))


def pack(rows: Sequence[Row], pad_id: int, shape: Shape | None = None, longest: int | None = None) -> dict[str, Any]:
    """Put rows one after the other, without padding between them.

    Returns `input_ids`, `position_ids` (1, T), positions restarting with each row; `rows`, `columns`, `targets` (M,) as `collate`;
    `cu_seqlens` (S + 1,) int32, where each row begins; `longest` row; `real_BT`.

    Args:
        shape: fill up to these sizes: with a sequence of padding, empty sequences, and completion places whose target is IGNORED.
        longest: what to give as the longest row, the same for all batches of a run.
    """
    lengths = [len(r.input_ids) for r in rows]
    *starts, total = accumulate(lengths, initial=0)
    columns = [start + t for start, r in zip(starts, rows, strict=True) for t in range(r.prompt_length - 1, len(r.input_ids) - 1)]
    targets = [token for r in rows for token in r.input_ids[r.prompt_length :]]
    shape = shape or Shape(total, len(rows), len(columns))
    filler, empty = shape.tokens - total, shape.completions - len(columns)
    ids = [token for r in rows for token in r.input_ids] + [pad_id] * filler
    positions = [t for n in [*lengths, filler] for t in range(n)]
    return {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "rows": torch.zeros(shape.completions, dtype=torch.long),
        "columns": torch.tensor(columns + [0] * empty),
        "targets": torch.tensor(targets + [IGNORED] * empty),
        "cu_seqlens": torch.tensor([*starts, total, *[shape.tokens] * (shape.sequences - len(rows))], dtype=torch.int32),
        "longest": longest or max(lengths),
        "real_BT": torch.arange(shape.tokens)[None] < total,
    }


def micro_batches(rows: Sequence[Row], most_rows: int, most_tokens: int | None, packed: bool) -> list[Sequence[Row]]:
    """Cut an effective batch, in its order, into parts of at most so many rows and tokens (padding counts where there is any)."""
    parts: list[list[Row]] = [[]]
    for row in rows:
        wider = [*parts[-1], row]
        lengths = [len(r.input_ids) for r in wider]
        tokens = sum(lengths) if packed else max(lengths) * len(wider)
        if parts[-1] and (len(wider) > most_rows or (most_tokens is not None and tokens > most_tokens)):
            parts.append([row])
        else:
            parts[-1] = wider
    return [part for part in parts if part]


@dataclass(frozen=True)
class EffectiveBatch:
    """The rows of one optimizer step in micro-batches. No mapping and no list: accelerate would move it to the GPU and wait."""

    parts: list[Sequence[Row]]
    real_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Batching:
    """How the rows of one optimizer step become micro-batches."""

    pad_id: int
    packed: bool
    most_rows: int
    most_tokens: int | None = None

    def __call__(self, rows: Sequence[Row]) -> EffectiveBatch:
        """The Trainer's collator."""
        return EffectiveBatch(
            micro_batches(rows, self.most_rows, self.most_tokens, self.packed),
            sum(len(r.input_ids) for r in rows),
            sum(len(r.input_ids) - r.prompt_length for r in rows),
        )

    def batch(self, rows: Sequence[Row]) -> dict[str, Any]:
        """One micro-batch, on the CPU."""
        return pack(rows, self.pad_id) if self.packed else collate(rows, self.pad_id)


def on_device(batch: dict[str, Any], device: Any) -> dict[str, Any]:
    """A batch with its tensors on a device, without waiting for what the GPU still has to do."""
    pinned = torch.device(device).type == "cuda"
    return {k: (v.pin_memory() if pinned else v).to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


@contextmanager
def head_on(model: Any, rows: Tensor, columns: Tensor) -> Iterator[None]:
    """Let the output head see only chosen positions: logits become (1, M, V) instead of (B, T, V).

    A hook on the head, and not `logits_to_keep`: that keeps the same columns of every row, which is most of them when prompts
    differ in length. Whatever a model does to its logits afterwards (scaling, soft caps) still applies.
    """

    def select(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][rows, columns][None], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def completion_loss(model: Any, batch: dict[str, Any]) -> Tensor:
    """Summed cross-entropy (nats, fp32) of a batch's completion tokens; divide by their number for the mean."""
    with head_on(model, batch["rows"], batch["columns"]), isolating(model, batch) as extra:
        logits_1MV = model(input_ids=batch["input_ids"], use_cache=False, **extra).logits
    return nn.functional.cross_entropy(logits_1MV[0].float(), batch["targets"], reduction="sum", ignore_index=IGNORED)


@torch.no_grad()
def selection_loss(model: Any, rows: Sequence[Row], batching: Batching, device: str) -> float:
    """Mean loss in nats a completion token over a part, rows batched by length."""
    losses, tokens = [], 0
    by_length = sorted(rows, key=lambda r: len(r.input_ids))
    for part in micro_batches(by_length, batching.most_rows, batching.most_tokens, batching.packed):
        batch = on_device(batching.batch(part), device)
        losses.append(completion_loss(model, batch))
        tokens += batch["targets"].numel()
    return sum(torch.stack(losses).tolist()) / tokens
