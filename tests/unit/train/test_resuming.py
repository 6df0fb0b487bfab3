"""A run that was killed ends with the numbers, files and records of one that was not: methods, random moments, early stopping."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import sample_runs
from sample_runs import LORA, Killed, essence, sample_data, train, train_inputs
from tunescope.study.schema import AdapterSpec

pytestmark = pytest.mark.slow
PISSA = AdapterSpec(r=4, lora_alpha=4, options={"init_lora_weights": "pissa"})
METHODS = {"full": (None, 3e-2), "lora": (LORA, 3e-2), "pissa": (PISSA, 3e-3), "8-bit": (None, 3e-2)}
RUN = {"max_steps": 14, "eval_every": 2, "checkpoint_every": 3, "log_every": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return sample_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("method", METHODS)
def test_killed_at_random_steps_it_ends_bit_identical(data, tmp_path, method):
    """LoRA with its dropout; the rates are high, so that patience decides where full and LoRA end."""
    adapter, rate = METHODS[method]
    changes = {"optimizer": "adamw_8bit"} if method == "8-bit" else {}
    inputs = train_inputs(adapter, rate=rate, early_stopping_patience=2, **RUN, **changes)
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


def test_a_process_killed_by_the_system_goes_on(data, tmp_path):
    inputs = train_inputs(LORA, **RUN)
    command = [sys.executable, sample_runs.__file__, str(data), str(tmp_path / "killed"), inputs.model_dump_json(), "8"]
    (tmp_path / "killed").mkdir()
    ended = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
    resumed = train(data, tmp_path / "killed", inputs)
    assert any("resumed at step" in note for note in resumed.notes)
    assert essence(resumed, tmp_path / "killed") == essence(train(data, tmp_path / "whole", inputs), tmp_path / "whole")
