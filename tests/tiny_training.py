"""A two-layer random Llama and rows of random tokens, for tests of training."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.train.batching import Row

PAD = 0


def tiny(**changes: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(**({"vocab_size": 61} | shape | changes)))


def some_rows(n: int, seed: int = 0) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        prompt, completion = int(rng.integers(2, 12)), int(rng.integers(1, 5))
        rows.append(Row(rng.integers(1, 61, prompt + completion).tolist(), prompt))
    return rows
