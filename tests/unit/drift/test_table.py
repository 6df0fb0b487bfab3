"""Probe states on disk, and the drift table."""

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from tunescope.drift import similarity
from tunescope.drift.gram import StatesError
from tunescope.drift.measures import MEASURES
from tunescope.drift.states import ProbeStates, load_states, save_states
from tunescope.drift.table import drift_table, jensen_shannon, output_divergence, registered_scalar
from tunescope.errors import PrerequisiteError
from tunescope.study.schema import DriftSpec

SHA = "a" * 64
SPEC = DriftSpec(probe_examples=40, blocks=5)


def make(seed=0, noise=0.0, n=40, d=8, layers=3, sha=SHA, source="this run"):
    base = np.random.default_rng(0)
    move = np.random.default_rng(seed)
    kept = {}
    for k in range(layers + 1):
        for pooling in ("last_prompt_token", "mean"):
            x = base.normal(size=(n, d))
            if (k, pooling) == (0, "last_prompt_token"):
                x[:] = x[0]  # all prompts end in the same token
                noise_here = np.tile(move.normal(size=d), (n, 1))
            else:
                noise_here = move.normal(size=(n, d))
            kept[k, pooling] = (x + noise * k * noise_here).astype(np.float32)
    return ProbeStates(kept, sha, "sst2", source=source)


def test_states_survive_the_file(tmp_path):
    states = make()
    states.extras["log_probs"] = np.ones((40, 5), np.float32)
    path = save_states(tmp_path / "probe" / "step-0.safetensors", states)
    back = load_states(path, probe_sha256=SHA)
    assert back.layers.keys() == states.layers.keys()
    assert all((back.layers[k] == v).all() and back.layers[k].dtype == np.float32 for k, v in states.layers.items())
    assert (back.probe_sha256, back.task, back.convention, back.source) == (SHA, "sst2", states.convention, str(path))
    assert (back.extras["log_probs"] == 1).all()
    assert load_states(path, extras=False).extras == {}
    assert back.n_layers == 3
    assert [p.name for p in path.parent.iterdir()] == ["step-0.safetensors"]


def test_bad_files_are_named(tmp_path):
    path = save_states(tmp_path / "scored.safetensors", make())
    with pytest.raises(StatesError, match=r"scored\.safetensors: probe set aaaaaaaaaaaa differs from bbbbbbbbbbbb"):
        load_states(path, probe_sha256="b" * 64)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PrerequisiteError, match=r"scored\.safetensors: truncated"):
        load_states(path)
    with pytest.raises(PrerequisiteError, match=r"absent\.safetensors: no such"):
        load_states(tmp_path / "absent.safetensors")
    broken = make()
    broken.layers[2, "mean"][1, 1] = np.nan
    with pytest.raises(StatesError, match=r"bad\.safetensors: layer 2 \(mean\) holds NaN"):
        load_states(save_states(tmp_path / "bad.safetensors", broken))


def test_equal_states_have_exactly_zero_drift_in_every_row():
    table = drift_table(make(), make(), SPEC, scored=True)
    for measure in (
        "cka_drift_debiased",
        "cka_drift_plain",
        "procrustes",
        "relative_displacement",
        "mean_shift",
        "cka_standard_error",
    ):
        assert (table.loc[table["measure"] == measure, "value"] == 0.0).all(), measure
    assert registered_scalar(table, "last_prompt_token") == 0.0


def test_rows_are_the_measures_by_name():
    base, tuned = make(), make(seed=4, noise=0.3)
    table = drift_table(base, tuned, SPEC, scored=True).set_index(["layer", "pooling", "measure", "block"])["value"]
    x, y = base.layers[2, "mean"], tuned.layers[2, "mean"]
    for name, value in {
        "cka_debiased": similarity.debiased_cka(x, y),
        "cka_plain": similarity.linear_cka(x, y),
        "cka_drift_debiased": similarity.cka_drift(x, y),
        "cka_chance_mean": similarity.cka_chance(x, y)[0],
        "cka_chance_sd": similarity.cka_chance(x, y)[1],
        "cka_standard_error": similarity.cka_standard_error(x, y),
        "procrustes": similarity.procrustes(x, y),
        "cosine_standardised": similarity.cosine_similarity(x, y, "standardised"),
        "mean_shift": similarity.mean_shift(x, y),
    }.items():
        assert table[2, "mean", name, -1] == pytest.approx(value, rel=1e-12)
    rows = np.arange(3, 40, 5)
    x, y = base.layers[2, "last_prompt_token"], tuned.layers[2, "last_prompt_token"]
    block = similarity.cka_drift(x[rows], y[rows])
    assert table[2, "last_prompt_token", "cka_drift_debiased", 3] == pytest.approx(block, abs=1e-12)


def test_shape_of_the_table():
    table = drift_table(make(), make(seed=4, noise=0.3), SPEC, scored=True)
    assert list(table.columns) == ["scored", "layer", "pooling", "measure", "block", "value", "n"]
    blocks = table[table["block"] >= 0]
    assert set(blocks["pooling"]) == {"last_prompt_token"}
    assert set(blocks["measure"]) == {"cka_drift_debiased"}
    assert set(blocks["block"]) == {0, 1, 2, 3, 4}
    assert (blocks["n"] == 8).all()
    embedding = table[(table["layer"] == 0) & (table["pooling"] == "last_prompt_token")]
    assert set(embedding["measure"]) == {"cosine_raw", "relative_displacement", "mean_shift"}  # a constant has no CKA
    assert not table.duplicated(["layer", "pooling", "measure", "block"]).any()
    light = drift_table(make(), make(seed=4, noise=0.3), SPEC, scored=False)
    assert {"procrustes", "cka_standard_error"}.isdisjoint(light["measure"])
    assert (light["block"] == -1).all()
    assert set(table["measure"]) <= set(MEASURES)
    for row in table.itertuples():
        assert MEASURES[row.measure].low - 1e-12 <= row.value <= MEASURES[row.measure].high + 1e-12


def test_registered_scalar_is_the_mean_over_decoder_layers():
    table = drift_table(make(), make(seed=4, noise=0.3), SPEC, scored=True)
    expected = [similarity.cka_drift(make().layers[k, "mean"], make(seed=4, noise=0.3).layers[k, "mean"]) for k in (1, 2, 3)]
    assert registered_scalar(table, "mean") == pytest.approx(np.mean(expected))
    with pytest.raises(StatesError, match="no scored"):
        registered_scalar(table.assign(scored=False), "mean")


def test_states_that_cannot_be_compared_are_refused_by_name():
    with pytest.raises(StatesError, match="lora-42: probe set bbbbbbbbbbbb differs"):
        drift_table(make(), make(sha="b" * 64, source="lora-42"), SPEC, scored=False)
    with pytest.raises(StatesError, match="layers and poolings differ"):
        drift_table(make(), make(layers=2), SPEC, scored=False)
    constant = make(source="lora-42")
    constant.layers[2, "mean"][:] = 1
    with pytest.raises(StatesError, match="lora-42 against this run, layer 2, mean: features are constant"):
        drift_table(make(), constant, SPEC, scored=False)
    with pytest.raises(StatesError, match="blocks of fewer than 4"):
        drift_table(make(n=15), make(n=15), SPEC, scored=True)


def test_extras_become_rows():
    base, tuned = make(), make(seed=1, noise=0.1)
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 40, 11))
    log_probs = (logits - np.log(np.exp(logits).sum(-1, keepdims=True))).astype(np.float32)
    for side, value in ((base, log_probs[0]), (tuned, log_probs[1])):
        side.extras = {"log_probs": value, "tokens.1": rng.normal(size=(90, 8)).astype(np.float32)}
    table = drift_table(base, tuned, SPEC, scored=False).set_index("measure")
    p, q = np.exp(log_probs.astype(float))
    assert table.loc["next_token_kl", "value"] == pytest.approx((p * np.log(p / q)).sum(1).mean(), rel=1e-5)
    assert table.loc["top1_disagreement", "value"] == (p.argmax(1) != q.argmax(1)).mean()
    assert table.loc["token_cosine", "n"] == 90
    assert table.loc["token_cosine", "pooling"] == "token"


def test_output_divergence_runs_over_blocks_and_is_zero_for_equal_outputs():
    logits = np.random.default_rng(0).normal(size=(200, 7))
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert output_divergence(log_probs, log_probs) == (0.0, 0.0)
    other = np.roll(log_probs, 1, axis=1)
    whole = (np.exp(log_probs) * (log_probs - other)).sum() / 200
    assert output_divergence(log_probs, other)[0] == pytest.approx(whole)


def test_jensen_shannon_against_scipy_and_its_bounds():
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(6), size=(2, 3, 4))
    p[0, 0, :2] = 0
    p /= p.sum(-1, keepdims=True)
    expected = np.mean([jensenshannon(a, b, base=2) ** 2 for a, b in zip(p.reshape(-1, 6), q.reshape(-1, 6), strict=True)])
    assert jensen_shannon(p, q) == pytest.approx(expected)
    assert jensen_shannon(np.eye(4)[None], np.eye(4)[[1, 2, 3, 0]][None]) == 1.0
    assert jensen_shannon(p, p) == 0.0
