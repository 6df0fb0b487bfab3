"""The ablation studies: what varies, what stays, how much is run, and what each method trains on TinyLlama."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.models.loading import parameter_counts
from tunescope.models.lora_utils import apply_adapter
from tunescope.study.load import load_study
from tunescope.study.plan import build_plan

TARGETS = {"qv": ("q_proj", "v_proj"), "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj")}


@pytest.fixture(scope="module")
def tinyllama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4
    )


def test_one_factor_at_a_time_from_the_centre():
    methods = {n: s.adapter for n, s in load_study("ablations").study.methods.items()}
    assert methods.pop("full") is None
    assert {n: (a.r, a.lora_alpha, a.target_modules) for n, a in methods.items()} == {
        "lora": (8, 16, TARGETS["qv"]),
        "rank_4": (4, 8, TARGETS["qv"]),
        "rank_16": (16, 32, TARGETS["qv"]),
        "alpha_8": (8, 8, TARGETS["qv"]),
        "alpha_32": (8, 32, TARGETS["qv"]),
        "attention": (8, 16, TARGETS["qkvo"]),
        "all_linear": (8, 16, "all-linear"),
    }
    assert len({(a.peft_type, a.lora_dropout, tuple(a.options)) for a in methods.values()}) == 1


@pytest.mark.parametrize(("name", "methods"), [("ablations", 8), ("peft_variants", 6)])
def test_size_of_the_plan(name, methods):
    """Two tasks; per method three rates searched with seed 42, then three seeds."""
    study = load_study(name).study
    assert (tuple(study.tasks), study.seeds, study.serving) == (("mrpc", "sst2"), (42, 1337, 2024), None)
    steps = build_plan(study).steps
    assert sum(s.role == "search" for s in steps) == sum(s.role == "final" for s in steps) == 2 * methods * 3
    assert len(steps) == 2 * methods * 6 + 2 * 4 + 1  # data, baseline, base-probe, drift of each task; correlate


@pytest.mark.parametrize(
    ("study", "method", "parameters"),
    [
        # 22 layers, width 2048, keys and values 256, MLP 5632; a matrix of rank r has r (in + out)
        ("ablations", "lora", 22 * 8 * (4096 + 2304)),
        ("ablations", "rank_4", 22 * 4 * (4096 + 2304)),
        ("ablations", "rank_16", 22 * 16 * (4096 + 2304)),
        ("ablations", "alpha_32", 22 * 8 * (4096 + 2304)),
        ("ablations", "attention", 22 * 8 * (2 * 4096 + 2 * 2304)),
        ("ablations", "all_linear", 22 * 8 * (2 * 4096 + 2 * 2304 + 3 * 7680)),
        ("peft_variants", "dora", 22 * (8 * (4096 + 2304) + 2048 + 256)),
        ("peft_variants", "rslora", 22 * 8 * (4096 + 2304)),
        ("peft_variants", "ia3", 22 * (256 + 256 + 5632)),
    ],
)
def test_trainable_parameters_on_tinyllama(tinyllama, study, method, parameters):
    adapter = load_study(study).study.methods[method].adapter
    with torch.device("meta"):
        model = apply_adapter(LlamaForCausalLM(tinyllama), adapter, 0)
    assert parameter_counts(model)[0] == parameters
