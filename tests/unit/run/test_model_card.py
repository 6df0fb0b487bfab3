"""The card of an exported model, where the run recorded little or the base is the hub's."""

from pathlib import Path

import pytest
import yaml

from tunescope.models.exporting import stated_licence
from tunescope.records import FinishedStep
from tunescope.run.model_card import Base, Subject, model_card, short_name

ID = "train/rte/lora/final/seed-7"
ADAPTER = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "options": {}}


def subject(base: Base, metrics=(), **changes) -> Subject:
    inputs = {"task": "rte", "method": "lora", "seed": 7, "method_spec": {"adapter": ADAPTER}}
    result = {"metrics": list(metrics), "resources": [], "outputs": {}, "notes": [], "fingerprint": "f" * 64, "digest": "d" * 64}
    step = FinishedStep(ID, Path("nowhere"), inputs, result)
    given = {"form": "adapter", "adapter": ADAPTER} | changes
    return Subject("rte-lora-seed-7", study="mine", step=step, base=base, weights={"adapter_model.safetensors": "0" * 64}, **given)


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


def test_what_was_not_recorded_is_not_made_up():
    text = model_card(subject(Base("b", "./base")))
    assert "recorded no test figures" in text and "Base model `b`: not known here." in text and "Data: not recorded." in text
    assert "step not recorded of not recorded run" in text and "made with | not recorded" in text and "## Prompt" not in text
    assert not {"license", "datasets"} & front(text).keys()


def test_a_figure_of_another_split_is_no_test_figure():
    rows = [{"name": "accuracy", "value": v, "unit": "fraction", "split": s, "n": 9} for v, s in ((0.25, "test"), (0.75, "selection"))]
    text = model_card(subject(Base("b", "./base"), rows))
    assert f"| accuracy | 0.2500 | fraction | 9 | `{ID}` |" in text and "0.75" not in text


def test_a_merged_model_is_loaded_as_it_was_checked_and_the_card_says_how():
    rows = [{"name": "merge_bf16_score_gap", "value": 0.0, "unit": "fraction", "split": "", "n": 9}]
    rows += [{"name": "accuracy", "value": 0.25, "unit": "fraction", "split": "test", "n": 9}]
    plain = subject(Base("b", "./base"), rows, form="merged")
    text = model_card(plain)
    assert 'from_pretrained("./rte-lora-seed-7", dtype=torch.float32)' in text and 'dtype="auto"` and vLLM also compute in it' in text
    assert "computed in a precision that was not recorded" in text
    plain.step.result["outputs"]["merge_bf16_computed_in"] = "fp32"
    assert "the weights cast once, computed in fp32" in model_card(plain)


def test_a_hub_base_is_named_with_its_commit_and_licence():
    base = Base("owner/m", "owner/m", "c" * 40, True, {"license": "other", "license_name": "own"})
    text = model_card(subject(base, dataset="nyu-mll/glue", lora_rank=8))
    assert front(text) == {
        "base_model": "owner/m", "base_model_relation": "adapter", "library_name": "peft", "pipeline_tag": "text-generation",
        "license": "other", "license_name": "own", "datasets": ["nyu-mll/glue"], "tags": ["tunescope", "lora"],
    }  # fmt: skip
    assert f'from_pretrained("owner/m", revision="{"c" * 40}", dtype=torch.float32)' in text
    assert f"vllm serve owner/m --revision {'c' * 40} --enable-lora" in text and "After a move" not in text


def test_what_vllm_does_not_serve_is_not_offered_to_it():
    text = model_card(subject(Base("b", "./base"), adapter={"peft_type": "IA3"}))
    assert "vllm serve" not in text and "export with `--merged`" in text


@pytest.mark.parametrize(
    ("card", "keys", "section"),
    [
        ("---\nlicense: mit\nlanguage: en\n---\n# m\n", {"license": "mit"}, ""),
        ("# m\n\n## License\nFree\nfor all.\n\n## More\nx", {}, "Free for all."),
        ("---\n: [\n---\n", {}, ""),
        ("---\nlicense: [mit]\n---\n", {}, ""),
        ("# m\nno word of it", {}, ""),
    ],
)
def test_a_licence_is_read_from_the_base_models_card_or_not_known(tmp_path, card, keys, section):
    assert stated_licence(tmp_path) == ({}, "")
    (tmp_path / "README.md").write_text(card)
    assert stated_licence(tmp_path) == (keys, section)


def test_no_card_tells_of_this_machines_folders():
    assert [short_name(n) for n in ("sprout-2m", "/home/me/models/m", "models/m/")] == ["sprout-2m", "m", "m"]
