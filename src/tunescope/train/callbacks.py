"""What happens between optimizer steps: early stopping and sealed checkpoints, logging, layer statistics, drift probes."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tunescope.errors import StepError
from tunescope.models.lora_utils import adapter_norms
from tunescope.records import Tracker
from tunescope.study.schema import DriftSpec

from .checkpoints import seal
from .probing import DriftRecorder
from .trainer import Window


def stale_evaluations(losses: list[float]) -> int:
    """Evaluations since the best selection loss (the first of equals)."""
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0


def selection_losses(state: TrainerState) -> list[float]:
    """Selection losses in order, from the log history, which a resumed run inherits."""
    return [row["eval_loss"] for row in state.log_history if "eval_loss" in row]


class FlowCallback(TrainerCallback):
    """Save at improvements and at the end, stop when patience is spent, seal every checkpoint.

    Patience is read from the log history instead of being counted, so a resumed run stops where an uninterrupted one would.
    """

    def __init__(self, window: Window, patience: int, records: Path, precision: str):
        self.window, self.patience, self.records, self.precision = window, patience, records, precision

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.best_global_step:  # the folder may have moved since
            state.best_model_checkpoint = str(Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A checkpoint is always a log point: the Trainer's running loss since the last log is not part of a checkpoint.
        control.should_log = control.should_log or control.should_evaluate or control.should_save
        if control.should_log and args.device.type == "cuda":
            torch.cuda.synchronize()
        self.window.stop()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        stale = stale_evaluations(selection_losses(state))
        control.should_training_stop = control.should_training_stop or stale >= self.patience
        control.should_save = control.should_save or stale == 0 or control.should_training_stop

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        best, ended = state.best_global_step, control.should_training_stop
        seal(folder, self.records, step=state.global_step, best_step=best, finished=ended, precision=self.precision)


class LayerWatch:
    """Activation RMS over real tokens and gradient norm (before clipping) of every decoder layer, at log steps only."""

    def __init__(self, model: nn.Module, layers: nn.ModuleList, log_every: int):
        self.log_every = log_every
        inside = {id(p) for p in layers.parameters()}
        groups = [[p for p in model.parameters() if p.requires_grad and id(p) not in inside]]
        groups += [[p for p in layer.parameters() if p.requires_grad] for layer in layers]
        self._groups = {f"grad_norm/layer_{k}": group for k, group in enumerate(groups) if group}
        self.values: dict[str, Tensor] = {}
        self._real_BT: Tensor | None = None
        for k, layer in enumerate(layers, start=1):
            layer.register_forward_hook(self._hook(f"activation_rms/layer_{k}"))

    def due(self, step: int) -> bool:
        """Whether a step's values are logged."""
        return step == 1 or step % self.log_every == 0

    def look(self, step: int, inputs: Mapping[str, Any]) -> None:
        """Watch the coming forward pass if its step is a log step."""
        self._real_BT = inputs["real_BT"] if self.due(step) else None

    def _hook(self, name: str) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, output: Any) -> None:
            if self._real_BT is not None:
                hidden = (output[0] if isinstance(output, tuple) else output).detach()
                squares_BT = hidden.float().square().mean(-1)  # no indexing by the mask: the GPU would have to be waited for
                self.values[name] = (squares_BT.where(self._real_BT, 0).sum() / self._real_BT.sum()).sqrt()

        return keep

    def gradients(self, step: int, norms: Mapping[nn.Parameter, Tensor] | None = None) -> None:
        """Gradient norms of the layers, before they are clipped; from the weights' own `norms` where gradients are gone already."""
        self._real_BT = None
        if not self.due(step):
            return
        for name, group in self._groups.items():
            if norms is None:
                grads = [p.grad.detach().float() for p in group if p.grad is not None]
                found = list(torch._foreach_norm(grads)) if grads else []
            else:
                found = [norms[p] for p in group if p in norms]
            if found:
                self.values[name] = torch.linalg.vector_norm(torch.stack(found))

    def take(self) -> dict[str, float]:
        """The latest values, once."""
        values, self.values = {name: float(v) for name, v in self.values.items()}, {}
        return values


class LogCallback(TrainerCallback):
    """Send every log to the tracker and the progress display; stop a run whose loss is no number."""

    def __init__(self, tracker: Tracker, progress: Callable[[int, int, str], None], watch: LayerWatch):
        self.tracker, self.progress, self.watch = tracker, progress, watch

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if "eval_loss" in logs:
            self.tracker.log({"selection_loss": logs["eval_loss"]}, state.global_step)
            self._histograms(model, state.global_step)
        if "loss" not in logs:
            return
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs[name])):
                raise StepError(
                    f"{name} is {float(logs[name])} at step {state.global_step} (learning rate {args.learning_rate:g}): "
                    "training has diverged; lower this method's learning rate or lengthen its warm-up"
                )
        self.tracker.log(self._values(logs, model), state.global_step)
        self.progress(state.global_step, state.max_steps, f"loss {logs['loss']:.3f}")

    def _values(self, logs: Mapping[str, float], model: Any) -> dict[str, float]:
        seconds = max(logs["seconds"], 1e-9)
        values = {name: float(logs[name]) for name in ("loss", "learning_rate", "grad_norm")}
        values["clipped"] = logs["clipped_steps"] / logs["steps"]
        values["tokens_per_s"] = logs["real_tokens"] / seconds
        values["step_time_s"] = seconds / logs["steps"]
        if isinstance(model, PeftModel):
            norms = adapter_norms(model)
            values |= {"adapter_norm" if k == "all" else f"adapter_norm/{k}": v for k, v in norms.items()}
        return values | memory() | self.watch.take()

    def _histograms(self, model: Any, step: int) -> None:
        if not isinstance(model, PeftModel):
            return
        for kind in ("lora_A", "lora_B"):
            weights = [p.detach().float().flatten() for name, p in model.named_parameters() if kind in name]
            if weights:
                self.tracker.histogram(kind, torch.cat(weights).cpu().numpy(), step)


def memory() -> dict[str, float]:
    """Bytes in use now: allocated and reserved on a GPU, resident set on a CPU."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return {"memory_allocated_bytes": torch.cuda.memory_allocated(), "memory_reserved_bytes": torch.cuda.memory_reserved()}
    return {"memory_rss_bytes": psutil.Process().memory_info().rss}


class ProbeCallback(TrainerCallback):
    """Probe drift at the early steps and at every n-th step. Runs before logging and saving, so a checkpoint seals its probe records."""

    def __init__(self, recorder: DriftRecorder, spec: DriftSpec, tracker: Tracker):
        self.recorder, self.spec, self.tracker = recorder, spec, tracker

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any) -> None:
        step = state.global_step
        if step in self.spec.early_steps or step % self.spec.every == 0:
            self.tracker.log({"drift": self.recorder.take(model, step)}, step)
