"""Turn an example into token ids: prompt and completion are tokenised apart, and only the passage is ever shortened."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from tunescope.errors import StudyError

COMPLETION_ROOM = 32
"""Tokens kept free for the completion (an eighth of the limit when that is less). The same whatever the completion is, so that training,
scoring, probing and serving cut a prompt at the same place and its length tells nothing about the label."""


class PromptParts(Protocol):
    """The prompt is `before + passage + after`."""

    @property
    def id(self) -> str: ...
    @property
    def before(self) -> str: ...
    @property
    def passage(self) -> str: ...
    @property
    def after(self) -> str: ...
    @property
    def golds(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt, with its completion when one was given."""

    input_ids: list[int]
    prompt_length: int
    """The completion starts here."""
    truncated: bool
    answer_lost: bool
    """Truncation removed the last occurrence of every gold answer."""


def completion_room(max_length: int) -> int:
    """Tokens that prompts leave free within a sequence limit."""
    return min(COMPLETION_ROOM, max_length // 8)


def completion_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a completion as a continuation.

    A SentencePiece tokenizer puts a space mark before any text it is given, so " yes" alone would get two; after an anchor it gets one.
    """
    anchor = _plain(tokenizer, ":")
    joined = _plain(tokenizer, ":" + text)
    return joined[len(anchor) :] if joined[: len(anchor)] == anchor else _plain(tokenizer, text)


def encode(tokenizer: PreTrainedTokenizerBase, example: PromptParts, max_length: int, *, completion: str | None, end: bool) -> Encoded:
    """Encode one example.

    Args:
        max_length: limit of prompt and completion together, in tokens.
        completion: text to append (with its leading space), None for the prompt alone.
        end: append the end token after the completion.

    Raises:
        StudyError: the prompt without its passage is longer than the limit, or text contains the padding token.
    """
    tail = completion_ids(tokenizer, completion) if completion is not None else []
    tail += [_end_token(tokenizer)] if end else []
    limit = max_length - max(completion_room(max_length), len(tail))
    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompt = head + _plain(tokenizer, example.before + example.passage + example.after)
    passage = example.passage
    if len(prompt) > limit:
        passage, prompt = _shortened(tokenizer, example, head, limit, max_length)
    if tokenizer.pad_token_id in prompt or tokenizer.pad_token_id in tail:
        raise StudyError(f"example {example.id}: its text contains the padding token {tokenizer.pad_token!r}, which must never occur")
    truncated = len(passage) < len(example.passage)
    lost = truncated and bool(example.golds) and not any(gold in passage for gold in example.golds)
    return Encoded(input_ids=prompt + tail, prompt_length=len(prompt), truncated=truncated, answer_lost=lost)


def _plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of plain text; a special token written out in a data set is text like any other."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]


def _end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise StudyError("the tokenizer has no end token, so answers could not end")
    return int(tokenizer.eos_token_id)


def _shortened(
    tokenizer: PreTrainedTokenizerBase, example: PromptParts, head: Sequence[int], limit: int, max_length: int
) -> tuple[str, list[int]]:
    """Cut the passage at a token boundary, from its end, until the prompt fits; merges at the cut can change the count, hence the loop."""
    settings = {"add_special_tokens": False, "split_special_tokens": True, "return_offsets_mapping": True, "verbose": False}
    offsets = tokenizer(example.passage, **settings)["offset_mapping"]
    keep = len(offsets)
    while True:
        passage = example.passage[: offsets[keep - 1][1]] if keep > 0 else ""
        prompt = [*head, *_plain(tokenizer, example.before + passage + example.after)]
        excess = len(prompt) - limit
        if excess <= 0:
            return passage, prompt
        if keep == 0:
            raise StudyError(
                f"max_length {max_length}: the prompt of example {example.id} takes {len(prompt)} tokens without its passage and "
                f"{max_length - limit} are kept for the completion; raise tasks.<task>.max_length to at least {max_length + excess}"
            )
        keep = max(keep - excess, 0)
