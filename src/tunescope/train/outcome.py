"""The end of a training run: take the best checkpoint, score, probe, prove the adapter, save, and say what looks wrong."""

import hashlib
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from peft import PeftModel, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerState

from tunescope.errors import StepError
from tunescope.models.loading import decoder_layers, parameter_counts
from tunescope.models.lora_utils import save_as_update, tensor_sha256
from tunescope.records import Metric, StepResult

from .callbacks import selection_losses
from .evaluate import Prediction, evaluate, write_predictions
from .finetune import Reference, Run, Trained, forget_peak, peak_memory
from .flops import flops_per_token, peak_flops
from .proofs import MERGE_TOLERANCE, adapter_proofs, trained_tensors
from .red_flags import adapter_flags, training_flags
from .trainer import save_weights


def conclude(run: Run, trained: Trained) -> StepResult:
    """Score the checkpoint with the best selection loss and build the step's result.

    Checkpoints stay until that is written: `Store.finish` drops them.
    """
    model, state = trained.model, trained.state
    best = int(state.best_global_step or 0)
    forget_peak()
    load_weights(model, run.checkpoints / f"checkpoint-{best}")
    model.float().eval()
    trainable, total = parameter_counts(model)
    flops = flops_per_token(model, run.rows, trainable, adapted=run.inputs.method_spec.adapter is not None)
    metrics = [
        *_training_metrics(state, best),
        Metric(name="trainable_parameters", value=trainable, unit="parameters"),
        Metric(name="total_parameters", value=total, unit="parameters"),
    ]
    outputs = _outputs(run, trained)
    notes = run.notes + training_flags(state.log_history)
    content = ["drift.parquet", "probe/step-0.safetensors", "probe/scored.safetensors"]
    predictions: list[Prediction] = []
    if run.inputs.role == "final":
        predictions, scores = _score(run, model)
        metrics = scores + metrics
        content += ["predictions.parquet", *_save(run, model, trained.reference)]
    _, drifts = trained.recorder.score(model, best)
    n_probe = trained.recorder.base.n
    metrics += [Metric(name=name, value=v, unit="1 - CKA", split="probe", n=n_probe) for name, v in drifts.items()]
    run.ctx.tracker.log({"drift": drifts["drift"]}, best)
    outputs["weights_sha256"] = tensor_sha256(trained_tensors(model))
    if trained.reference is not None:
        proofs, facts = adapter_proofs(run, model, trained.reference, predictions)
        metrics, outputs = metrics + proofs, outputs | facts
        notes += adapter_flags(facts, proofs, MERGE_TOLERANCE)
    run.ctx.tracker.summary({m.name if m.split is None else f"{m.split}/{m.name}": m.value for m in metrics})
    resources = _resources(run, trained, flops)
    return StepResult(metrics=metrics, resources=resources, outputs=outputs, content=content, notes=notes)


def load_weights(model: Any, folder: Path) -> None:
    """Put a checkpoint's weights into a model of the same shape.

    Raises:
        StepError: weights are missing from the checkpoint or do not fit.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(path)
    if not tensors:
        raise StepError(f"{folder}: the best checkpoint is gone; start this step again")
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, tensors)
        return
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    known = dict(model.named_parameters(remove_duplicate=False))
    filled = {id(known[name]) for name in tensors if name in known}
    absent = [name for name in missing if name in known and id(known[name]) not in filled]
    if absent or unexpected:
        raise StepError(f"{folder}: checkpoint does not fit the model (missing {absent[:3]}, unexpected {list(unexpected)[:3]})")


def _score(run: Run, model: Any) -> tuple[list[Prediction], list[Metric]]:
    training = run.inputs.training
    predictions, scores = evaluate(
        model,
        run.tokenizer,
        run.test_examples,
        run.task,
        max_length=run.inputs.task_spec.max_length,
        batch_size=training.eval_batch,
        device=run.ctx.device,
    )
    write_predictions(run.ctx.folder / "predictions.parquet", predictions)
    return predictions, scores


def _save(run: Run, model: Any, reference: Reference | None) -> list[str]:
    """Write adapter/ or model/ (fp32, the weights that were scored); returns the weight files. A kept adapter fits the untouched base."""
    folder = run.ctx.folder / ("adapter" if isinstance(model, PeftModel) else "model")
    shutil.rmtree(folder, ignore_errors=True)
    if isinstance(model, PeftModel):
        model.peft_config["default"].base_model_name_or_path = run.inputs.model.name  # a name, not this machine's path
    else:
        run.tokenizer.save_pretrained(folder)
    if reference is not None and reference.start_adapter is not None:
        save_as_update(model, reference.start_adapter, folder)
    else:
        save_weights(model, folder)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's template: nothing filled in but this machine's path to the base
    return [f"{folder.name}/{p.name}" for p in sorted(folder.glob("*.safetensors"))]


def _training_metrics(state: TrainerState, best: int) -> list[Metric]:
    logs = [row for row in state.log_history if "loss" in row]
    steps = int(sum(row["steps"] for row in logs))
    losses = [("selection_loss", "selection", min(selection_losses(state)))]
    losses += [("train_loss_first", "train", logs[0]["loss"]), ("train_loss_last", "train", logs[-1]["loss"])]
    return [
        *(Metric(name=n, value=v, unit="nats/token", split=s, higher_is_better=False) for n, s, v in losses),
        Metric(name="clipped_share", value=sum(row["clipped_steps"] for row in logs) / steps, unit="fraction", n=steps),
        Metric(name="steps_run", value=state.global_step, unit="steps"),
        Metric(name="best_step", value=best, unit="steps"),
    ]


def _outputs(run: Run, trained: Trained) -> dict[str, Any]:
    inputs = run.inputs
    return {
        "precision": run.precision.name,
        "scoring_precision": "fp32",
        "fused_kernels": inputs.training.fused_kernels,
        "optimizer": inputs.training.optimizer,
        "learning_rate": run.learning_rate,
        "batch_size": run.batch_size,
        "micro_batch": trained.micro,
        **trained.steps,
        "steps_planned": run.steps,
        "warmup_steps": run.warmup_steps,
        "epochs": run.rows_seen / len(run.rows),
        "probe_sha256": trained.recorder.probe.sha256,
        "loss_digest": loss_digest(trained.state.log_history),
        "truncated": run.truncated | {"probe": trained.recorder.probe.truncated},
        "selected_by": "selection_loss",
        "n_layers": len(decoder_layers(trained.model)),
        "adapter": None if inputs.method_spec.adapter is None else inputs.method_spec.adapter.model_dump(mode="json"),
    }


def loss_digest(history: list[dict[str, Any]]) -> str:
    """SHA-256 over every logged training and selection loss, exactly as printed by `repr`."""
    lines = [f"{row['step']} {key} {row[key]!r}" for row in history for key in ("loss", "eval_loss") if key in row]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _resources(run: Run, trained: Trained, flops: float) -> list[Metric]:
    logs = [row for row in trained.state.log_history if "loss" in row]
    seconds, tokens = sum(r["seconds"] for r in logs), sum(r["real_tokens"] for r in logs)
    step_times = [r["seconds"] / r["steps"] for r in logs]
    speed, peak = tokens / max(seconds, 1e-9), peak_flops(run.ctx.device, run.precision.name)
    rows = [] if trained.resumed else [("wall_s", time.perf_counter() - run.started, "s")]  # of a part of the run: of nothing
    rows += [
        ("train_s", seconds, "s"),
        ("step_time_median_s", median(step_times), "s"),
        ("real_tokens_per_s", speed, "tokens/s"),
        ("real_tokens", tokens, "tokens"),
        ("theoretical_flops_per_token", flops, "FLOP"),
        ("model_flops_per_s", speed * flops, "FLOP/s"),
    ]
    rows += [] if peak is None else [("mfu", speed * flops / peak, "fraction")]
    return [Metric(name=n, value=v, unit=u) for n, v, u in rows] + _peaks({**trained.peaks, "scoring": peak_memory()})


def _peaks(peaks: Mapping[str, Mapping[str, float]]) -> list[Metric]:
    """Peak memory of the whole step, which nobody knows when another process trained, and on a GPU of its phases."""
    names = next(iter(peaks.values())) if "training" in peaks else ()
    rows = [Metric(name=name, value=max(phase.get(name, 0.0) for phase in peaks.values()), unit="bytes") for name in names]
    phases = [(phase, name) for phase in peaks for name in peaks[phase] if name != "peak_rss_bytes"]
    return rows + [Metric(name=f"{phase}_{name}", value=peaks[phase][name], unit="bytes") for phase, name in phases]
