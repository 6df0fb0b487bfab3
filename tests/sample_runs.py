"""Real training steps on a little of the embedded sample, with the real tracker; in a process of its own it can be killed at a step."""

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from tunescope.data.prepare import prepare
from tunescope.records import StepContext, StepResult
from tunescope.study.inputs import TrainInputs
from tunescope.study.schema import AdapterSpec, DataSpec, DriftSpec, Limits, MethodSpec, ModelSpec, TaskSpec, TrainingSpec
from tunescope.tracking import StepTracker
from tunescope.train.finetune import run_train

LORA = AdapterSpec()
UNSTEADY = {"seconds", "time_s", "tokens_per_s", "step_time_s", "memory_rss_bytes"}
"""What differs between two runs of the same numbers."""


class Killed(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


class Mortal(StepTracker):
    """The real tracker, which ends the run when a step has been logged."""

    def __init__(self, folder: Path, die_at: int | None = None, *, really: bool = False):
        super().__init__(folder, None)
        self.die_at, self.really = die_at, really

    def log(self, values: Any, step: int) -> None:
        super().log(values, step)
        if self.die_at is not None and step >= self.die_at and "loss" in values:
            if self.really:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Killed


def sample_data(folder: Path) -> Path:
    prepare("sst2", DataSpec(source="sample"), Limits(train=64, selection=24, test=24), 24, folder)
    return folder


def train_inputs(adapter: AdapterSpec | None, role: str = "final", rate: float = 1e-3, **training: Any) -> TrainInputs:
    settings = {"max_steps": 8, "eval_every": 4, "checkpoint_every": 4, "log_every": 2, "eval_batch": 24} | training
    return TrainInputs(
        task="sst2", model=ModelSpec(name="sprout-2m"), method="m", role=role, seed=42, learning_rate=rate, batch_size=8,
        method_spec=MethodSpec(adapter=adapter, warmup_ratio=0.1, learning_rates=(rate,)), task_spec=TaskSpec(max_length=128),
        training=TrainingSpec(**settings), drift=DriftSpec(probe_examples=24, every=4, early_steps=(1,), batch_size=24),
    )  # fmt: skip


def train(data: Path, folder: Path, inputs: TrainInputs, die_at: int | None = None, *, really: bool = False) -> StepResult:
    folder.mkdir(exist_ok=True)
    return run_train(inputs, StepContext(folder, data, {}, "cpu", Mortal(folder, die_at, really=really)))


def essence(result: StepResult, folder: Path) -> dict[str, Any]:
    """Everything of a step that must not depend on how often it was interrupted: numbers, files, and the record of every step."""
    rows = [json.loads(line) for name in ("metrics.jsonl", "histograms.jsonl") for line in _lines(folder / name)]
    drift = pd.read_parquet(folder / "drift.parquet").set_index(["step", "scored", "layer", "pooling", "measure", "block"])["value"]
    return {
        "metrics": [m.model_dump() for m in result.metrics],
        "outputs": result.outputs,
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in result.content},
        "drift": drift.to_dict(),
        "records": [{k: v for k, v in row.items() if k not in UNSTEADY} for row in rows],
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    data, folder, inputs, die_at = sys.argv[1:]
    train(Path(data), Path(folder), TrainInputs.model_validate_json(inputs), int(die_at), really=True)
