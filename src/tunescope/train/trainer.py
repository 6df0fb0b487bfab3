"""The Hugging Face Trainer with a loss on completion tokens, real-token counting and a selection loss of its own."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.utils import is_bitsandbytes_available

from tunescope.errors import PrerequisiteError, StepError
from tunescope.study.schema import TrainingSpec

from .batching import Batching, EffectiveBatch, Row, RunDataset, completion_loss, on_device, selection_loss
from .capture import CapturedSteps
from .in_backward import InBackward
from .precision import Precision


@contextmanager
def deterministic_backward() -> Iterator[None]:
    """In deterministic mode, raise instead of warn: flash attention's backward takes its deterministic form only then."""
    if not (torch.are_deterministic_algorithms_enabled() and torch.cuda.is_available()):
        yield
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


@dataclass
class Window:
    """What happened since the last log."""

    steps: int = 0
    real_tokens: int = 0
    seconds: float = 0.0
    clipped: Tensor = field(default_factory=lambda: torch.zeros(()))
    started: float = 0.0

    def start(self) -> None:
        self.started = time.perf_counter()

    def stop(self) -> None:
        self.steps += 1
        self.seconds += time.perf_counter() - self.started

    def close(self) -> dict[str, float]:
        """The window's numbers; begins a new one. They travel in the log history, so a resumed run keeps them."""
        row = {
            "steps": self.steps,
            "real_tokens": self.real_tokens,
            "seconds": self.seconds,
            "clipped_steps": float(self.clipped),
        }
        self.steps, self.real_tokens, self.seconds, self.clipped = 0, 0, 0.0, torch.zeros_like(self.clipped)
        return row


class CompletionTrainer(Trainer):
    """Thin: the loop, clipping, schedule, checkpoints and resuming are the Trainer's; a batch of its loader is an effective batch."""

    def __init__(
        self,
        *,
        selection_rows: Sequence[Row],
        batching: Batching,
        precision: Precision,
        capture: Literal["auto", "always", "never"] = "never",
        watch: Any = None,
        in_backward: bool = False,
        **kwargs: Any,
    ):
        collator: Any = batching
        super().__init__(data_collator=collator, eval_dataset=selection_rows, **kwargs)
        self.selection_rows, self.batching, self.precision, self.watch = selection_rows, batching, precision, watch
        self.window = Window()
        self.in_backward: InBackward | None = None
        trained: Any = self.model
        if in_backward:
            self.in_backward = InBackward(trained, self.args.max_grad_norm, lambda: getattr(self.optimizer, "optimizer", self.optimizer))
        self.captured: CapturedSteps | None = None
        if capture != "never":
            data: Any = self.train_dataset
            self.captured = CapturedSteps(trained, batching.pad_id, data.longest, self._loss, watch, required=capture == "always")

    def get_batch_samples(self, epoch_iterator: Iterator[EffectiveBatch], num_batches: int, device: Any) -> tuple[list, int]:
        """One effective batch, and its number of completion tokens."""
        self.window.start()
        step = next(epoch_iterator, None)
        if step is None:
            return [], 0
        self.window.real_tokens += step.real_tokens
        return [step], step.completion_tokens

    def training_step(self, model: nn.Module, inputs: EffectiveBatch, num_items_in_batch: Any = None) -> Tensor:  # type: ignore[override]
        """Accumulate the gradient of the mean loss of an effective batch (nats a completion token); returns that loss."""
        model.train()
        step = self.state.global_step + 1
        with deterministic_backward():
            if self.captured is not None:
                return self.captured.run(inputs, step)
            if self.in_backward is not None and len(inputs.parts) > 1:
                raise StepError(f"training.optimizer adamw_in_backward: step {step} has {len(inputs.parts)} micro-batches, one is possible")
            losses = [self._backward(self.batching.batch(rows), inputs.completion_tokens, step) for rows in inputs.parts]
        return torch.stack(losses).sum()

    def _backward(self, batch: dict[str, Any], tokens: int, step: int) -> Tensor:
        batch = on_device(batch, self.args.device)
        if self.watch is not None:
            self.watch.look(step, batch)
        loss = self._loss(batch) / tokens
        if self.in_backward is None:
            loss.backward()
        else:
            self.in_backward.step(loss)
        return loss.detach()

    def _loss(self, batch: dict[str, Any]) -> Tensor:
        with self.precision.context():
            return completion_loss(self.model, batch)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        if self.watch is not None:
            self.watch.gradients(self.state.global_step + 1, self.in_backward.norms if self.in_backward else None)
        norm = self.in_backward.norm if self.in_backward else super()._clip_grad_norm(model)
        self.window.clipped = self.window.clipped.to(norm.device) + (norm > self.args.max_grad_norm)
        return norm

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the window's steps, tokens, seconds and clipped steps to a training log."""
        if "loss" in logs:
            logs = {**logs, **self.window.close()}
        super().log(logs, start_time)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Selection loss only; task metrics are taken once, at the end."""
        model: Any = self.model
        model.eval()
        with self.precision.context(keep_copies=False):
            batching = replace(self.batching, most_rows=self.args.per_device_eval_batch_size)
            loss = selection_loss(model, self.selection_rows, batching, str(self.args.device))
        if not torch.isfinite(torch.tensor(loss)):
            raise StepError(f"selection loss is {loss} at step {self.state.global_step}: lower the learning rate of this method")
        metrics = {"eval_loss": loss}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Weights as safetensors, nothing pickled beside them."""
        save_weights(self.model, output_dir or self.args.output_dir)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted here: the Trainer's figure takes padding for work and LoRA for full training."""
        return 0


def save_weights(model: Any, folder: Any) -> None:
    """`save_pretrained` of a model or an adapter; never looks anything up on the hub."""
    if isinstance(model, PeftModel):
        model.save_pretrained(folder, save_embedding_layers=False)
    else:
        model.save_pretrained(folder)


def training_arguments(
    spec: TrainingSpec,
    *,
    folder: str,
    device: str,
    steps: int,
    warmup_steps: int,
    learning_rate: float,
    batch: int,
    seed: int,
) -> TrainingArguments:
    """The Trainer's settings of one run; everything that is data in the study file comes in here and nowhere else."""
    if warmup_steps >= steps:
        raise StepError(f"warm-up of {warmup_steps} steps is not shorter than the run of {steps}: lower warmup_ratio or train longer")
    return TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=batch,  # the effective batch; CompletionTrainer cuts it into micro-batches
        per_device_eval_batch_size=spec.eval_batch,
        learning_rate=learning_rate,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=warmup_steps,
        optim=_optimizer(spec),
        logging_steps=spec.log_every,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=spec.eval_every,
        save_strategy="steps",
        save_steps=spec.checkpoint_every,
        save_total_limit=2,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        train_sampling_strategy="sequential",
        gradient_checkpointing=spec.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if spec.gradient_checkpointing else None,
        seed=seed,
        use_cpu=device == "cpu",
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )


def _optimizer(spec: TrainingSpec) -> str:
    """The Trainer's name of an optimizer.

    Raises:
        PrerequisiteError: its library is not installed.
    """
    if spec.optimizer != "adamw_8bit":
        return "adamw_torch_fused"
    if not is_bitsandbytes_available():
        raise PrerequisiteError(
            "training.optimizer adamw_8bit: bitsandbytes (extra `lean`) is not installed: install it, or set it to adamw"
        )
    return "adamw_bnb_8bit"


def build_trainer(
    model: Any,
    arguments: TrainingArguments,
    rows: RunDataset,
    selection_rows: Sequence[Row],
    batching: Batching,
    precision: Precision,
    **extras: Any,
) -> CompletionTrainer:
    """A trainer without the console printing of the Trainer's default callbacks."""
    from transformers.trainer_callback import PrinterCallback

    trainer = CompletionTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        selection_rows=selection_rows,
        batching=batching,
        precision=precision,
        **extras,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer
