import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.serve import prepare
from tunescope.serve.prepare import (
    ask_log_probabilities,
    copy_adapter,
    exact_prompt,
    folder_sha256,
    kv_cache_bytes,
    read_adapter,
    trained_runs,
)
from tunescope.study.arms import parse_arm
from tunescope.study.inputs import ServeInputs
from tunescope.study.schema import ModelSpec, ServingSpec


def config(**changes):
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(vocab_size=61, **(shape | changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(config()).save_pretrained(folder)
    return folder


def adapter(folder, *, rank=8, width=32, peft_type="LORA", module="model.layers.0.self_attn.q_proj", **extra):
    folder.mkdir(parents=True)
    key = f"base_model.model.{module}"
    tensors = {f"{key}.lora_A.weight": torch.ones(rank, width), f"{key}.lora_B.weight": torch.ones(32, rank)}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": peft_type, "r": rank, **extra}))
    return folder


def test_prompts_have_the_exact_length_and_go_round():
    texts = [[1, 2, 3], [4, 5], [6]]
    assert exact_prompt(texts, 0, 4, [9]) == [9, 1, 2, 3]
    assert exact_prompt(texts, 1, 8, [9]) == [9, 4, 5, 6, 1, 2, 3, 4]
    assert exact_prompt(texts, 2, 3, []) == [6, 1, 2]


def test_a_fitting_adapter_is_described(base, tmp_path):
    found = read_adapter("sst2", adapter(tmp_path / "a", rank=4, rank_pattern={"v_proj": 16}), base)
    assert (found.rank, found.modules, found.bytes) == (16, ("q_proj",), 4 * (4 * 32 + 32 * 4))
    assert found.parameters == 4 * 32 + 32 * 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"width": 64}, "does not fit the base model"),
        ({"module": "model.layers.7.self_attn.q_proj"}, "does not fit the base model"),
        ({"peft_type": "IA3"}, "plain LoRA, not IA3"),
        ({"use_dora": True}, "not DoRA"),
    ],
)
def test_an_adapter_that_vllm_cannot_serve_on_this_base_is_refused(base, tmp_path, changes, why):
    with pytest.raises(PrerequisiteError, match=why):
        read_adapter("sst2", adapter(tmp_path / "a", **changes), base)


def test_a_missing_adapter_file_is_refused(base, tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(PrerequisiteError, match=r"adapter 'sst2' .* cannot be read"):
        read_adapter("sst2", tmp_path / "a", base)


def test_a_copy_has_other_weights_in_another_place(base, tmp_path):
    source = adapter(tmp_path / "a")
    copy_adapter(source, tmp_path / "b", 1.01)
    old, new = (load_file(tmp_path / f / "adapter_model.safetensors") for f in "ab")
    for key in old:
        torch.testing.assert_close(new[key], old[key] * (1.01 if "lora_B" in key else 1.0))
    assert folder_sha256(source) != folder_sha256(tmp_path / "b")
    assert read_adapter("b", tmp_path / "b", base).rank == 8


def test_the_digest_of_a_folder_follows_its_content(base, tmp_path):
    assert folder_sha256(adapter(tmp_path / "a")) == folder_sha256(adapter(tmp_path / "b"))
    assert folder_sha256(tmp_path / "a") != folder_sha256(adapter(tmp_path / "c", rank=4))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"target_modules": ["v_proj", "q_proj"]}, True),  # a set, whose order changes from process to process
        ({"exclude_modules": ["b", "a"]}, True),
        ({"peft_version": "0.99"}, True),
        ({"target_modules": ["q_proj"]}, False),
        ({"lora_alpha": 1}, False),
    ],
)
def test_the_digest_of_an_adapter_is_that_of_its_settings_not_of_who_wrote_them(tmp_path, change, same):
    for name, changes in (("a", {}), ("b", change)):
        file = adapter(tmp_path / name) / "adapter_config.json"
        settings = {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["a", "b"], "peft_version": "0.21.2", "lora_alpha": 16}
        file.write_text(json.dumps(json.loads(file.read_text()) | settings | changes))
    assert (folder_sha256(tmp_path / "a") == folder_sha256(tmp_path / "b")) is same


def test_asks_are_log_probabilities_of_the_last_token(base):
    model = LlamaForCausalLM.from_pretrained(base).eval()
    ids = [3, 7, 11, 2]
    with torch.no_grad():
        expected = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    assert ask_log_probabilities(model, [ids, ids[:2]]) == pytest.approx([float(expected[2, 2]), float(expected[0, 7])], abs=1e-5)


def test_kv_cache_holds_every_sequence_at_full_length(base):
    per_token = 2 * 2 * 2 * 8 * 4
    size = kv_cache_bytes(base, "float32", max_model_len=300, max_num_seqs=4)
    assert size >= 4 * 384 * per_token and size % (128 * per_token) == 0
    assert kv_cache_bytes(base, "bfloat16", 300, 4) * 2 == size


def test_trained_runs_are_those_of_the_method_role_and_seed(tmp_path):
    steps = ["data/sst2", "train/sst2/lora/final/seed-42", "train/rte/lora/final/seed-42", "train/sst2/full/final/seed-42",
             "train/sst2/lora/final/seed-7", "train/sst2/lora/search/seed-42"]  # fmt: skip
    found = trained_runs({s: tmp_path / s for s in steps}, "lora", 42)
    assert found == {t: tmp_path / f"train/{t}/lora/final/seed-42" for t in ("sst2", "rte")}


def provide(arm, finals, base, tmp_path, **upstream):
    inputs = ServeInputs(
        model=ModelSpec(name=str(base)), serving=ServingSpec(two_adapters=("sst2", "rte")), reference_method="full", candidate_method="lora"
    )
    found = prepare.Materials(base, tmp_path / "prompts.json", [], {"base": base})
    ctx = SimpleNamespace(folder=tmp_path / "step", upstream=upstream)
    prepare._provide(parse_arm(arm), inputs, ctx, finals, found, "float32")
    return found


def test_copies_stand_in_when_there_are_fewer_adapters_than_an_arm_holds(base, tmp_path):
    finals = {}
    for task in ("sst2", "rte"):
        adapter(tmp_path / task / "adapter")
        finals[task] = tmp_path / task
    held = provide("adapters_4", finals, base, tmp_path).adapters["adapters_4"]
    assert [a.name for a in held] == ["sst2", "rte", "sst2-copy-1", "rte-copy-1"]
    assert len({a.path for a in held}) == 4 and held[2].path.is_relative_to(tmp_path / "step" / "work")


@pytest.mark.parametrize("arm", ["full", "merged", "adapters_2", "lora_idle"])
def test_a_missing_run_is_told_by_task_and_method(base, tmp_path, arm):
    with pytest.raises(PrerequisiteError, match=r"no finished final run of (full|lora) on sst2"):
        provide(arm, {}, base, tmp_path)


def test_a_rank_above_the_largest_is_refused(base, tmp_path):
    adapter(tmp_path / "sst2" / "adapter", rank=1024)
    with pytest.raises(StudyError, match="1024"):
        provide("adapters_1", {"sst2": tmp_path / "sst2"}, base, tmp_path)
