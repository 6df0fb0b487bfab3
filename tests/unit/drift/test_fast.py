"""Fast paths against the plain measures."""

import numpy as np
import pytest
import torch

from tunescope.drift import similarity as s
from tunescope.drift.fast import row_measures
from tunescope.drift.gram import StatesError
from tunescope.drift.on_device import device_divergence, device_measures
from tunescope.drift.states import ProbeStates
from tunescope.drift.table import drift_table, output_divergence
from tunescope.study.schema import DriftSpec

DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")])]


def pair(n=150, d=60, noise=0.5, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 3
    return x.astype(dtype), (x + noise * rng.normal(size=(n, d)) + 0.1).astype(dtype)


def plain_rows(x, y):
    return {
        "cosine_raw": s.cosine_similarity(x, y),
        "cosine_centred": s.cosine_similarity(x, y, "centred"),
        "cosine_standardised": s.cosine_similarity(x, y, "standardised"),
        "relative_displacement": s.relative_displacement(x, y),
        "mean_shift": s.mean_shift(x, y),
    }


def plain_kernel(x, y):
    x, y = (v.astype(np.float64) for v in (x, y))
    return {
        "cka_debiased": s.debiased_cka(x, y),
        "cka_plain": s.linear_cka(x, y),
        "cka_drift_debiased": s.cka_drift(x, y),
        "cka_drift_plain": s.cka_drift(x, y, debiased=False),
        "cka_chance_mean": s.cka_chance(x, y)[0],
        "cka_chance_sd": s.cka_chance(x, y)[1],
    }


@pytest.mark.parametrize("shape", [(4, 3), (63, 10), (64, 10), (65, 90), (300, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_pass_gives_the_row_wise_measures(shape, dtype):
    x, y = pair(*shape, dtype=dtype)
    assert row_measures(x, y) == pytest.approx(plain_rows(x, y), rel=1e-12)
    assert row_measures(x, y, centred=False).keys() == {"cosine_raw", "relative_displacement", "mean_shift"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(4, 3), (5, 9), (65, 90), (300, 7)])
@pytest.mark.parametrize("noise", [1.0, 1e-4])
def test_a_device_gives_the_measures_of_every_probe(device, shape, noise):
    x, y = pair(*shape, noise=noise)
    assert device_measures(x, y, device) == pytest.approx(plain_rows(x, y) | plain_kernel(x, y), rel=1e-7, abs=1e-15)


@pytest.mark.parametrize("device", DEVICES)
def test_equal_states_drift_exactly_zero_on_a_device(device):
    x, _ = pair()
    found = device_measures(x, x.copy(), device)
    assert [found[k] for k in ("cka_drift_debiased", "cka_drift_plain", "relative_displacement", "mean_shift")] == [0, 0, 0, 0]
    assert found["cka_debiased"] == 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_device_refuses_what_has_no_measure(device):
    x, y = pair()
    constant, zero, flat = np.ones_like(x), y.copy(), x.copy()
    zero[4], flat[:, 2] = 0, 7
    for a, b in ((x, constant), (x, zero), (flat, y)):
        with pytest.raises(StatesError, match="undefined"):
            device_measures(a, b, device)
    with pytest.raises(StatesError, match="150 and 149"):
        device_measures(x, y[:-1], device)


def test_one_pass_refuses_as_the_plain_measures_do():
    x, y = pair()
    zero, flat, broken = y.copy(), x.copy(), y.copy()
    zero[70], flat[:, 2], broken[3, 1] = 0, 7, np.nan
    for a, b, match in ((x, zero, "example 70"), (flat, y, "1 dimensions are constant"), (x, broken, "example 3, dimension 1")):
        with pytest.raises(StatesError, match=match):
            row_measures(a, b)


def test_the_table_takes_the_device_path_for_light_probes_only():
    layers = [{(k, "mean"): pair(seed=k)[side] for k in (0, 1)} for side in (0, 1)]
    base, tuned = (ProbeStates(v, "a" * 64, "sst2") for v in layers)
    spec = DriftSpec(primary_pooling="mean")
    plain = drift_table(base, tuned, spec, scored=False).set_index(["layer", "measure"])["value"]
    fast = drift_table(base, tuned, spec, scored=False, device="cpu:0").set_index(["layer", "measure"])["value"]
    assert fast.to_dict() == pytest.approx(plain.to_dict(), rel=1e-6)
    assert set(drift_table(base, tuned, spec, scored=True, device="cpu:0")["measure"]) > set(plain.index.get_level_values("measure"))


@pytest.mark.parametrize("device", DEVICES)
def test_output_divergence_on_a_device(device):
    p, q = (np.log(side).astype(np.float32) for side in np.random.default_rng(0).dirichlet(np.ones(30), size=(2, 50)))
    assert device_divergence(p, q, device) == pytest.approx(output_divergence(p, q), rel=1e-12)
    assert device_divergence(p, p, device) == (0.0, 0.0)
