"""Small training runs through the real training step, with its logs and every gradient its optimizer was given."""

import itertools
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tunescope.data import load_examples, manifest
from tunescope.data.prepare import prepare
from tunescope.data.tasks import Example
from tunescope.records import StepContext, StepResult
from tunescope.study.inputs import TrainInputs
from tunescope.study.plan import build_plan
from tunescope.study.schema import Limits, Study, TaskName
from tunescope.train.finetune import run_train

SMALL = Limits(train=64, selection=24, test=24)
POOL = Limits(train=400, selection=24, test=24)
"""Where the ten examples to overfit are taken from."""
TEN = 10
NEVER = 10**9
SAMPLED = 4096
"""Gradient entries kept of each tensor, evenly spaced, to compare runs by."""


@dataclass
class Log:
    """A tracker that remembers the numbers."""

    rows: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))

    def histogram(self, name: str, values: Any, step: int) -> None: ...

    def rewind(self, step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def series(self, name: str) -> list[float]:
        """One logged name over steps."""
        return [row[name] for _, row in self.rows if name in row]


@dataclass(frozen=True)
class Update:
    """What an optimizer was given for one step, after clipping."""

    tensor_norms: list[float]
    """One per tensor; 0 where it has no gradient."""
    elements: int
    sample: Tensor

    @property
    def norm(self) -> float:
        return sum(n * n for n in self.tensor_norms) ** 0.5


@dataclass(frozen=True)
class Ran:
    """A finished small run."""

    result: StepResult
    log: Log
    updates: list[Update]

    def metric(self, name: str) -> float:
        return next(m.value for m in self.result.metrics if m.name == name and m.value is not None)


@contextmanager
def watched_updates() -> Iterator[list[Update]]:
    """Record the gradients of every optimizer step inside the block, whoever makes it."""
    found: list[Update] = []

    def keep(optimizer: Any, _args: Any, _kwargs: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        grads = [None if p.grad is None else p.grad.detach() for p in parameters]
        norms = [0.0 if g is None else float(g.float().norm()) for g in grads]
        parts = [g.flatten()[:: max(1, g.numel() // SAMPLED)].float().cpu() for g in grads if g is not None]
        found.append(Update(norms, sum(p.numel() for p in parameters), torch.cat(parts) if parts else torch.zeros(0)))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


class Bench:
    """A study's model, methods and training settings on a few examples, in a folder that goes away."""

    def __init__(self, study: Study, device: str, root: Path, files: Path | None = None):
        self.study, self.device, self.root, self.files = study, device, root, files
        self._plan = build_plan(study.model_copy(update={"serving": None}))
        self._count = itertools.count()

    def data(self, task: TaskName) -> Path:
        """A folder with a few examples of one task."""
        folder = self.root / "data"
        prepare(task, self.study.data, SMALL, SMALL.selection or 0, folder, self.files)
        return folder

    def ten_examples(self, task: TaskName) -> Path:
        """A folder whose training, selection and test parts are the same ten labelled examples, short ones, labels in turn."""
        folder = self.root / "ten"
        entry = prepare(task, self.study.data, POOL, SMALL.selection or 0, folder, self.files)
        ids = _ten(load_examples(folder, task, "train"))
        path = folder / task / "parts.json"
        parts = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(parts | dict.fromkeys(("train", "selection", "test"), ids)), encoding="utf-8")
        manifest.write_entry(folder, task, entry | {"files": manifest.checksums(folder / task, folder)})
        return folder

    def rate(self, task: TaskName, method: str) -> float:
        """The largest learning rate of the study's grid."""
        return max(self.study.learning_rates(task, method))

    def train(self, task: TaskName, method: str, data: Path, *, role: str = "search", batch: int = 8, **changes: Any) -> Ran:
        """One real training step. `changes` are fields of the study's `training`, or `seed` and `dropout`.

        Raises:
            StepError, StudyError, PrerequisiteError: as the step does.
        """
        seed = changes.pop("seed", self.study.training.search_seed)
        dropout = changes.pop("dropout", None)
        inputs = self._inputs(task, method, role, batch, changes).model_copy(update={"seed": seed})
        adapter = inputs.method_spec.adapter
        if dropout is not None and adapter is not None and adapter.lora_dropout is not None:
            without = adapter.model_copy(update={"lora_dropout": dropout})
            inputs = inputs.model_copy(update={"method_spec": inputs.method_spec.model_copy(update={"adapter": without})})
        folder, log = self.root / "steps" / f"run-{next(self._count)}", Log()
        folder.mkdir(parents=True)
        try:
            with watched_updates() as updates:
                result = run_train(inputs, StepContext(folder, data, {}, self.device, log))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return Ran(result, log, updates)

    def _inputs(self, task: TaskName, method: str, role: str, batch: int, changes: Mapping[str, Any]) -> TrainInputs:
        study = self.study
        inputs = self._plan[f"train/{task}/{method}/final/seed-{study.training.search_seed}"].inputs
        assert isinstance(inputs, TrainInputs)
        quiet: dict[str, Any] = {"eval_every": NEVER, "checkpoint_every": NEVER, "log_every": 1, "max_steps": None}
        if self.study.training.optimizer == "adamw_in_backward":
            quiet["optimizer"] = "adamw"  # inside the backward pass gradients are gone before they can be watched; its numbers are the same
        drift = {"probe_examples": TEN, "every": NEVER, "early_steps": (), "blocks": 2, "internals": False}
        return inputs.model_copy(
            update={
                "role": role, "learning_rate": self.rate(task, method), "batch_size": batch,
                "task_spec": inputs.task_spec.model_copy(update={"max_steps": None}),
                "training": inputs.training.model_copy(update=quiet | dict(changes)), "drift": inputs.drift.model_copy(update=drift),
            }
        )  # fmt: skip


def _ten(examples: Sequence[Example]) -> list[str]:
    """Ids of ten short examples, labels (or answerable and not) in turn, so that no constant answer is right on all."""
    kinds: dict[str, list[str]] = {}
    for e in sorted(examples, key=lambda e: (len(e.prompt), e.id)):
        kinds.setdefault(e.label or str(bool(e.golds)), []).append(e.id)
    mixed = [i for row in itertools.zip_longest(*kinds.values()) for i in row if i is not None]
    return mixed[:TEN]
