"""Reading a model folder without loading it: the same modules and the same judgement of targets as the loaded model gives."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from tunescope.models.checkpoint import local_folder, module_widths, target_problems
from tunescope.models.loading import load_model
from tunescope.study.schema import AdapterSpec, ModelSpec

SPROUT = local_folder(ModelSpec(name="sprout-2m"))


def test_the_weight_files_name_the_modules_of_the_loaded_model():
    model = load_model(SPROUT, dtype=torch.float32, device="cpu")
    linear = {n: min(m.weight.shape) for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    widths = module_widths(SPROUT)
    assert {n: w for n, w in widths.items() if w is not None} == {n: w for n, w in linear.items() if n != "lm_head"}
    assert "lm_head" in widths and set(widths) <= {n for n, _ in model.named_modules()}


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (AdapterSpec(), []),
        (AdapterSpec(target_modules="all-linear"), []),
        (AdapterSpec(target_modules=("layers.0.mlp.up_proj", "lm_head")), []),
        (AdapterSpec(target_modules=("q_porj", "v_proj")), ["'q_porj' matches no module (did you mean 'q_proj'?); linear modules: "]),
        (AdapterSpec(target_modules=("x", "y")), ["'x' matches no module; ", "'y' matches no module; "]),
        (AdapterSpec(r=4096, lora_alpha=4096), ["adapter.r 4096 is above the width", "adapter.r 4096 is above the width"]),
    ],
)
def test_targets(spec, told):
    found = list(target_problems(spec, module_widths(SPROUT)))
    assert len(found) == len(told) and all(part in line for part, line in zip(told, found, strict=True))


def test_what_is_not_on_this_disk_or_cannot_be_read_is_left_to_loading(tmp_path):
    assert local_folder(ModelSpec(name="owner/model")) is None
    assert local_folder(ModelSpec(name=str(tmp_path))) == tmp_path
    assert module_widths(tmp_path) == {}
    for content in (b"version https://git-lfs.github.com/spec/v1", b"", b"\xff" * 20):
        (tmp_path / "model.safetensors").write_bytes(content)
        assert module_widths(tmp_path) == {}


def test_reading_imports_nothing_heavy():
    code = "import sys, tunescope.models.checkpoint; print(sorted({'numpy', 'peft', 'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
