"""What is proved of every adapter: the base is untouched, it comes off and on without a trace, and it can be merged."""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel

from tunescope.models.lora_utils import (
    MergeEquivalence,
    adapter_norms,
    base_sha256,
    last_token_logits,
    load_finetuned,
    merge_equivalence,
    rank_utilisation,
)
from tunescope.models.tokenization import completion_ids
from tunescope.records import Metric

from .evaluate import Prediction, evaluate
from .finetune import Reference, Run

MERGE_TOLERANCE = 1e-4
"""Largest |Δlogit| between merged and adapted model in fp32."""
MERGE_EXAMPLES = 1000
"""Test examples, evenly spaced, which the model merged in bf16 predicts again."""


def trained_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The weights that training changed, by name."""
    return {name: p.data for name, p in model.named_parameters() if p.requires_grad}


def adapter_proofs(run: Run, model: Any, reference: Reference, scored: Sequence[Prediction]) -> tuple[list[Metric], dict[str, Any]]:
    """The base is untouched, the rank is used so far; a saved adapter can be unloaded, loaded again and merged.

    Args:
        scored: test predictions of the adapted model; empty for a search run, which saves nothing. Uses up the model.
    """
    after = base_sha256(model)
    used = rank_utilisation(model) if reference.start_adapter is None else {}
    facts: dict[str, Any] = {
        "base_unchanged": after == reference.start_sha256,
        "base_sha256": {"before": reference.sha256, "start": reference.start_sha256, "after": after},
        "adapter_norms": adapter_norms(model),
        "largest_adapter_weight": max(float(t.abs().max()) for t in trained_tensors(model).values()),
    }
    if scored and reference.start_adapter is not None:
        model, facts["conversion_max_abs_logit_difference"] = _converted(run, model, reference)
        used = rank_utilisation(model)
    facts["rank_utilisation"] = used
    metrics = []
    if used:
        share = sum(row["utilisation"] for row in used.values()) / len(used)
        metrics.append(Metric(name="rank_utilisation", value=share, unit="fraction"))
    if scored and base_can_return(model):
        merged, equivalence, round_trip = _round_trip(run, model, reference)
        facts |= round_trip
        metrics += [
            Metric(name="merge_max_abs_logit_difference", value=equivalence.max_abs_logit_difference, unit="logit", n=equivalence.n),
            Metric(name="merge_label_agreement", value=equivalence.label_agreement, unit="fraction", n=equivalence.n),
        ]
        found, facts["merge_bf16_computed_in"] = merged_in_bf16(run, merged, scored)
        metrics += found
    return metrics, facts


def _converted(run: Run, model: Any, reference: Reference) -> tuple[Any, float]:
    """The adapter as it was saved, on the untouched base, and how far its logits are from the trained model's."""
    trained = last_token_logits(model, reference.prompts)
    kept = load_finetuned(run.base_path, run.ctx.folder, torch.float32, run.ctx.device)
    return kept, float((last_token_logits(kept, reference.prompts) - trained).abs().max())


def base_can_return(model: Any) -> bool:
    """Whether this PEFT type can be merged and unloaded."""
    return hasattr(model.base_model, "merge_and_unload") and hasattr(model.base_model, "unload")


def _round_trip(run: Run, model: Any, reference: Reference) -> tuple[Any, MergeEquivalence, dict[str, Any]]:
    """Unload, load again from disk, merge in fp32: the merged model, how far it is from the adapted one, and facts."""
    adapted = last_token_logits(model, reference.prompts)
    base = model.unload()
    restored = last_token_logits(base, reference.prompts)
    again = PeftModel.from_pretrained(base, str(run.ctx.folder / "adapter"), autocast_adapter_dtype=False).eval()
    reloaded = last_token_logits(again, reference.prompts)
    merged = again.merge_and_unload(safe_merge=True).eval()
    firsts = [completion_ids(run.tokenizer, v)[0] for v in run.task.verbalisers]
    labels = firsts if firsts and len(set(firsts)) == len(firsts) else None
    facts = {
        "unload_restores_base": bool(torch.equal(restored, reference.logits_NV)),
        "reload_restores_adapter": bool(torch.equal(reloaded, adapted)),
        "merge_tolerance": MERGE_TOLERANCE,
    }
    return merged, merge_equivalence(adapted, last_token_logits(merged, reference.prompts), labels), facts


def merged_in_bf16(run: Run, merged: Any, scored: Sequence[Prediction]) -> tuple[list[Metric], str]:
    """Test examples predicted again by the merged model with weights cast once to bf16, against the adapter's own predictions.

    A GPU with bf16 computes in it, as serving does; elsewhere the rounded weights compute in fp32 (emulated bf16 is 8 times slower).

    Returns:
        Share of equal predictions and |difference| of the task's primary metric (fractions) on at most MERGE_EXAMPLES test
        examples, and the precision of the arithmetic.
    """
    computed_in = "bf16" if run.ctx.device.startswith("cuda") and torch.cuda.is_bf16_supported() else "fp32"
    for parameter in merged.parameters():  # not merged.to(): rotary frequencies are buffers and must stay fp32
        rounded = parameter.data.bfloat16()
        parameter.data = rounded if computed_in == "bf16" else rounded.float()
    chosen = range(0, len(scored), -(-len(scored) // MERGE_EXAMPLES))
    kept = [scored[i] for i in chosen]
    again, metrics = evaluate(
        merged,
        run.tokenizer,
        [run.test_examples[i] for i in chosen],
        run.task,
        max_length=run.inputs.task_spec.max_length,
        batch_size=run.inputs.training.eval_batch,
        device=run.ctx.device,
    )
    agreement = sum(a.prediction == b.prediction for a, b in zip(kept, again, strict=True)) / len(kept)
    before, after = (_primary(run, found) for found in (run.task.score([p.scored for p in kept]), metrics))
    rows = {"merge_bf16_label_agreement": agreement, "merge_bf16_score_gap": abs(after - before)}
    return [Metric(name=name, value=value, unit="fraction", n=len(kept)) for name, value in rows.items()], computed_in


def _primary(run: Run, metrics: Sequence[Metric]) -> float:
    return next(float(m.value) for m in metrics if m.name == run.task.primary_metric and m.value is not None)
