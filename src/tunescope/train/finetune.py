"""One training run, for every method alike: prepare, train (or go on from the last intact checkpoint), then conclude."""

import gc
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, TrainerState
from transformers.trainer_callback import TrainerCallback

from tunescope.data import load_examples
from tunescope.data.tasks import get_task
from tunescope.drift.forgetting import HeldOutText, embedded_passages
from tunescope.drift.probe import Probe
from tunescope.errors import OutOfMemoryError, StudyError
from tunescope.models.loading import decoder_layers, fuse_kernels, load_model, load_tokenizer, resolve_model
from tunescope.models.lora_utils import apply_adapter, base_sha256, last_token_logits, start_tensors
from tunescope.models.tokenization import encode
from tunescope.records import StepContext, StepResult, store_root
from tunescope.study.inputs import TrainInputs
from tunescope.study.schema import AdapterSpec

from .batching import Batching, Row, RunDataset, encode_rows, longest_first, micro_batch_size, run_length, run_order, stream_seed
from .callbacks import FlowCallback, LayerWatch, LogCallback, ProbeCallback
from .checkpoints import Checkpoint, resumable
from .precision import Precision, captures, packs, resolve_precision, set_storage
from .probing import DriftRecorder
from .trainer import CompletionTrainer, build_trainer, training_arguments

PROOF_PROMPTS = 24
"""Probe prompts on which merging, unloading and reloading are compared."""


@dataclass
class Run:
    """Everything fixed before the first step."""

    inputs: TrainInputs
    ctx: StepContext
    task: Any
    tokenizer: PreTrainedTokenizerBase
    base_path: Path
    rows: list[Row]
    selection_rows: list[Row]
    test_examples: list[Any]
    probe_examples: list[Any]
    truncated: dict[str, Any]
    learning_rate: float
    batch_size: int
    steps: int
    rows_seen: int
    warmup_steps: int
    precision: Precision
    started: float
    notes: list[str] = field(default_factory=list)

    @property
    def checkpoints(self) -> Path:
        return self.ctx.folder / "checkpoints"

    @property
    def probe_rows(self) -> Path:
        """Records that the checkpoints seal; they go with them."""
        return self.checkpoints / "probes"

    @property
    def pad_id(self) -> int:
        return int(self.tokenizer.pad_token_id)


@dataclass
class Reference:
    """What the untouched base gave, for the proofs that an adapter left it alone."""

    prompts: list[list[int]]
    sha256: str
    logits_NV: torch.Tensor
    start_sha256: str = ""
    """Frozen weights under the adapter before the first step; differs from `sha256` only when the adapter's start rewrites them (PiSSA)."""
    start_adapter: dict[str, torch.Tensor] | None = None
    """In that case the adapter as it started, without which what was learned cannot be told from what was moved."""


@dataclass
class Trained:
    """A run after its last step. The model still holds the weights of that step."""

    model: Any
    state: TrainerState
    recorder: DriftRecorder
    reference: Reference | None
    micro: int
    steps: Mapping[str, Any]
    """How its steps ran: `batching`, `captured`."""
    peaks: Mapping[str, Mapping[str, float]]
    """Peak memory in bytes of each phase so far; without training when another process had ended it."""
    resumed: bool
    """Whether this process took over from another, whose time it does not know."""


def run_train(inputs: TrainInputs, ctx: StepContext) -> StepResult:
    """Train one method on one task at one seed; score and probe the checkpoint with the best selection loss.

    Raises:
        StudyError: settings that cannot train (targets, rank, sequence limit, warm-up), named by their place in the study file.
        PrerequisiteError: no data or no model.
        StepError: the loss is no number, or the model is not its base at step 0.
    """
    from .outcome import conclude

    run = prepare(inputs, ctx)
    return conclude(run, train(run))


def prepare(inputs: TrainInputs, ctx: StepContext) -> Run:
    """Read data and tokenizer, fix the order of rows, the schedule and the precision."""
    started = time.perf_counter()
    if inputs.learning_rate is None or inputs.batch_size is None:
        raise StudyError(
            f"train {inputs.task}/{inputs.method}: learning rate and batch size are not chosen yet; finish the search steps first"
        )
    _determinism(inputs.training.deterministic)
    base_path = resolve_model(inputs.model, store_root(ctx.folder))
    tokenizer = load_tokenizer(base_path)
    task = get_task(inputs.task)
    limit, qa = inputs.task_spec.max_length, task.kind == "qa"
    parts = {p: load_examples(ctx.data_dir, inputs.task, p) for p in ("train", "selection", "probe")}
    parts["test"] = load_examples(ctx.data_dir, inputs.task, "test") if inputs.role == "final" else []
    rows, in_train = encode_rows(tokenizer, parts["train"], limit, end=qa)
    selection_rows, in_selection = encode_rows(tokenizer, parts["selection"], limit, end=qa)
    training = inputs.training
    cap = inputs.task_spec.max_steps or training.max_steps
    steps, rows_seen = run_length(len(rows), inputs.batch_size, training.max_epochs, cap)
    return Run(
        inputs=inputs,
        ctx=ctx,
        task=task,
        tokenizer=tokenizer,
        base_path=base_path,
        rows=rows,
        selection_rows=selection_rows,
        test_examples=parts["test"],
        probe_examples=parts["probe"],
        truncated={
            "train": vars(in_train),
            "selection": vars(in_selection),
            "test": _prompts_cut(tokenizer, parts["test"], limit),
        },
        learning_rate=inputs.learning_rate,
        batch_size=inputs.batch_size,
        steps=steps,
        rows_seen=rows_seen,
        warmup_steps=warmup_length(inputs.method_spec.warmup_ratio, steps),
        precision=resolve_precision(training.precision, ctx.device),
        started=started,
    )


def warmup_length(ratio: float, steps: int) -> int:
    """Warm-up in whole steps, rounded up as `transformers.TrainingArguments` does, but never so that rounding alone fills a tiny run.

    Raises:
        StudyError: the warm-up would fill the run.
    """
    warmup = min(math.ceil(ratio * steps - 1e-9), max(steps - 1, math.floor(ratio * steps + 1e-9)))
    if warmup >= steps:
        raise StudyError(f"warmup_ratio {ratio}: {warmup} warm-up steps are not shorter than the run of {steps} steps; lower it")
    return warmup


def _prompts_cut(tokenizer: PreTrainedTokenizerBase, examples: list[Any], limit: int) -> dict[str, int]:
    encoded = [encode(tokenizer, e, limit, completion=None, end=False) for e in examples]
    return {
        "examples": len(encoded),
        "truncated": sum(e.truncated for e in encoded),
        "answers_lost": sum(e.answer_lost for e in encoded),
    }


def _determinism(wanted: bool) -> None:
    """Deterministic kernels. Memory is not filled: that costs time and changes nothing that is read."""
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.benchmark = False
    if wanted:
        torch.backends.cuda.enable_mem_efficient_sdp(False)  # its backward pass has no deterministic form


def train(run: Run) -> Trained:
    """Train until the run is over, halving the micro-batch whenever GPU memory runs out (the effective batch stays)."""
    micro = micro_batch_size(run.batch_size, run.inputs.training.micro_batch)
    while True:
        try:
            return _train_once(run, micro)
        except torch.OutOfMemoryError as error:
            if micro == 1 or run.inputs.training.optimizer == "adamw_in_backward":
                raise OutOfMemoryError(
                    f"out of GPU memory at micro-batch {micro}, which cannot be halved: set training.gradient_checkpointing, "
                    "or run fewer jobs on this GPU"
                ) from error
            smaller = micro_batch_size(run.batch_size, micro // 2)
            run.notes.append(
                f"out of GPU memory at micro-batch {micro}: went on with {smaller}, effective batch {run.batch_size} unchanged"
            )
            micro = smaller
        gc.collect()
        torch.cuda.empty_cache()


def _train_once(run: Run, micro: int) -> Trained:
    inputs, ctx = run.inputs, run.ctx
    limit = inputs.task_spec.max_length
    text = HeldOutText(embedded_passages(), run.tokenizer, limit)
    probe = Probe(run.task, run.probe_examples, run.tokenizer, limit, inputs.drift, ctx.device, text)
    checkpoint, refused = resumable(run.checkpoints, run.probe_rows, run.precision.name)
    run.notes += [refused] if refused else []
    ctx.tracker.rewind(checkpoint.step if checkpoint else -1)
    forget_peak()
    model, recorder, reference = _start(run, probe)
    peaks = {"startup": peak_memory()}
    forget_peak()
    watch = LayerWatch(model, decoder_layers(model), inputs.training.log_every)
    batching = Batching(run.pad_id, packs(inputs.training, run.precision), micro, inputs.training.micro_tokens)
    capture = inputs.training.capture if captures(inputs.training, run.precision) else "never"
    trainer = build_trainer(
        model, _arguments(run), _dataset(run), run.selection_rows, batching, run.precision, capture=capture, watch=watch,
        in_backward=inputs.training.optimizer == "adamw_in_backward",
    )  # fmt: skip
    for callback in _callbacks(run, trainer, recorder, watch):
        trainer.add_callback(callback)
    state = _go(run, trainer, checkpoint)
    steps = {"batching": "packed" if batching.packed else "padded"} | _release(run, trainer)
    if not (checkpoint and checkpoint.finished):
        peaks["training"] = peak_memory()
    return Trained(model, state, recorder, reference, micro, steps, peaks, checkpoint is not None)


def _release(run: Run, trainer: CompletionTrainer) -> dict[str, Any]:
    """Free what only training needs; says whether its steps were captured."""
    trainer.optimizer = trainer.lr_scheduler = None
    if trainer.in_backward is not None:
        trainer.in_backward.close()
    captured = trainer.captured
    if captured is None:
        return {"captured": False}
    if captured.refused:
        run.notes.append(f"steps could not be captured as CUDA graphs and ran plainly: {captured.refused}")
    captured.close()
    return {"captured": not captured.refused}


def _start(run: Run, probe: Probe) -> tuple[Any, DriftRecorder, Reference | None]:
    """Load the base, probe it, put the adapter on, and check that the model is still the base."""
    inputs, device = run.inputs, run.ctx.device
    model: Any = load_model(run.base_path, dtype=torch.float32, device=device)
    if inputs.training.fused_kernels:  # before the base is probed, so that base and tuned model run through the same kernels
        fuse_kernels(model)
    recorder = DriftRecorder(probe, probe.states(model, name="base"), inputs.drift, run.ctx.folder, run.probe_rows)
    adapter, reference = inputs.method_spec.adapter, None
    if adapter is not None:
        prompts = probe.tokens[:PROOF_PROMPTS]
        reference = Reference(prompts, base_sha256(model), last_token_logits(model, prompts))
        model = apply_adapter(model, adapter, stream_seed(inputs.seed, "init"))
        _note_start(reference, model, adapter)
    recorder.start(model, exact=adapter is None or _starts_at_zero(adapter))
    set_storage(model, run.precision)
    return model, recorder, reference


def _note_start(reference: Reference, model: Any, adapter: AdapterSpec) -> None:
    """Record what the frozen weights are under the fresh adapter, and the adapter itself when its start rewrote them."""
    reference.start_sha256 = reference.sha256 if _starts_at_zero(adapter) else base_sha256(model)
    if reference.start_sha256 != reference.sha256:
        reference.start_adapter = start_tensors(model)


def _starts_at_zero(adapter: AdapterSpec) -> bool:
    return adapter.peft_type == "LORA" and adapter.options.get("init_lora_weights", True) in (True, "gaussian")


def _arguments(run: Run) -> Any:
    return training_arguments(
        run.inputs.training,
        folder=str(run.checkpoints),
        device=run.ctx.device,
        steps=run.steps,
        warmup_steps=run.warmup_steps,
        learning_rate=run.learning_rate,
        batch=run.batch_size,
        seed=stream_seed(run.inputs.seed, "dropout"),
    )


def _dataset(run: Run) -> RunDataset:
    order = run_order(len(run.rows), run.rows_seen, stream_seed(run.inputs.seed, "order"))
    return RunDataset(run.rows, longest_first(order, run.rows, run.batch_size))


def _callbacks(run: Run, trainer: CompletionTrainer, recorder: DriftRecorder, watch: LayerWatch) -> list[TrainerCallback]:
    training, ctx = run.inputs.training, run.ctx
    chosen: list[TrainerCallback] = [FlowCallback(trainer.window, training.early_stopping_patience, recorder.rows, run.precision.name)]
    if run.inputs.role == "final":
        chosen.append(ProbeCallback(recorder, run.inputs.drift, ctx.tracker))
    return [*chosen, LogCallback(ctx.tracker, ctx.progress, watch)]


def _go(run: Run, trainer: CompletionTrainer, checkpoint: Checkpoint | None) -> TrainerState:
    """Train, or take the state of a checkpoint at which training had already ended."""
    if checkpoint is not None and checkpoint.finished:
        run.notes.append(f"went on after training had ended at step {checkpoint.step}")
        return TrainerState.load_from_json(str(checkpoint.folder / "trainer_state.json"))
    if checkpoint is not None:
        run.notes.append(f"resumed at step {checkpoint.step}")
    trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    return trainer.state


def forget_peak() -> None:
    """Begin a phase whose peak memory counts by itself (GPU only: a process's resident set has one peak)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, float]:
    """Highest use since the last `forget_peak`, in bytes."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return {
            "peak_memory_allocated_bytes": torch.cuda.max_memory_allocated(),
            "peak_memory_reserved_bytes": torch.cuda.max_memory_reserved(),
        }
    import resource

    unit = 1 if os.uname().sysname == "Darwin" else 1024
    return {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
