"""Held-out perplexity against one passage at a time, and its rows in the drift table."""

import numpy as np
import pytest
import torch

from tiny_training import tiny
from tunescope.drift import forgetting
from tunescope.drift.forgetting import HeldOutText, embedded_passages
from tunescope.drift.states import ProbeStates
from tunescope.drift.table import drift_table
from tunescope.errors import StepError
from tunescope.study.schema import DriftSpec


class Tokenizer:
    bos_token_id, pad_token_id = 1, 0

    def __call__(self, text, **_):
        return {"input_ids": [2 + ord(c) % 50 for c in text]}


TEXTS = ["a short one", "another passage, which is rather longer than the first", "x", "the last of them", "and a fifth"]


def test_losses_equal_one_passage_at_a_time_whatever_the_blocks(monkeypatch):
    model, text = tiny().eval(), HeldOutText(TEXTS, Tokenizer(), 40)
    expected = []
    for ids in text.tokens:
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1]
        expected += torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()
    assert text.losses(model, "cpu") == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr(forgetting, "BLOCK_VALUES", 3 * 61)
    assert text.losses(model, "cpu") == pytest.approx(expected, rel=1e-5)
    assert max(map(len, text.tokens)) == 40
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_forgetting_is_the_log_ratio_of_perplexities():
    rng = np.random.default_rng(0)
    layer = {(1, "mean"): rng.normal(size=(8, 3)).astype(np.float32)}
    base, tuned = (
        ProbeStates(layer, "a" * 64, "sst2", extras={"text_nll": np.array(v, np.float32)}) for v in ([1.0, 2.0, 3.0], [1.5, 2.0, 4.0])
    )
    spec = DriftSpec(primary_pooling="mean", blocks=2)
    found = drift_table(base, tuned, spec, scored=True).query("layer == -1").set_index("measure")
    assert found["value"].to_dict() == pytest.approx({"text_nll": 2.5, "text_perplexity": np.exp(2.5), "forgetting": 0.5})
    assert set(found["pooling"]) == {"held_out_text"}
    assert set(found["n"]) == {3}
    same = drift_table(base, base, spec, scored=True).set_index("measure")["value"]
    assert same["forgetting"] == 0.0


def test_the_embedded_excerpt_is_thirteen_passages_and_short_limits_are_refused():
    passages = embedded_passages()
    assert len(set(passages)) == 13
    assert min(map(len, passages)) > 200
    with pytest.raises(StepError, match="fewer than 2 tokens"):
        HeldOutText(passages, Tokenizer(), 1)
