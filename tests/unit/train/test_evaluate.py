"""Scores against brute force: one full forward pass an example, no cache, no batch, no padding."""

import copy
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tunescope.data.tasks import Example, get_task
from tunescope.models.loading import load_model, load_tokenizer, resolve_model
from tunescope.models.lora_utils import apply_adapter
from tunescope.models.tokenization import completion_ids, encode
from tunescope.study.schema import AdapterSpec, ModelSpec
from tunescope.train.evaluate import (
    _by_length,
    _next_token_scores,
    answer_prediction,
    answer_questions,
    evaluate,
    label_prediction,
    read_predictions,
    score_labels,
    write_predictions,
)  # fmt: skip
from tunescope.train.generation import MAX_NEW_TOKENS

TEXT = "the film is a long and rather dull story about two sisters who never quite say what they mean but the ending is fine"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def base():
    path = resolve_model(ModelSpec(name="sprout-2m"))
    torch.set_num_threads(1)
    return load_model(path, dtype=torch.float32, device="cpu"), load_tokenizer(path)


@pytest.fixture(scope="module")
def reviews() -> list[Example]:
    """Reviews of 1 to 23 words, labels alternating, not sorted by length."""
    task, order = get_task("sst2"), random.Random(0)
    rows = [{"sentence": " ".join(WORDS[: 1 + (7 * i) % 23]), "label": i % 2, "example_id": f"test/{i}"} for i in range(17)]
    order.shuffle(rows)
    return [task.example(row) for row in rows]


@pytest.fixture(scope="module")
def questions() -> list[Example]:
    task = get_task("squad_v2")
    facts = [("Rollo", "Normandy", "911"), ("Ada", "London", "1843"), ("Maria", "Warsaw", "1867")]
    found = []
    for i in range(8):
        name, place, year = facts[i % 3]
        context = f"{name} was a leader who came to {place} in {year}. " + " ".join(WORDS[: 2 * i]) + "."
        answers = {"text": [place], "answer_start": [0]} if i % 2 else {"text": [], "answer_start": []}
        row = {"context": context, "question": f"Where did {name} come to?", "answers": answers, "title": name, "id": str(i)}
        found.append(task.example(row | {"example_id": f"test/{i}"}))
    return found


def brute_force(model, tokenizer, example: Example, completion: list[int]) -> float:
    """Log-probability of completion tokens by one full pass over prompt and completion."""
    prompt = encode(tokenizer, example, 512, completion=None, end=False).input_ids
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0].double()
    logp_TV = logits_TV - logits_TV.logsumexp(-1, keepdim=True)
    return sum(float(logp_TV[len(prompt) - 1 + k, token]) for k, token in enumerate(completion))


SINGLE, SEVERAL = (" negative", " positive"), (" not good at all", " great")


@pytest.mark.parametrize("verbalisers", [SINGLE, SEVERAL], ids=["single tokens", "several tokens"])
def test_label_scores_equal_brute_force(base, reviews, verbalisers):
    model, tokenizer = base
    lengths = {len(completion_ids(tokenizer, v)) for v in verbalisers}
    assert (lengths == {1}) == (verbalisers == SINGLE)
    task = replace(get_task("sst2"), verbalisers=verbalisers)
    for batch_size in (1, 4, 64):
        predictions = score_labels(model, tokenizer, reviews, task, 512, batch_size, "cpu")
        assert [p.example_id for p in predictions] == [e.id for e in reviews]
        for example, p in zip(reviews, predictions, strict=True):
            expected = [brute_force(model, tokenizer, example, completion_ids(tokenizer, v)) for v in verbalisers]
            assert p.label_logprobs == pytest.approx(expected, abs=2e-5)
            assert p.prediction == task.labels[expected.index(max(expected))]
            assert p.correct == float(p.prediction == example.label)


def test_what_pads_a_row_does_not_matter(base):
    model, _ = base
    prompts, labels = [[1, 40, 50, 60], [1, 70]], torch.tensor([300, 301])
    with torch.no_grad():
        zeros, others = (_next_token_scores(model, prompts, labels, pad, "cpu") for pad in (0, 999))
    assert zeros == others


def test_an_adapted_model_is_scored_with_its_adapter(base, reviews):
    path = resolve_model(ModelSpec(name="sprout-2m"))
    model = apply_adapter(load_model(path, dtype=torch.float32, device="cpu"), AdapterSpec(), 3)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    model.train()  # dropout would make scores random
    task, tokenizer = get_task("sst2"), base[1]
    first, again = (score_labels(model, tokenizer, reviews, task, 512, 4, "cpu") for _ in range(2))
    assert first == again and model.training
    untuned = score_labels(base[0], tokenizer, reviews, task, 512, 4, "cpu")
    assert all(abs(a.label_logprobs[0] - b.label_logprobs[0]) > 1e-3 for a, b in zip(first, untuned, strict=True))
    model.eval()
    expected = brute_force(model, tokenizer, reviews[0], completion_ids(tokenizer, " negative"))
    assert first[0].label_logprobs[0] == pytest.approx(expected, abs=5e-5)


def greedy(model, tokenizer, example: Example) -> tuple[str, str]:
    """The plainest greedy loop: a full pass for every token. Returns the first line and why it ended."""
    ids = encode(tokenizer, example, 512, completion=None, end=False).input_ids
    start, reason = len(ids), "length"
    for _ in range(MAX_NEW_TOKENS):
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            reason = "end"
            break
        ids.append(token)
        if "\n" in tokenizer.decode(ids[start:]):
            reason = "line break"
            break
    text = tokenizer.decode(ids[start:]).split("\n")[0].strip()
    return ("" if text == "unknown" else text), reason


def test_batched_answers_equal_the_plain_loop(base, questions):
    model, tokenizer = base
    expected = [greedy(model, tokenizer, q) for q in questions]
    assert {"length", "line break"} <= {reason for _, reason in expected}, "the examples no longer cover both endings"
    abstain = [*completion_ids(tokenizer, " unknown"), tokenizer.eos_token_id]
    no_answer = [torch.tensor(brute_force(model, tokenizer, q, abstain)).exp().item() for q in questions]
    for batch_size in (1, 5):
        found = answer_questions(model, tokenizer, questions, get_task("squad_v2"), 512, batch_size, "cpu")
        assert [p.prediction for p in found] == [text for text, _ in expected]
        assert [p.no_answer_probability for p in found] == pytest.approx(no_answer, rel=1e-3)
        assert [p.example_id for p in found] == [q.id for q in questions]


def test_answers_end_at_the_end_token(base, questions):
    model, tokenizer = base
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(completion_ids(tokenizer, " the")[0])  # a word this model likes to say
    expected = [greedy(model, tokenizer, q) for q in questions]
    assert "end" in {reason for _, reason in expected}
    found = answer_questions(model, tokenizer, questions, get_task("squad_v2"), 512, 5, "cpu")
    assert [p.prediction for p in found] == [text for text, _ in expected]


def test_evaluate_scores_by_the_tasks_own_metrics(base, reviews, questions):
    model, tokenizer = base
    for name, examples in (("sst2", reviews), ("squad_v2", questions[:4])):
        predictions, metrics = evaluate(model, tokenizer, examples, get_task(name), max_length=512, batch_size=8, device="cpu")
        found = {m.name: m.value for m in metrics}
        key = "accuracy" if name == "sst2" else "exact_match"
        assert found[key] == pytest.approx(sum(p.correct for p in predictions) / len(examples))
        assert metrics[0].split == "test" and metrics[0].n == len(examples)
    assert found["f1"] == pytest.approx(sum(p.f1 for p in predictions) / 4)
    assert {"best_f1", "best_exact"} <= found.keys()
    assert not any(p.requires_grad and p.grad is not None for p in model.parameters())


def test_running_out_of_memory_halves_the_batch_and_loses_nothing():
    sizes = []

    def score(items):
        sizes.append(len(items))
        if len(items) > 3:
            raise torch.OutOfMemoryError
        return [10 * i for i in items]

    assert _by_length(list(range(11)), lambda i: i % 4, 8, score) == [10 * i for i in range(11)]
    assert sizes[:3] == [8, 4, 2] and max(sizes[2:]) == 2


def test_a_batch_of_one_that_does_not_fit_is_an_error():
    def score(items):
        raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        _by_length([1, 2], lambda i: i, 2, score)


def test_predictions_survive_a_round_trip(tmp_path):
    label = Example("test/0", "", "x", "", None, "positive", group="g")
    asked = Example("test/1", "", "x", "", None, None, golds=("Normandy", "in Normandy"), group="a/p", article="a")
    blank = Example("test/2", "", "x", "", None, None, group="a/q", article="a")
    rows = [
        label_prediction(label, "negative", (-0.25, -1.5)),
        answer_prediction(asked, "the Normandy coast", 0.125),
        answer_prediction(blank, ""),
    ]
    assert [(r.correct, r.f1) for r in rows] == [(0.0, None), (0.0, pytest.approx(2 / 3)), (1.0, 1.0)]
    write_predictions(tmp_path / "a.parquet", rows)
    write_predictions(tmp_path / "b.parquet", rows)
    assert read_predictions(tmp_path / "a.parquet") == rows
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_several_systems_share_a_file(tmp_path):
    import pandas as pd

    example = SimpleNamespace(id="test/0", group="g", article=None, label="positive", golds=())
    rows = [label_prediction(example, name) for name in ("positive", "negative")]
    write_predictions(tmp_path / "p.parquet", rows, ["majority", "base"])
    frame = pd.read_parquet(tmp_path / "p.parquet")
    assert dict(zip(frame.system, frame.correct, strict=True)) == {"majority": 1.0, "base": 0.0}
    assert read_predictions(tmp_path / "p.parquet") == rows
