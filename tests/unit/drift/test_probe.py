"""The probe on tiny random models: pooling against a plain forward pass, padding, modes, PEFT wrappers, and the hash."""

import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tunescope.drift import probe as probe_module
from tunescope.drift.gram import StatesError
from tunescope.drift.hooks import decoder_layers
from tunescope.drift.table import drift_table
from tunescope.errors import StepError
from tunescope.study.schema import DriftSpec

SPEC = DriftSpec(probe_examples=20, batch_size=4, blocks=2)


@dataclass(frozen=True)
class Example:
    id: str
    before: str
    passage: str
    after: str
    golds: tuple[str, ...] = ()


def llama(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=60,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model():
    return llama()


def examples(n=14):
    rng = np.random.default_rng(0)
    return [Example(f"validation/{i}", "", " ".join(map(str, rng.integers(3, 60, rng.integers(3, 12)))), " 7") for i in range(n)]


def encode(_tokenizer, example, max_length, *, completion, end):
    assert completion is None
    assert end is False
    ids = [1, *map(int, (example.before + example.passage + example.after).split())]
    return SimpleNamespace(input_ids=ids[:max_length], truncated=len(ids) > max_length)


@pytest.fixture(autouse=True)
def plain_tokens(monkeypatch):
    monkeypatch.setattr(probe_module, "encode", encode)


def make(spec=SPEC, rows=None, max_length=32):
    tokenizer = SimpleNamespace(pad_token_id=0)
    return probe_module.Probe("sst2", rows or examples(), tokenizer, max_length, spec, "cpu")


def test_pooling_equals_one_prompt_at_a_time(model):
    probe = make()
    states = probe.states(model)
    for row in (0, 5, 13):
        ids = torch.tensor([probe.tokens[row]])
        with torch.no_grad():
            hidden = model(ids, output_hidden_states=True).hidden_states
        for k in range(3):  # hidden_states[-1] is after the final norm, ours is before it
            assert np.allclose(states.layers[k, "last_prompt_token"][row], hidden[k][0, -1], atol=1e-6)
            assert np.allclose(states.layers[k, "mean"][row], hidden[k][0, 1:].mean(0), atol=1e-6)
        normed = model.model.norm(torch.tensor(states.layers[3, "last_prompt_token"][row]))
        assert np.allclose(normed.detach(), hidden[3][0, -1], atol=1e-5)
    assert states.n_layers == 3
    assert all(v.shape == (14, 16) and v.dtype == np.float32 for v in states.layers.values())


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 14}, {"padding": "left"}, {"padding": "left", "batch_size": 5}])
def test_batch_size_and_padding_do_not_matter(model, options):
    probe = make()
    table = drift_table(probe.states(model), probe.states(model, **options), SPEC, scored=False)
    drifts = table[table["measure"] == "cka_drift_debiased"]["value"]
    assert drifts.max() < 1e-11
    assert table[table["measure"] == "relative_displacement"]["value"].max() < 1e-5


def test_repeating_a_probe_is_bitwise_equal(model):
    probe = make()
    a, b = probe.states(model), probe.states(model)
    assert all((a.layers[k] == b.layers[k]).all() for k in a.layers)
    assert all((a.extras[k] == b.extras[k]).all() for k in a.extras)


WAITS = ("cpu", "tolist", "item", "numpy", "nonzero", "to", "__bool__", "__index__", "__int__", "__float__")


@pytest.mark.parametrize("on_device", [False, True])
def test_the_probe_waits_for_the_device_before_and_after_its_batches_only(model, monkeypatch, on_device):
    """A wait a layer or a batch leaves a GPU idle until the host has queued its next kernels; `transformers` has its own."""
    waits = []

    def counted(name, plain):
        def call(*args, **kwargs):
            if "tunescope" in sys._getframe(1).f_code.co_filename:
                waits.append(name)
            return plain(*args, **kwargs)

        return call

    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    monkeypatch.setattr(torch, "tensor", counted("tensor", torch.tensor))
    seen = []
    first = model.register_forward_pre_hook(lambda *_: seen.append(len(waits)))
    last = model.register_forward_hook(lambda *_: seen.append(len(waits)))
    make().states(model, internals=False, batch_size=2, on_device=on_device)
    first.remove()
    last.remove()
    assert len(seen) == 2 * 7
    assert len(set(seen)) == 1, waits[seen[0] : seen[-1]]
    assert 0 < seen[-1] < len(waits)  # copies before the first batch, and at least one check after the last


def test_states_left_on_the_device_give_the_same_table(model):
    probe = make()
    base, tuned = probe.states(model), llama(seed=3)
    here, there = probe.states(tuned), probe.states(tuned, on_device=True)
    assert all(isinstance(v, torch.Tensor) for v in (*there.layers.values(), *there.extras.values()))
    keys = ["layer", "pooling", "measure", "block"]
    a = drift_table(base, here, SPEC, scored=False).set_index(keys)["value"].sort_index()
    b = drift_table(base, there, SPEC, scored=False, device="cpu:0").set_index(keys)["value"].sort_index()
    assert a.index.equals(b.index)
    assert a.to_numpy() == pytest.approx(b.to_numpy(), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("options", [{}, {"padding": "left", "batch_size": 5}])
def test_outputs_of_the_first_prompts_only_stay_within_their_budget(model, monkeypatch, options):
    everything = make().states(model).extras["log_probs"]
    monkeypatch.setattr(probe_module, "OUTPUT_BYTES", 4 * 60 * 6)
    kept = make().states(model, **options).extras["log_probs"]
    assert kept == pytest.approx(everything[:6], abs=1e-5)


def test_a_fresh_lora_drifts_exactly_zero_and_a_moved_one_does_not(model):
    probe = make()
    base = probe.states(model)
    wrapped = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
    wrapped.train()
    table = drift_table(base, probe.states(wrapped), SPEC, scored=True)
    assert (table[table["measure"] == "cka_drift_debiased"]["value"] == 0).all()
    assert wrapped.base_model.model.model.layers[0].self_attn.q_proj.lora_dropout["default"].training
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    moved = drift_table(base, probe.states(wrapped), SPEC, scored=True)
    drift = moved[(moved["measure"] == "cka_drift_debiased") & (moved["layer"] > 0)]["value"]
    assert (drift > 1e-4).all()
    assert (moved[(moved["layer"] == 0) & (moved["measure"] == "relative_displacement")]["value"] == 0).all()


def test_modes_and_hooks_are_restored(model):
    def hooks():
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]

    make().states(model)  # transformers may install its own output hooks at the first call
    before = hooks()
    model.train()
    model.model.layers[1].eval()
    make().states(model)
    assert model.training
    assert not model.model.layers[1].training
    assert hooks() == before
    model.eval()


def test_next_token_and_token_states(model):
    probe = make()
    extras = probe.states(model).extras
    with torch.no_grad():
        output = model(torch.tensor([probe.tokens[3]]), output_hidden_states=True)
    assert np.allclose(extras["log_probs"][3], output.logits[0, -1].log_softmax(-1), atol=1e-5)
    start = sum(len(ids) - 1 for ids in probe.tokens[:3])
    here = extras["tokens.2"][start : start + len(probe.tokens[3]) - 1]
    assert np.allclose(here, output.hidden_states[2][0, 1:], atol=1e-6)
    assert len(extras["tokens.2"]) == sum(len(ids) - 1 for ids in probe.tokens)


def test_token_states_stay_within_their_budget(model, monkeypatch):
    monkeypatch.setattr(probe_module, "TOKEN_BYTES", 4 * 16 * 4 * 30)  # 30 tokens over 4 layers
    probe = make()
    kept = probe.states(model).extras["tokens.2"]
    assert len(kept) == 30
    for row, found in probe_module.token_sample([len(ids) for ids in probe.tokens], 30).items():
        with torch.no_grad():
            hidden = model(torch.tensor([probe.tokens[row]]), output_hidden_states=True).hidden_states[2][0]
        for position, place in found:
            assert np.allclose(kept[place], hidden[position], atol=1e-6)


def test_the_token_sample_is_spread_over_all_prompts_and_never_holds_position_0():
    lengths = [2, 50, 7, 2, 100, 30]
    everything = probe_module.token_sample(lengths, 10**6)
    assert {row: [p for p, _ in found] for row, found in everything.items()} == {r: list(range(1, n)) for r, n in enumerate(lengths)}
    assert [place for found in everything.values() for _, place in found] == list(range(sum(lengths) - 6))
    some = probe_module.token_sample(lengths, 37)
    assert sum(len(found) for found in some.values()) == 37
    assert all(1 <= p < lengths[row] for row, found in some.items() for p, _ in found)
    shares = {row: len(found) / 37 for row, found in some.items()}
    assert all(abs(shares.get(r, 0) - (n - 1) / (sum(lengths) - 6)) <= 1 / 37 for r, n in enumerate(lengths))


def test_non_finite_states_name_run_and_layer():
    broken = llama()
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(StatesError, match=r"train/sst2/full: layer 2 \(\w+\) has NaN or infinite"):
        make().states(broken, name="train/sst2/full")


def test_the_hash_fixes_ids_texts_tokens_and_truncation():
    sha = make().sha256
    assert sha == make().sha256
    rows = examples()
    for other in (
        rows[:-1],
        rows[::-1],
        [replace(rows[0], id="test/0"), *rows[1:]],
        [replace(rows[0], passage="3 4 5"), *rows[1:]],
    ):
        assert make(rows=other).sha256 != sha
    assert make(max_length=6).sha256 != sha
    assert make(max_length=6).truncated > 0
    assert make(rows=[replace(r, golds=("x",)) for r in rows]).sha256 == sha  # labels are never read
    assert make(spec=SPEC.model_copy(update={"batch_size": 7})).sha256 == sha


def test_too_small_probes_are_refused():
    with pytest.raises(StepError, match="at least 4 examples, got 3"):
        make(rows=examples(3))
    with pytest.raises(StepError, match="fewer than 2 tokens"):
        make(max_length=1)


def test_internals_equal_a_plain_eager_pass_and_leave_the_implementation(model):
    probe = make(SPEC.model_copy(update={"internals": True}))
    before = model.config._attn_implementation
    extras = probe.states(model).extras
    assert model.config._attn_implementation == before == "sdpa"
    model.set_attn_implementation("eager")
    seen = {}
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _m, args: seen.update(x=args[0]))
    with torch.no_grad():
        weights = model(torch.tensor([probe.tokens[2]]), output_attentions=True).attentions
    handle.remove()
    model.set_attn_implementation(before)
    length = len(probe.tokens[2])
    assert np.allclose(extras["attention.2"][2, :, :length], weights[1][0, :, -1], atol=1e-6)
    assert (extras["attention.2"][2, :, length:] == 0).all()
    assert np.allclose(extras["attention.1"].sum(-1), 1, atol=1e-5)
    assert np.allclose(extras["mlp.2"][2], seen["x"][0, -1], atol=1e-6)
    tuned = probe.states(llama(seed=1))
    table = drift_table(probe.states(model), tuned, SPEC, scored=True)
    assert {"attention_js", "mlp_cosine"} < set(table["measure"])
    assert "attention.1" not in probe.states(model, internals=False).extras


def test_activations_report_the_largest_against_the_median(model):
    probe = make()
    table = probe.activations(model).set_index("layer")
    largest = []
    for ids in probe.tokens:
        with torch.no_grad():
            largest.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2].abs().max())
    assert table.loc[2, "max_abs"] == pytest.approx(float(max(largest)), rel=1e-5)
    assert (table["max_over_median"] > 1).all()
    assert list(table.index) == [0, 1, 2, 3]


def test_other_causal_models_are_probed_too():
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    probe = make(SPEC.model_copy(update={"internals": True}))
    states = probe.states(gpt2)
    with torch.no_grad():
        hidden = gpt2(torch.tensor([probe.tokens[4]]), output_hidden_states=True).hidden_states
    assert np.allclose(states.layers[1, "mean"][4], hidden[1][0, 1:].mean(0), atol=1e-5)
    assert states.extras["mlp.1"].shape == (14, 64)


def test_a_model_without_decoder_layers_is_refused():
    model = llama()
    model.config.num_hidden_layers = 9
    with pytest.raises(StatesError, match="no list of 9 decoder layers"):
        decoder_layers(model)
