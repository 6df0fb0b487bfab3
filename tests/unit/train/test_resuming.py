"""A run that was killed ends with the numbers, files and records of one that was not: methods, random moments, early stopping."""

import os
import random
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch

import sample_runs
from sample_runs import LORA, Killed, essence, sample_data, train, train_inputs
from tunescope.data import load_examples
from tunescope.data.tasks import get_task
from tunescope.models.loading import load_tokenizer, resolve_model
from tunescope.models.lora_utils import load_finetuned
from tunescope.study.schema import AdapterSpec
from tunescope.train.evaluate import evaluate, write_predictions

pytestmark = pytest.mark.slow
PISSA = AdapterSpec(r=4, lora_alpha=4, options={"init_lora_weights": "pissa"})
METHODS = {"full": (None, 3e-2), "lora": (LORA, 3e-2), "pissa": (PISSA, 3e-3), "8-bit": (None, 3e-2), "in-backward": (LORA, 3e-2)}
OPTIMIZERS = {"8-bit": "adamw_8bit", "in-backward": "adamw_in_backward"}
RUN = {"max_steps": 14, "eval_every": 2, "checkpoint_every": 3, "log_every": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return sample_data(tmp_path_factory.mktemp("data"))


NO_BITSANDBYTES = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed (extra `lean`)")


@pytest.mark.parametrize("method", [pytest.param(m, marks=NO_BITSANDBYTES) if m == "8-bit" else m for m in METHODS])
def test_killed_at_random_steps_it_ends_bit_identical(data, tmp_path, method):
    """LoRA with its dropout; the rates are high, so that patience decides where full and LoRA end."""
    adapter, rate = METHODS[method]
    inputs = train_inputs(adapter, rate=rate, early_stopping_patience=2, optimizer=OPTIMIZERS.get(method, "adamw"), **RUN)
    whole = essence(train(data, tmp_path / "whole", inputs), tmp_path / "whole")
    steps = next(m["value"] for m in whole["metrics"] if m["name"] == "steps_run")
    assert method == "pissa" or steps < RUN["max_steps"]
    moments = sorted(random.Random(method).sample(range(1, int(steps)), 3))
    for moment in moments:
        with pytest.raises(Killed):
            train(data, tmp_path / "killed", inputs, die_at=moment)
    resumed = train(data, tmp_path / "killed", inputs)
    assert essence(resumed, tmp_path / "killed") == whole, f"killed at {moments}"
    assert any("resumed at step" in note for note in resumed.notes)


def test_a_process_killed_by_the_system_goes_on_in_another_place(data, tmp_path):
    """Killed on one machine; checkpoint and data are copied to another, where the first one's folders are not."""
    inputs = train_inputs(LORA, **RUN)
    command = [sys.executable, sample_runs.__file__, str(data), str(tmp_path / "killed"), inputs.model_dump_json(), "8"]
    (tmp_path / "killed").mkdir()
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    here, copied = tmp_path / "elsewhere" / "step", tmp_path / "elsewhere" / "data"
    shutil.copytree(tmp_path / "killed", here)
    shutil.copytree(data, copied)
    shutil.rmtree(tmp_path / "killed")
    resumed = train(copied, here, inputs)
    assert any("resumed at step" in note for note in resumed.notes)
    assert essence(resumed, here) == essence(train(data, tmp_path / "whole", inputs), tmp_path / "whole")


@pytest.mark.parametrize("adapter", [None, LORA])
def test_kept_weights_score_equal_in_another_place(data, tmp_path, adapter):
    inputs = train_inputs(adapter, rate=1e-2)
    train(data, tmp_path / "there", inputs)
    here = tmp_path / "here"
    for name in ("adapter", "model"):
        if (tmp_path / "there" / name).is_dir():
            shutil.copytree(tmp_path / "there" / name, here / name)
    shutil.copy(tmp_path / "there" / "predictions.parquet", here)
    shutil.rmtree(tmp_path / "there")
    base = resolve_model(inputs.model)
    model = load_finetuned(base, here, torch.float32, "cpu")
    examples = load_examples(data, "sst2", "test")
    predictions, _ = evaluate(model, load_tokenizer(base), examples, get_task("sst2"), max_length=128, batch_size=24, device="cpu")
    write_predictions(tmp_path / "again.parquet", predictions)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again.parquet"), pd.read_parquet(here / "predictions.parquet"))
