"""Finding and loading base models; the hub is never asked."""

import json
import shutil

import pytest
import torch

from tunescope.errors import PrerequisiteError
from tunescope.models.loading import load_model, parameter_counts, resolve_model
from tunescope.study.schema import ModelSpec

SPROUT = resolve_model(ModelSpec(name="sprout-2m"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_embedded_model_is_what_its_card_says():
    model = load_model(SPROUT, dtype=torch.float32, device="cpu")
    assert parameter_counts(model) == (2_156_160, 2_156_160)
    assert not model.training and model.config.use_cache is False
    assert model.dtype == torch.float32
    assert "2,156,160" in (SPROUT / "README.md").read_text()


@pytest.mark.parametrize("name", ["sprout2m", "a/b/c", "./nowhere", "/nowhere/at/all"])
def test_unknown_model_names_are_errors(name):
    with pytest.raises(PrerequisiteError, match="no such folder"):
        resolve_model(ModelSpec(name=name))


def test_nearest_name_is_offered():
    with pytest.raises(PrerequisiteError, match="did you mean 'sprout-2m'"):
        resolve_model(ModelSpec(name="sprout_2m"))


def test_folder_without_safetensors_is_an_error(tmp_path):
    shutil.copy(SPROUT / "config.json", tmp_path)
    with pytest.raises(PrerequisiteError, match=r"no \.safetensors weights"):
        resolve_model(ModelSpec(name=str(tmp_path)))


def test_truncated_weights_and_other_architectures_are_errors(tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(SPROUT / name, tmp_path)
    (tmp_path / "model.safetensors").write_bytes((SPROUT / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(PrerequisiteError, match="cannot be loaded as a causal language model"):
        load_model(tmp_path, dtype=torch.float32, device="cpu")
    config = json.loads((SPROUT / "config.json").read_text()) | {"model_type": "no-such-model", "architectures": ["NoSuchModel"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(PrerequisiteError, match="cannot be loaded as a causal language model"):
        load_model(tmp_path, dtype=torch.float32, device="cpu")


def test_first_download_locks_the_commit(tmp_path, monkeypatch):
    asked = []

    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(revision)
        folder = tmp_path / "hub" / COMMIT
        shutil.copytree(SPROUT, folder, dirs_exist_ok=True)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    spec = ModelSpec(name="owner/model")
    first = resolve_model(spec, tmp_path / "runs")
    assert resolve_model(spec, tmp_path / "runs") == first
    assert asked == [None, COMMIT]
    assert json.loads((tmp_path / "runs" / "model-lock.json").read_text()) == {"owner/model@default": COMMIT}


def test_unreachable_hub_says_what_to_do(monkeypatch):
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(PrerequisiteError, match="give a local folder"):
        resolve_model(ModelSpec(name="owner/model", revision=COMMIT))
