"""Rows, their order over a whole run, batches, and the loss on completion tokens.

Legend: B rows, T padded length, M completion tokens of a batch, V vocabulary, d width.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from tunescope.errors import StudyError
from tunescope.models.tokenization import encode


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


def micro_batch_size(batch_size: int, wanted: int | None) -> int:
    """The largest divisor of the effective batch that is at most `wanted` (None: the whole batch)."""
    limit = min(wanted or batch_size, batch_size)
    return next(size for size in range(limit, 0, -1) if batch_size % size == 0)


def collate(rows: Sequence[Row], pad_id: int) -> dict[str, Any]:
    """Pad on the right to the longest row.

    Returns `input_ids` (B, T); `rows`, `columns`, `targets` (M,): where each completion token is predicted, and which it is;
    `lengths` (B,); `real_tokens`.
    Right padding needs no attention mask under causal attention, and no mask keeps the fast kernels.
    """
    longest = max(len(r.input_ids) for r in rows)
    ids = torch.tensor([r.input_ids + [pad_id] * (longest - len(r.input_ids)) for r in rows])
    places = [(b, t) for b, r in enumerate(rows) for t in range(r.prompt_length - 1, len(r.input_ids) - 1)]
    where_M2 = torch.tensor(places)
    return {
        "input_ids": ids,
        "rows": where_M2[:, 0],
        "columns": where_M2[:, 1],
        "targets": ids[where_M2[:, 0], where_M2[:, 1] + 1],
        "lengths": torch.tensor([len(r.input_ids) for r in rows]),
        "real_tokens": sum(len(r.input_ids) for r in rows),
    }


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
    with head_on(model, batch["rows"], batch["columns"]):
        logits_1MV = model(input_ids=batch["input_ids"], use_cache=False).logits
    return nn.functional.cross_entropy(logits_1MV[0].float(), batch["targets"], reduction="sum")


@torch.no_grad()
def selection_loss(model: Any, rows: Sequence[Row], pad_id: int, batch_size: int, device: str) -> float:
    """Mean loss in nats a completion token over a part, rows batched by length."""
    total, tokens = 0.0, 0
    by_length = sorted(rows, key=lambda r: len(r.input_ids))
    for start in range(0, len(by_length), batch_size):
        batch = collate(by_length[start : start + batch_size], pad_id)
        batch = {k: batch[k].to(device) for k in ("input_ids", "rows", "columns", "targets")}
        total += float(completion_loss(model, batch))
        tokens += batch["targets"].numel()
    return total / tokens
