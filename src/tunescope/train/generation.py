"""Greedy answers in batches, with a key-value cache, and the probability of abstaining from the same pass over the prompt.

Legend: B rows of a batch, T padded length, K tokens of the abstaining completion, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunescope.data.tasks.squad_v2 import ABSTAIN, answer_from_text
from tunescope.models.tokenization import completion_ids

from .batching import head_on

MAX_NEW_TOKENS = 30


@dataclass(frozen=True)
class Answer:
    """A generated answer (empty: abstains) and the probability of the abstaining completion."""

    answer: str
    no_answer_probability: float


@dataclass
class _Prefix:
    """A padded batch that has been read: the cache, and where the next token of each row goes."""

    cache: Any
    mask_BT: Tensor | None
    """Real tokens of the prompts; None when all are equally long: then nothing is padded, and no mask keeps the fast kernels."""
    lengths_B: Tensor
    logits_BV: Tensor


def generate(model: Any, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], device: str) -> list[Answer]:
    """Answer each prompt greedily, up to the end token, a line break or MAX_NEW_TOKENS tokens.

    Prompts are padded on the right, so that reading them needs no mask; later tokens all go to the columns after the longest prompt, and a
    mask hides the padding between. Positions count real tokens only, so a row's answer does not depend on its batch.
    """
    prefix = _read(model, prompts, int(tokenizer.pad_token_id), device)
    abstain = [*completion_ids(tokenizer, f" {ABSTAIN}"), int(tokenizer.eos_token_id)]
    probabilities = _completion_probability(model, prefix, abstain, device)
    texts = _continue(model, tokenizer, prefix, device)
    return [Answer(answer_from_text(text), p) for text, p in zip(texts, probabilities, strict=True)]


def _read(model: Any, prompts: Sequence[Sequence[int]], pad_id: int, device: str) -> _Prefix:
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([list(p) + [pad_id] * (longest - len(p)) for p in prompts], device=device)
    lengths_B = torch.tensor([len(p) for p in prompts], device=device)
    rows = torch.arange(len(prompts), device=device)
    with head_on(model, rows, lengths_B - 1):
        out = model(input_ids=ids_BT, use_cache=True)
    mask = None if min(map(len, prompts)) == longest else (torch.arange(longest, device=device) < lengths_B[:, None]).long()
    return _Prefix(out.past_key_values, mask, lengths_B, out.logits[0].float())


def _step(model: Any, prefix: _Prefix, cache: Any, ids_BK: Tensor, done: int) -> Tensor:
    """Logits (B, K, V) after feeding K tokens to a cache that holds the prompt and `done` further tokens."""
    size = ids_BK.shape[1]
    positions_BK = prefix.lengths_B[:, None] + done + torch.arange(size, device=ids_BK.device)
    mask = prefix.mask_BT
    if mask is not None:
        mask = torch.cat([mask, mask.new_ones(len(mask), done + size)], dim=1)
    out = model(input_ids=ids_BK, attention_mask=mask, position_ids=positions_BK, past_key_values=cache, use_cache=True)
    return out.logits.float()


def _completion_probability(model: Any, prefix: _Prefix, completion: list[int], device: str) -> list[float]:
    """Probability of one fixed completion after each prompt. Works on a copy of the cache, since not every cache can be cut back."""
    total_B = prefix.logits_BV.log_softmax(-1)[:, completion[0]]
    if len(completion) > 1:
        ids_BK = torch.tensor([completion[:-1]], device=device).expand(len(total_B), -1)
        logits_BKV = _step(model, prefix, copy.deepcopy(prefix.cache), ids_BK, 0)
        targets_BK1 = torch.tensor([completion[1:]], device=device).expand(len(total_B), -1)[..., None]
        total_B = total_B + logits_BKV.log_softmax(-1).gather(2, targets_BK1)[..., 0].sum(1)
    return total_B.exp().tolist()


def _continue(model: Any, tokenizer: PreTrainedTokenizerBase, prefix: _Prefix, device: str) -> list[str]:
    """Greedy continuations as text, without end token."""
    end, breaks = int(tokenizer.eos_token_id), _LineBreaks(tokenizer)
    rows: list[list[int]] = [[] for _ in prefix.lengths_B]
    open_rows = set(range(len(rows)))
    logits_BV = prefix.logits_BV
    for done in range(MAX_NEW_TOKENS):
        next_B = logits_BV.argmax(-1)
        for i, token in enumerate(next_B.tolist()):
            if i not in open_rows:
                continue
            if token != end:
                rows[i].append(token)
            if token == end or token in breaks:
                open_rows.remove(i)
        if not open_rows or done == MAX_NEW_TOKENS - 1:
            break
        logits_BV = _step(model, prefix, prefix.cache, next_B[:, None], done)[:, -1]
    texts = [tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]
    return [str(text) for text in texts]


class _LineBreaks:
    """Tokens whose text holds a line break, found out as they occur."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer, self._known = tokenizer, dict[int, bool]()

    def __contains__(self, token: int) -> bool:
        if token not in self._known:
            self._known[token] = "\n" in self._tokenizer.decode([token])
        return self._known[token]
