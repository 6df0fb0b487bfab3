"""Adapters: counts, seeds, hashes, rank use, merging, and errors for what cannot be adapted."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.models.loading import load_model, parameter_counts, resolve_model
from tunescope.models.lora_utils import (
    adapter_config,
    adapter_norms,
    apply_adapter,
    base_sha256,
    last_token_logits,
    load_finetuned,
    merge_adapter,
    merge_equivalence,
    rank_utilisation,
)
from tunescope.study.schema import AdapterSpec, ModelSpec

SPROUT = resolve_model(ModelSpec(name="sprout-2m"))
PROMPTS = [[1, 50, 60, 70], [1, 99, 7], [1, 3000, 4000, 5000, 6000]]


def base() -> LlamaForCausalLM:
    return load_model(SPROUT, dtype=torch.float32, device="cpu")


def disturbed(seed: int = 7, spec: AdapterSpec | None = None):
    """An adapted model whose B is no longer zero."""
    model = apply_adapter(base(), spec or AdapterSpec(), seed)
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(0, 0.05, generator=generator)
    return model.eval()


def test_tinyllama_lora_has_the_known_parameter_count():
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
    )
    with torch.device("meta"):
        model = apply_adapter(LlamaForCausalLM(config), AdapterSpec(r=8, target_modules=("q_proj", "v_proj")), 0)
    trainable, total = parameter_counts(model)
    assert trainable == 1_126_400
    assert total - trainable == 1_100_048_384
    assert trainable / total == pytest.approx(0.00102, abs=5e-6)


def test_a_fresh_adapter_is_the_base_exactly_and_leaves_global_randomness_alone():
    model = base()
    before, plain = base_sha256(model), last_token_logits(model, PROMPTS)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    adapted = apply_adapter(model, AdapterSpec(), seed=7)
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(last_token_logits(adapted.eval(), PROMPTS), plain)
    assert base_sha256(adapted) == before
    assert adapter_norms(adapted)["B"] == 0 < adapter_norms(adapted)["A"]
    assert next(iter(rank_utilisation(adapted).values()))["effective_rank"] == 0


def test_initialisation_follows_its_seed_and_is_kaiming_uniform():
    first, again, other = (adapter_norms(apply_adapter(base(), AdapterSpec(), s))["A"] for s in (1, 1, 2))
    assert first == again != other
    a = next(p for n, p in apply_adapter(base(), AdapterSpec(), 1).named_parameters() if "lora_A" in n)
    bound = 1 / 128**0.5  # kaiming_uniform_(a=√5): U(±1/√fan_in)
    assert 0.95 * bound < a.abs().max() <= bound
    assert float(a.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


def test_base_hash_sees_one_changed_weight():
    model = disturbed()
    before = base_sha256(model)
    adapter_weight = next(p for n, p in model.named_parameters() if "lora_A" in n)
    adapter_weight.data[0, 0] += 1
    assert base_sha256(model) == before
    model.get_parameter("base_model.model.model.layers.3.mlp.up_proj.weight").data[5, 5] += 1e-6
    assert base_sha256(model) != before


def test_rank_utilisation_matches_the_full_svd():
    model = disturbed()
    name, row = next(iter(rank_utilisation(model).items()))
    layer = model.get_submodule(f"base_model.model.{name}")
    update = layer.scaling["default"] * layer.lora_B["default"].weight.double() @ layer.lora_A["default"].weight.double()
    values = torch.linalg.svdvals(update)
    assert row["singular_values"] == pytest.approx(values[:8].tolist(), rel=1e-9)
    shares = values[:8] / values[:8].sum()
    assert row["effective_rank"] == pytest.approx(float(torch.exp(-(shares * shares.log()).sum())), rel=1e-9)
    assert row["stable_rank"] == pytest.approx(float((values**2).sum() / values[0] ** 2), rel=1e-9)


def test_rank_one_update_uses_one_of_eight():
    model = disturbed()
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data[:, 1:] = 0
    row = next(iter(rank_utilisation(model).values()))
    assert row["effective_rank"] == pytest.approx(1) and row["utilisation"] == pytest.approx(1 / 8)


def test_merge_unload_and_reload(tmp_path):
    untouched = last_token_logits(base(), PROMPTS)
    model = disturbed()
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    adapted = last_token_logits(model, PROMPTS)
    assert (adapted - untouched).abs().max() > 0.1
    assert torch.equal(last_token_logits(model.unload(), PROMPTS), untouched)
    assert torch.equal(last_token_logits(load_finetuned(SPROUT, tmp_path, torch.float32, "cpu"), PROMPTS), adapted)
    merge_adapter(SPROUT, tmp_path / "adapter", tmp_path / "merged", dtype=torch.float32)
    merged = last_token_logits(load_finetuned(SPROUT, tmp_path / "merged", torch.float32, "cpu"), PROMPTS)
    result = merge_equivalence(adapted, merged)
    assert 0 < result.max_abs_logit_difference <= 1e-4 and result.label_agreement == 1 and result.n == 3
    rounded = merge_adapter(SPROUT, tmp_path / "adapter", tmp_path / "merged")  # overwrites, in the base's own dtype
    assert load_model(rounded, dtype=torch.float32, device="cpu").get_parameter("model.norm.weight").dtype == torch.float32
    assert '"bfloat16"' in (rounded / "config.json").read_text()


def test_merge_equivalence_counts_labels():
    a = torch.tensor([[0.0, 2.0, 9.0], [3.0, 1.0, 9.0]])
    b = torch.tensor([[0.0, 2.5, 9.0], [1.0, 3.0, 9.0]])
    assert merge_equivalence(a, b).label_agreement == 1
    assert merge_equivalence(a, b, [0, 1]).label_agreement == 0.5
    assert merge_equivalence(a, b).max_abs_logit_difference == 2.0


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (AdapterSpec(target_modules=("q_proj", "v_prj")), "'v_prj' matches no module .did you mean 'v_proj'"),
        (AdapterSpec(r=129), "adapter.r 129 is above the width"),
        (AdapterSpec().model_copy(update={"peft_type": "LORRA"}), "did you mean 'LORA'"),
        (AdapterSpec(options={"use_rslra": True}), "adapter.options.use_rslra.*did you mean 'use_rslora'"),
        (AdapterSpec(peft_type="LOHA", lora_alpha=32), "adapter.lora_alpha: LOHA has no such option"),
        (AdapterSpec(peft_type="PROMPT_TUNING"), "virtual tokens"),
        (AdapterSpec(options={"bias": "some"}), "PEFT refuses it on this model: Requested bias: some, is not implemented"),
    ],
)
def test_adapters_that_cannot_be_are_clear_errors(spec, message):
    with pytest.raises(StudyError, match=message):
        apply_adapter(base(), spec, 0)


@pytest.mark.parametrize(
    "spec",
    [
        AdapterSpec(options={"use_dora": True}),
        AdapterSpec(options={"use_rslora": True}),
        AdapterSpec(peft_type="LOHA"),
        AdapterSpec(peft_type="IA3", target_modules=("k_proj", "down_proj"), options={"feedforward_modules": ["down_proj"]}),
        AdapterSpec(target_modules="all-linear"),
    ],
    ids=["dora", "rslora", "loha", "ia3", "all-linear"],
)
def test_other_peft_methods_come_by_their_config(spec):
    model = base()
    before, plain = base_sha256(model), last_token_logits(model, PROMPTS)
    adapted = apply_adapter(model, spec, 0)
    trainable, total = parameter_counts(adapted)
    assert 0 < trainable < total / 4
    assert base_sha256(adapted) == before
    torch.testing.assert_close(last_token_logits(adapted.eval(), PROMPTS), plain, rtol=0, atol=1e-5)


def test_options_pass_through():
    config = adapter_config(AdapterSpec(r=4, lora_alpha=32, options={"use_rslora": True, "exclude_modules": ["x"]}))
    assert (config.r, config.lora_alpha, config.use_rslora, config.task_type) == (4, 32, True, "CAUSAL_LM")


def test_finetuned_folder_without_weights_says_so(tmp_path):
    with pytest.raises(PrerequisiteError, match="search run"):
        load_finetuned(SPROUT, tmp_path, torch.float32, "cpu")


def test_norms_of_a_full_model_are_those_of_its_weights():
    layer = nn.Linear(3, 4)
    expected = (layer.weight.square().sum() + layer.bias.square().sum()).sqrt()
    assert adapter_norms(layer) == {"all": pytest.approx(float(expected))}
