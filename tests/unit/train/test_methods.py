"""Adapters named by their PEFT config, really trained: their start, their proofs, and what is kept of them."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from sample_runs import sample_data, train, train_inputs
from tunescope.data import load_examples
from tunescope.data.tasks import get_task
from tunescope.errors import StudyError
from tunescope.models.loading import load_model, load_tokenizer, resolve_model
from tunescope.models.lora_utils import apply_adapter, base_sha256, load_finetuned, save_as_update, start_tensors
from tunescope.study.load import load_study
from tunescope.study.schema import AdapterSpec, ModelSpec
from tunescope.train.evaluate import score_labels

SPROUT = ModelSpec(name="sprout-2m")
VARIANTS = {name: spec.adapter for name, spec in load_study("peft_variants").study.methods.items() if name not in ("full", "lora")}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return sample_data(tmp_path_factory.mktemp("data"))


def test_the_variants_are_the_promised_ones():
    assert {"dora", "rslora", "pissa", "ia3"} <= VARIANTS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_with_all_its_proofs(data, tmp_path, name):
    result = train(data, tmp_path, train_inputs(VARIANTS[name], rate=3e-3))
    values, facts = {m.name: m.value for m in result.metrics}, result.outputs
    drift = pd.read_parquet(tmp_path / "drift.parquet")
    start = drift[(drift.step == 0) & ~drift.scored & (drift.measure == "cka_drift_debiased")]["value"]
    assert len(start) >= 12 and (start.abs().max() <= 1e-6 if name == "pissa" else (start == 0).all())
    assert values["drift"] > 0
    shas = facts["base_sha256"]
    assert facts["base_unchanged"] and shas["start"] == shas["after"] and (shas["before"] != shas["start"]) == (name == "pissa")
    assert facts["unload_restores_base"] and facts["reload_restores_adapter"]
    assert values["merge_max_abs_logit_difference"] <= 1e-4 and values["merge_label_agreement"] == 1
    assert facts.get("conversion_max_abs_logit_difference", 0) <= 1e-4
    assert not any("adapter" in note or "base weights" in note for note in result.notes)
    kept = load_finetuned(resolve_model(SPROUT), tmp_path, torch.float32, "cpu")
    again = score_labels(kept, load_tokenizer(resolve_model(SPROUT)), load_examples(data, "sst2", "test"), get_task("sst2"), 128, 24, "cpu")
    stored = pd.read_parquet(tmp_path / "predictions.parquet")
    assert [p.prediction for p in again] == stored.prediction.tolist() and len(stored) == 24


def base():
    return load_model(resolve_model(SPROUT), dtype=torch.float32, device="cpu")


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["plain", "rank-stabilised"])
def test_pissa_is_kept_as_the_update_it_learned(tmp_path, options):
    """The kept adapter on the untouched base is W + s(BA - B0 A0), formed here in float64 from the weights themselves."""
    spec = AdapterSpec(r=4, lora_alpha=6, options={"init_lora_weights": "pissa", **options})
    original = {n: p.detach().double() for n, p in base().named_parameters()}
    model = apply_adapter(base(), spec, 0)
    start = start_tensors(model)
    generator = torch.Generator().manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data += 0.02 * torch.randn(p.shape, generator=generator)
    learned = {n.replace(".default", ""): p.detach().double() for n, p in model.named_parameters() if "lora_" in n}
    save_as_update(model, start, tmp_path / "adapter")
    kept = load_finetuned(resolve_model(SPROUT), tmp_path, torch.float32, "cpu")
    assert base_sha256(kept) == base_sha256(base())
    merged = dict(kept.merge_and_unload().named_parameters())
    scaling = 6 / 2 if options else 6 / 4
    checked = 0
    for name, a in learned.items():
        if "lora_A" in name:
            b_name, matrix = name.replace("lora_A", "lora_B"), name.removeprefix("base_model.model.").replace(".lora_A", "")
            update = scaling * (learned[b_name] @ a - start[b_name].double() @ start[name].double())
            torch.testing.assert_close(merged[matrix].double(), original[matrix] + update, rtol=0, atol=2e-6)
            checked += 1
    assert checked == 12


def test_a_start_that_cannot_be_told_apart_is_refused():
    spec = AdapterSpec(r=4, options={"init_lora_weights": "pissa", "rank_pattern": {"layers.0.self_attn.q_proj": 2}})
    with pytest.raises(StudyError, match=r"rank_pattern.*rewrites the base weights"):
        start_tensors(apply_adapter(base(), spec, 0))
