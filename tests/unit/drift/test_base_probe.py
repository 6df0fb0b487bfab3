"""The base-probe step with the embedded model and the embedded sample."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from tunescope.data.prepare import run_data
from tunescope.drift import noise as noise_step
from tunescope.drift.drift_analysis import run_base_probe
from tunescope.drift.noise import layer_floors, scalar_floors
from tunescope.drift.states import load_states
from tunescope.models.loading import load_model
from tunescope.records import StepContext
from tunescope.study.inputs import BaseProbeInputs, DataInputs
from tunescope.study.schema import DataSpec, DriftSpec, Limits, ModelSpec


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    logged = {}
    tracker = SimpleNamespace(log=lambda values, step: logged.update(values), histogram=None, summary=None)

    def context(name):
        (root / name).mkdir()
        return StepContext(folder=root / name, data_dir=root / "data", upstream={}, device="cpu", tracker=tracker)

    run_data(DataInputs(task="sst2", data=DataSpec(source="sample"), limits=Limits(), probe_examples=24), context("prepared"))
    inputs = BaseProbeInputs(task="sst2", model=ModelSpec(name="sprout-2m"), max_length=128, drift=DriftSpec(probe_examples=24))
    ctx = context("base-probe")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(noise_step, "load_model", lambda *a, **k: models.append(load_model(*a, **k)) or models[-1])
        return run_base_probe(inputs, ctx), ctx.folder, logged


models: list = []
"""The model that the step loaded, as it left it."""


def test_the_bf16_condition_rounds_weights_and_leaves_rotary_frequencies_alone(finished):
    (model,) = models
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}


def test_artefacts_and_outputs(finished):
    result, folder, logged = finished
    assert all((folder / name).is_file() for name in result.content)
    states = load_states(folder / "probe" / "base.safetensors", probe_sha256=result.outputs["probe_sha256"])
    assert (states.n_layers, states.n, states.layers[6, "mean"].shape) == (6, 24, (24, 128))
    assert result.outputs["n_layers"] == 6
    assert states.extras == {}
    assert set(logged) == {"massive_activations", *(f"noise_floor/{c}" for c in ("batch_size", "padding_side", "dtype"))}


def test_the_noise_floor_is_small_and_largest_for_bf16(finished):
    result, folder, _ = finished
    noise = pd.read_parquet(folder / "noise.parquet")
    assert list(noise.columns) == ["condition", "layer", "pooling", "measure", "value"]
    floors = scalar_floors(noise, "last_prompt_token")
    assert max(floors["batch_size"], floors["padding_side"]) < 1e-9
    assert 1e-7 < floors["dtype"] < 1e-2
    assert {m.name: m.value for m in result.metrics}["noise_floor/dtype"] == floors["dtype"]
    assert (
        layer_floors(noise)[3, "mean"] == noise.query("layer == 3 and pooling == 'mean' and measure == 'cka_drift_debiased'")["value"].max()
    )


def test_massive_activations_are_reported_per_layer(finished):
    table = pd.read_parquet(finished[1] / "activations.parquet")
    by_layer = finished[0].outputs["massive_activations"]
    assert by_layer == list(table["max_over_median"])
    assert {m.name: m.value for m in finished[0].metrics}["massive_activations"] == max(by_layer)
    assert list(table["layer"]) == list(range(7))
    assert (table["max_over_median"] > 1).all()
    assert np.isfinite(table).all(axis=None)
