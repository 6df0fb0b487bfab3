"""Score a model on a task: label log-probabilities for classification, greedy answers for questions.

Legend: B rows of a batch, T padded length, L labels, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from tunescope.data.tasks import Example, ScoredRow, Task
from tunescope.data.tasks.squad_v2 import exact_match, token_f1
from tunescope.models.tokenization import completion_ids, encode
from tunescope.records import Metric

from .batching import Row, collate, head_on
from .generation import generate

T = TypeVar("T")


@dataclass(frozen=True)
class Prediction:
    """One test example with what a system said about it."""

    example_id: str
    group: str
    article: str | None
    label: str | None
    golds: tuple[str, ...]
    prediction: str
    """A label name, or an answer where the empty text abstains."""
    correct: float
    """1.0 or 0.0: right label, or exact match."""
    f1: float | None = None
    """Token F1 of an answer; None for classification."""
    no_answer_probability: float | None = None
    label_logprobs: tuple[float, ...] | None = None
    """Nats, in the order of `Task.labels`."""

    @property
    def scored(self) -> ScoredRow:
        return ScoredRow(self.example_id, self.label, self.golds, self.prediction, self.no_answer_probability)


def label_prediction(example: Example, label: str, logprobs: tuple[float, ...] | None = None) -> Prediction:
    """A predicted label beside its gold."""
    correct = float(label == example.label)
    return Prediction(example.id, example.group, example.article, example.label, example.golds, label, correct, label_logprobs=logprobs)


def answer_prediction(example: Example, answer: str, no_answer_probability: float | None = None) -> Prediction:
    """An answer (empty: abstains) beside its golds, with exact match and token F1."""
    match, f1 = exact_match(answer, example.golds), token_f1(answer, example.golds)
    return Prediction(example.id, example.group, example.article, example.label, example.golds, answer, match, f1, no_answer_probability)


def evaluate(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    task: Task,
    *,
    max_length: int,
    batch_size: int,
    device: str,
) -> tuple[list[Prediction], list[Metric]]:
    """Predictions in the order of `examples`, and the task's test metrics. Decoding is greedy; nothing is drawn at random."""
    score = answer_questions if task.kind == "qa" else score_labels
    predictions = score(model, tokenizer, examples, task, max_length, batch_size, device)
    return predictions, task.score([p.scored for p in predictions])


def score_labels(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    task: Task,
    max_length: int,
    batch_size: int,
    device: str,
) -> list[Prediction]:
    """Predict the label whose verbaliser is the likeliest completion (the first of equals).

    A label's score is the sum of its tokens' log-probabilities (nats, fp32 log-softmax). Labels of one token each share one pass over the
    prompt, with the head at the last prompt token only. Rows are padded on the right, where causal attention needs no mask.
    """
    tails = [completion_ids(tokenizer, verbaliser) for verbaliser in task.verbalisers]
    prompts = [encode(tokenizer, e, max_length, completion=None, end=False).input_ids for e in examples]
    pad_id = int(tokenizer.pad_token_id)
    with evaluating(model):
        if all(len(tail) == 1 for tail in tails):
            labels_L = torch.tensor([tail[0] for tail in tails], device=device)
            scores = _by_length(prompts, len, batch_size, lambda rows: _next_token_scores(model, rows, labels_L, pad_id, device))
        else:
            rows = [Row(prompt + tail, len(prompt)) for prompt in prompts for tail in tails]
            sums = _by_length(rows, lambda r: len(r.input_ids), batch_size, lambda rows: _completion_scores(model, rows, pad_id, device))
            scores = [sums[i : i + len(tails)] for i in range(0, len(sums), len(tails))]
    return [label_prediction(e, task.labels[_largest(s)], tuple(s)) for e, s in zip(examples, scores, strict=True)]


def answer_questions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    task: Task,
    max_length: int,
    batch_size: int,
    device: str,
) -> list[Prediction]:
    """Answer greedily up to the end token or a line break; the abstaining word becomes the empty answer.

    The no-answer probability is that of the whole completion " unknown" with its end token. Both come from one pass over the prompt.
    """
    prompts = [encode(tokenizer, e, max_length, completion=None, end=False).input_ids for e in examples]
    with evaluating(model):
        found = _by_length(prompts, len, batch_size, lambda rows: generate(model, tokenizer, rows, device))
    return [answer_prediction(e, g.answer, g.no_answer_probability) for e, g in zip(examples, found, strict=True)]


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; the model's mode comes back afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _largest(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)


def _by_length(items: Sequence[T], length: Callable[[T], int], batch_size: int, score: Callable[[list[T]], list]) -> list:
    """Apply `score` to batches of similar length, longest first; results in input order.

    Longest first shows at once whether memory suffices; when it does not, batches are halved from there on.
    """
    order = sorted(range(len(items)), key=lambda i: (-length(items[i]), i))
    results: list[Any] = [None] * len(items)
    start = 0
    while start < len(order):
        chosen = order[start : start + batch_size]
        try:
            scored = score([items[i] for i in chosen])
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
            batch_size = -(-batch_size // 2)
            torch.cuda.empty_cache()
            continue
        for i, result in zip(chosen, scored, strict=True):
            results[i] = result
        start += len(chosen)
    return results


def _next_token_scores(model: Any, prompts: list[list[int]], labels_L: Tensor, pad_id: int, device: str) -> list[list[float]]:
    """Log-probabilities of single-token labels after each prompt."""
    longest = max(map(len, prompts))
    ids_BT = torch.tensor([p + [pad_id] * (longest - len(p)) for p in prompts], device=device)
    last_B = torch.tensor([len(p) - 1 for p in prompts], device=device)
    with head_on(model, torch.arange(len(prompts), device=device), last_B):
        logits_BV = model(input_ids=ids_BT, use_cache=False).logits[0]
    return logits_BV.float().log_softmax(-1)[:, labels_L].tolist()


def _completion_scores(model: Any, rows: list[Row], pad_id: int, device: str) -> list[float]:
    """Summed log-probability of each row's completion."""
    batch = {k: v.to(device) for k, v in collate(rows, pad_id).items() if isinstance(v, Tensor)}
    with head_on(model, batch["rows"], batch["columns"]):
        logits_MV = model(input_ids=batch["input_ids"], use_cache=False).logits[0]
    chosen_M = logits_MV.float().log_softmax(-1).gather(1, batch["targets"][:, None])[:, 0]
    counts = [len(r.input_ids) - r.prompt_length for r in rows]
    return [float(part.sum()) for part in chosen_M.split(counts)]


PREDICTION_SCHEMA = pa.schema(
    [
        ("example_id", pa.string()), ("group", pa.string()), ("article", pa.string()), ("label", pa.string()),
        ("golds", pa.list_(pa.string())), ("prediction", pa.string()), ("correct", pa.float64()), ("f1", pa.float64()),
        ("no_answer_probability", pa.float64()), ("label_logprobs", pa.list_(pa.float64())),
    ]
)  # fmt: skip


def write_predictions(path: Path, predictions: Sequence[Prediction], systems: Sequence[str] | None = None) -> None:
    """Write predictions as parquet; the bytes depend on the content alone.

    Args:
        systems: a `system` column, one name a row, for files that hold several systems.
    """
    rows = [asdict(p) for p in predictions]
    table = pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA)
    if systems is not None:
        table = table.append_column("system", pa.array(systems, pa.string()))
    pq.write_table(table, path)


def read_predictions(path: Path) -> list[Prediction]:
    """Read predictions back; a `system` column is left out."""
    rows = pq.read_table(path, columns=[f.name for f in fields(Prediction)]).to_pylist()
    for row in rows:
        row["golds"] = tuple(row["golds"] or ())
        row["label_logprobs"] = None if row["label_logprobs"] is None else tuple(row["label_logprobs"])
    return [Prediction(**row) for row in rows]
