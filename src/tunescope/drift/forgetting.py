"""Forgetting: what a model has lost on general text that no task trains on (paragraphs of 13 Wikipedia articles, CC BY-SA 4.0)."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from tunescope.drift.gram import Array
from tunescope.drift.hooks import Batch, base_of, exact_inference, make_batch
from tunescope.errors import StepError

BLOCK_VALUES = 2**23
"""Logits held at once: the head sees blocks of tokens, whatever the vocabulary."""
BATCH = 4


def embedded_passages() -> list[str]:
    """The embedded excerpt: the first paragraph of each of 13 SQuAD 1.1 dev articles, which are in no part of SQuAD 2.0's train or dev."""
    document = json.loads((resources.files("tunescope.drift") / "held_out_text.json").read_text(encoding="utf-8"))
    return [passage["text"] for passage in document["passages"]]


class HeldOutText:
    """Passages as token ids, each cut at `max_length` tokens, with a first token where the tokenizer has one."""

    def __init__(self, passages: Sequence[str], tokenizer: Any, max_length: int):
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        encoded = [tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"] for text in passages]
        self.tokens = [[*start, *ids][:max_length] for ids in encoded]
        self._pad = int(getattr(tokenizer, "pad_token_id", None) or 0)
        if any(len(ids) < 2 for ids in self.tokens):
            raise StepError(f"held-out text: a passage has fewer than 2 tokens at max_length {max_length}; raise tasks.<task>.max_length")

    def losses(self, model: nn.Module, device: str) -> Array:
        """Negative log-likelihood in nats of every token after a passage's first, in order, shape (tokens,) fp32."""
        head = base_of(model).get_output_embeddings()
        parts = []
        with exact_inference(model, device), _head_inputs(head) as seen:
            for start in range(0, len(self.tokens), BATCH):
                rows = list(range(start, min(start + BATCH, len(self.tokens))))
                batch = make_batch(rows, self.tokens, self._pad, False, device)
                model(**batch.inputs(), use_cache=False)
                parts.append((batch, seen.pop()))
        with exact_inference(model, device):
            return torch.cat([_batch_losses(head, batch, hidden) for batch, hidden in parts]).cpu().numpy()


def _batch_losses(head: nn.Module, batch: Batch, hidden_BTd: Tensor) -> Tensor:
    hidden_BTd = hidden_BTd[:, -batch.ids_BT.shape[1] :]  # virtual prompt tokens stand before the real ones
    real = batch.real_BT[:, 1:]
    states, targets = hidden_BTd[:, :-1][real], batch.ids_BT[:, 1:][real]
    size = max(1, BLOCK_VALUES // getattr(head, "out_features", 2**15))
    blocks = zip(states.split(size), targets.split(size), strict=True)
    return torch.cat([nn.functional.cross_entropy(head(h).float(), t, reduction="none") for h, t in blocks])


@contextmanager
def _head_inputs(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what the output head is given, and let it compute the last position only."""
    seen: list[Tensor] = []

    def narrow(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(args[0])
        return (args[0][:, -1:], *args[1:])

    handle = head.register_forward_pre_hook(narrow)
    try:
        yield seen
    finally:
        handle.remove()
