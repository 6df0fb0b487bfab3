"""A whole study's store, simulated with known effects, so that analysis and report can be tested without training anything.

Planted: LoRA's expected score is (1 - quality_gap) x full's, its drift drift_ratio x full's, and the registered adapter arm takes
(1 + overhead) x the time per token of the merged arm.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tunescope.study.identity import fingerprint
from tunescope.study.inputs import TrainInputs
from tunescope.study.plan import Plan, Step, build_plan
from tunescope.study.registration import FILE, registration
from tunescope.study.schema import AdapterSpec, MethodSpec, ModelSpec, ServingSpec, Study, TaskSpec, TrainingSpec

LABELS = {"mrpc": ("not_equivalent", "equivalent"), "rte": ("entailment", "not_entailment"), "sst2": ("negative", "positive")}
FULL_QUALITY = {"mrpc": 0.86, "sst2": 0.92, "rte": 0.82, "squad_v2": 0.80}
FULL_DRIFT = {"mrpc": 0.30, "sst2": 0.40, "rte": 0.25, "squad_v2": 0.45}
LAYERS, PARAMETERS, ADAPTER_PARAMETERS = 4, 2_156_160, 16_384
ARM_COST = {"lora_idle": 0.5, "adapters_1": 0.8, "adapters_2": 1.0, "adapters_4": 1.2, "switching": 1.3}
ARM_ADAPTERS = {"adapters_1": 1, "adapters_2": 2, "adapters_4": 4, "switching": 2}


def small_study(**changes: Any) -> Study:
    """Four tasks, full and LoRA, two learning rates each, three seeds, ten launches."""
    fields: dict[str, Any] = {
        "name": "simulated",
        "title": "A simulated study",
        "model": ModelSpec(name="sprout-2m"),
        "tasks": {t: TaskSpec(max_length=512) for t in FULL_QUALITY},
        "methods": {
            "full": MethodSpec(warmup_ratio=0.1, learning_rates=(5e-4, 1e-3)),
            "lora": MethodSpec(warmup_ratio=0.06, learning_rates=(3e-3, 1e-2), adapter=AdapterSpec()),
        },
        "seeds": (42, 1337, 2024),
        "training": TrainingSpec(batch_sizes=(16,), max_steps=60, eval_every=20),
        "serving": ServingSpec(
            arms=("base", "full", "merged", "lora_idle", "adapters_2", "adapters_4"),
            batch_sizes=(1, 2, 4, 8, 16), prompt_lengths=(128, 256), sampling=("greedy",), prompts_per_cell=12,
        ),
    }  # fmt: skip
    return Study(**{**fields, **changes})


def write_store(
    root: Path,
    study: Study,
    *,
    quality_gap: float = 0.02,
    drift_ratio: float = 0.6,
    overhead: float = 0.1,
    seeds: tuple[int, ...] = (42, 1337, 2024),
    launches: int = 10,
    n_examples: int = 200,
    sampled: bool = False,
    rng: np.random.Generator,
) -> None:
    """Write every step of the study's plan as a finished folder under `root/steps` (final runs of `seeds` only), and the plan.

    With `sampled` the examples are a random sample, as a test set is, and error rates may be counted over many stores; without it their
    difficulties are spread evenly, and scores come out as planted.
    """
    plan = build_plan(study)
    root.mkdir(parents=True, exist_ok=True)
    (root / FILE).write_text(json.dumps(registration(study, "2026-01-01T00:00:00+00:00", "train")))
    sets = {task: _examples(task, n_examples, sampled, rng) for task in study.tasks}
    for step in plan.steps:
        if step.kind == "train" and (step.seed in seeds or step.role == "search"):
            _train(root, plan, step, sets, quality_gap, drift_ratio, rng)
        elif step.kind == "baseline":
            _baseline(root, step, sets, rng)
        elif step.kind == "base-probe":
            _base_probe(root, step)
        elif step.kind == "drift":
            _drift(root, step, study)
        elif step.kind == "serve":
            _serve(root, step, study, overhead, launches, rng)
        elif step.kind == "data":
            _finish(root, step, {"source": "sample", "made_here": False, "comparable": True, "rows": {"test": n_examples}})
        elif step.kind == "correlate":
            _correlate(root, step)


def metric(name: str, value: float, unit: str = "fraction", split: str | None = "test", n: int | None = None, better: bool | None = True):
    """One metric row of result.json."""
    return {"name": name, "value": float(value), "unit": unit, "split": split, "n": n, "higher_is_better": better}


def _finish(root: Path, step: Step, outputs: dict, metrics: list | None = None, resources: list | None = None, inputs: Any = None) -> Path:
    folder = root / "steps" / step.id
    folder.mkdir(parents=True, exist_ok=True)
    values = (inputs or step.inputs).model_dump(mode="json")
    head = {"id": step.id, "kind": step.kind, "inputs": values, "fingerprint": fingerprint(values), "needs": list(step.needs)}
    (folder / "step.json").write_text(json.dumps(head))
    (folder / "provenance.json").write_text(json.dumps({"os": "simulated", "packages": {}, "commit": None}))
    (folder / "log.txt").write_text("simulated\n")
    result = {"metrics": metrics or [], "resources": resources or [], "outputs": outputs, "content": [], "notes": []}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def _examples(task: str, n: int, sampled: bool, rng: np.random.Generator) -> pd.DataFrame:
    """Examples with a latent difficulty: a method of quality q solves those with difficulty below q."""
    frame = pd.DataFrame({"example_id": [f"validation/{i}" for i in range(n)]})
    frame["difficulty"] = rng.random(n) if sampled else (rng.permutation(n) + 0.5) / n
    if task == "squad_v2":
        frame["group"] = [f"article-{i // 20}/paragraph-{i // 5}" for i in range(n)]
        frame["article"] = [f"article-{i // 20}" for i in range(n)]
        frame["label"] = None
        frame["weight"] = np.where(np.arange(n) % 4 == 0, 0.8, 1.0)
        frame["answerable"] = np.arange(n) % 2 == 0
    else:
        frame["group"], frame["article"] = frame.example_id, None
        frame["label"] = np.where(rng.permutation(n) < 0.45 * n, LABELS[task][0], LABELS[task][1])
        frame["weight"] = 1.0
    return frame


def _predictions(task: str, examples: pd.DataFrame, quality: float, rng: np.random.Generator, flips: float = 0.02) -> pd.DataFrame:
    """Rows of predictions.parquet; `flips` of the examples are solved or missed at random."""
    right = (examples.difficulty < quality).to_numpy()
    random = rng.random(len(right)) < flips
    right = np.where(random, rng.random(len(right)) < quality, right)
    frame = examples[["example_id", "group", "article", "label"]].copy()
    if task == "squad_v2":
        frame["prediction"] = np.where(right, "the answer <b>&", "")
        frame["correct"] = (right & (examples.weight == 1)).astype(float)
        frame["f1"] = right * examples.weight
        frame["no_answer_probability"] = np.where(right, 0.1, 0.9)
        frame["label_logprobs"] = None
    else:
        first, second = LABELS[task]
        other = np.where(examples.label == first, second, first)
        frame["prediction"] = np.where(right, examples.label, other)
        frame["correct"], frame["f1"], frame["no_answer_probability"] = right.astype(float), np.nan, np.nan
        frame["label_logprobs"] = [[-0.1, -2.4] if p == first else [-2.4, -0.1] for p in frame.prediction]
    return frame


def _scores(task: str, predictions: pd.DataFrame, prefix: str = "") -> list[dict]:
    n = len(predictions)
    if task == "squad_v2":
        return [metric(f"{prefix}f1", predictions.f1.mean(), n=n), metric(f"{prefix}exact_match", predictions.correct.mean(), n=n)]
    positive = LABELS[task][1]
    hit = ((predictions.prediction == positive) & (predictions.label == positive)).sum()
    size = (predictions.prediction == positive).sum() + (predictions.label == positive).sum()
    return [metric(f"{prefix}accuracy", predictions.correct.mean(), n=n), metric(f"{prefix}f1", 2 * hit / max(size, 1), n=n)]


def _train(root: Path, plan: Plan, step: Step, sets: dict, gap: float, ratio: float, rng: np.random.Generator) -> None:
    assert isinstance(step.inputs, TrainInputs) and step.task and step.method
    adapter = plan.study.methods[step.method].adapter is not None
    rates = plan.study.learning_rates(step.task, step.method)
    rate, size = step.inputs.learning_rate or rates[0], step.inputs.batch_size or plan.study.batch_sizes(step.task)[0]
    inputs = step.inputs.model_copy(update={"learning_rate": rate, "batch_size": size})
    drift = FULL_DRIFT[step.task] * (ratio if adapter else 1) * (1 + 0.3 * rates.index(rate)) * np.exp(0.04 * rng.standard_normal())
    loss = 0.35 * (1 + 0.05 * rates.index(rate) + 0.02 * adapter) + 0.002 * rng.standard_normal()
    metrics = [metric("drift", drift, "1 - CKA", "probe", 100, None)]
    metrics += [metric(f"drift_block_{k}", drift + 0.01 * rng.standard_normal(), "1 - CKA", "probe", 20, None) for k in range(5)]
    metrics += [
        metric("selection_loss", loss, "nats/token", "selection", 100, False),
        metric("train_loss_first", 1.2, "nats/token", "train", None, False),
        metric("train_loss_last", 0.08, "nats/token", "train", None, False),
        metric("trainable_parameters", ADAPTER_PARAMETERS if adapter else PARAMETERS, "parameters", None, None, None),
        metric("total_parameters", PARAMETERS + ADAPTER_PARAMETERS * adapter, "parameters", None, None, None),
        metric("clipped_share", 0.1, "fraction", "train", None, None),
        metric("steps_run", 60, "steps", None, None, None),
        metric("best_step", 40, "steps", None, None, None),
    ]
    outputs: dict[str, Any] = {
        "precision": "fp32", "optimizer": "adamw", "batching": "padded", "captured": False, "fused_kernels": False,
        "learning_rate": rate, "batch_size": size, "micro_batch": size, "probe_sha256": "ab" * 32,
        "loss_digest": "cd" * 32, "weights_sha256": "ef" * 32, "truncated": {"train": 0, "test": 0, "answer_lost": 0},
        "selected_by": "selection_loss", "n_layers": LAYERS,
    }  # fmt: skip
    if adapter:
        outputs["base_unchanged"] = {"ok": True, "before": "aa" * 32, "after": "aa" * 32}
    predictions = None
    if step.role == "final":
        if adapter:
            metrics += [metric("merge_max_abs_logit_difference", 2e-6, "logit", "probe", 32, False)]
            metrics += [metric("merge_label_agreement", 1.0, "fraction", "probe", 32), metric("rank_utilisation", 0.7, "fraction", None)]
            metrics += [
                metric("merge_bf16_label_agreement", 0.995, "fraction", None),
                metric("merge_bf16_score_gap", 0.001, "fraction", None),
            ]
        quality = FULL_QUALITY[step.task] * (1 - gap if adapter else 1) + 0.002 * rng.standard_normal()
        predictions = _predictions(step.task, sets[step.task], quality, rng)
        metrics = _scores(step.task, predictions) + metrics
    folder = _finish(root, step, outputs, metrics, _train_resources(adapter), inputs)
    if predictions is not None:
        predictions.to_parquet(folder / "predictions.parquet")
    _drift_table(drift, rng).to_parquet(folder / "drift.parquet")
    _series(folder / "metrics.jsonl", loss, drift, rate)


def _train_resources(adapter: bool) -> list[dict]:
    scale = 0.7 if adapter else 1.0
    values = [
        ("wall_s", 20.0, "s"),
        ("mfu", 0.4 / scale, "fraction"),
        ("train_s", 15 * scale, "s"),
        ("step_time_median_s", 0.2 * scale, "s"),
    ]
    values += [("real_tokens_per_s", 3000 / scale, "tokens/s"), ("peak_rss_bytes", 9e8 * scale, "bytes")]
    return [metric(name, value, unit, None, None, None) for name, value, unit in values]


def _drift_table(drift: float, rng: np.random.Generator) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for step, share in ((0, 0.0), (1, 0.05), (10, 0.3), (20, 0.6), (40, 1.0), (60, 1.05)):
        for layer in range(LAYERS + 1):
            value = drift * share * 2 * layer / (LAYERS + 1)
            for measure, number in (("cka_drift_debiased", value), ("cka_debiased", 1 - value), ("cosine_centred", 1 - value / 2)):
                rows += [_drift_row(step, layer, pooling, measure, -1, number) for pooling in ("last_prompt_token", "mean")]
            if step == 40:
                noisy = value + 0.01 * rng.standard_normal(5)
                rows += [_drift_row(step, layer, "last_prompt_token", "cka_drift_debiased", k, noisy[k]) for k in range(5)]
    return pd.DataFrame(rows)


def _drift_row(step: int, layer: int, pooling: str, measure: str, block: int, value: float) -> dict[str, Any]:
    row = {"step": step, "scored": step == 40, "layer": layer, "pooling": pooling, "measure": measure, "block": block}
    return {**row, "value": float(value), "n": 100 if block < 0 else 20}


def _series(path: Path, loss: float, drift: float, rate: float) -> None:
    lines = []
    for step in range(5, 61, 5):
        row = {"step": step, "time_s": step * 0.2, "loss": 1.2 * np.exp(-step / 15) + 0.05, "learning_rate": rate * (1 - step / 60)}
        row |= {"grad_norm": 0.8, "clipped": 0, "tokens_per_s": 3000, "step_time_s": 0.2}
        if step % 20 == 0:
            row |= {"selection_loss": loss * (1 + (step - 40) ** 2 / 4e3), "drift": drift * min(1.05, step / 40)}
        lines.append(json.dumps(row))
    path.write_text("\n".join(lines) + "\n")


def _baseline(root: Path, step: Step, sets: dict, rng: np.random.Generator) -> None:
    task = str(step.task)
    systems = {name: frame.assign(system=name) for name, frame in _baseline_systems(task, sets[task], rng)}
    metrics = [row for name, frame in systems.items() for row in _scores(task, frame, f"{name}/")]
    intervals = {row["name"]: [row["value"] - 0.05, row["value"] + 0.05] for row in metrics}
    published = [{"system": "BERT-base", "metric": "accuracy", "value": 0.9, "split": "dev", "source": "published paper"}]
    published += [{"system": "about 1B", "metric": "accuracy", "value": None, "expected": [0.8, 0.85], "split": "test", "source": "a plan"}]
    outputs = {"intervals": intervals, "random_sd": {"random/f1": 0.01}, "published": published, "mcnemar": []}
    folder = _finish(root, step, outputs, metrics)
    pd.concat(systems.values()).to_parquet(folder / "predictions.parquet")


def _baseline_systems(task: str, examples: pd.DataFrame, rng: np.random.Generator) -> Iterator[tuple[str, pd.DataFrame]]:
    constant = _predictions(task, examples, 0.5, rng)
    if task == "squad_v2":
        abstain = (~examples.answerable).to_numpy(dtype=float)
        constant = constant.assign(prediction="", correct=abstain, f1=abstain)
    else:
        constant["prediction"] = LABELS[task][1]
        constant["correct"] = (constant.prediction == constant.label).astype(float)
    yield "majority", constant
    for k in range(2):
        yield f"random-{k}", _predictions(task, examples, 0.4, rng, flips=1.0)
    yield "base", _predictions(task, examples, 0.45, rng, flips=0.5)


def _base_probe(root: Path, step: Step) -> None:
    folder = _finish(root, step, {"probe_sha256": "ab" * 32, "n_layers": LAYERS})
    rows = [
        {"condition": c, "layer": k, "pooling": "last_prompt_token", "measure": "cka_drift_debiased", "value": 1e-9}
        for c in ("batch_size", "padding_side", "dtype")
        for k in range(LAYERS + 1)
    ]
    pd.DataFrame(rows).to_parquet(folder / "noise.parquet")
    pd.DataFrame({"layer": range(LAYERS + 1), "max_over_median": 30.0}).to_parquet(folder / "activations.parquet")


def _drift(root: Path, step: Step, study: Study) -> None:
    folder = _finish(root, step, {"critical_layers": [3, 4]})
    (folder / "drift_summary.json").write_text(json.dumps({"task": step.task, "critical_layers": [3, 4], "noise_floor": 1e-9}))
    rows = [
        {"method": m, "seed": s, "step": 40, "layer": k, "measure": "cka_drift_debiased", "value": 0.1 * k}
        for m in study.methods
        for s in study.seeds
        for k in range(LAYERS + 1)
    ]
    pd.DataFrame(rows).to_parquet(folder / "layers.parquet")


def _correlate(root: Path, step: Step) -> None:
    folder = _finish(root, step, {})
    (folder / "correlations.json").write_text(json.dumps({"within": None, "pooled": None, "frontier": []}))


def _serve(root: Path, step: Step, study: Study, overhead: float, launches: int, rng: np.random.Generator) -> None:
    spec = study.serving
    assert spec is not None
    outputs = {"eager": True, "device": "cpu", "cpu_figures": True, "tie_check": {}}
    folder = _finish(root, step, outputs)
    rows = []
    for launch in range(launches):
        arms = list(spec.arms) if launch % 2 == 0 else list(reversed(spec.arms))
        for arm in arms:
            slow = np.exp(0.02 * rng.standard_normal()) * (1 + overhead * ARM_COST.get(arm, 0.0))
            cells = [
                _cell(spec, arm, b, p, s, slow, rng) for b in spec.batch_sizes for p in spec.prompt_lengths for s in spec.sampling
            ]  # fmt: skip
            adapters = [f"adapter-{k}" for k in range(ARM_ADAPTERS.get(arm, 0))]
            row = {"arm": arm, "launch": launch, "order": len(rows), "model": "sprout-2m", "adapters": adapters, "max_loras": len(adapters)}
            row |= {"max_lora_rank": 8, "enforce_eager": True, "dtype": "float32", "ok": True, "error": None, "cold_start_s": 12.0}
            row |= {"engine_start_s": 4.0, "kv_blocks": 1000, "weight_bytes": 8_624_640, "versions": {"vllm": "0"}}
            row |= {"lora_slot_bytes": 90_112 * len(adapters), "kv_block_tokens": 128, "device": "cpu", "load_s": [0.01] * len(adapters)}
            switches = _switching(rng) if arm == "switching" else []
            rows.append({**row, "compiled_during_inference": False, "cells": [] if switches else cells, "switching": switches})
    (folder / "launches.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    checks = {"adapters": {t: {"differs_from_base": True, "max_abs_dlogprob_merged": 1e-5, "ok": True} for t in spec.two_adapters}}
    (folder / "correctness.json").write_text(json.dumps(checks))


def _switching(rng: np.random.Generator) -> list[dict[str, Any]]:
    """40 ms a request; a switch adds 0.5 ms in a slot, 4 ms from memory, 20 ms from disk."""
    found = []
    for tier, n, cost in (("one adapter", 1, 0.0), ("resident", 2, 0.5), ("cpu cache", 3, 4.0), ("disk", 4, 20.0)):
        for every in (1, 4, 16) if n > 2 else (1,):
            added = cost * np.exp(0.05 * rng.standard_normal())
            found.append(
                {
                    "tier": tier,
                    "adapters": n,
                    "switch_every": every,
                    "ms_per_request": 40 + added / every,
                    "added_ms": added,
                    "bytes_moved": 4_000_000 if n > 2 else 0,
                }
            )
    return found


def _cell(spec: ServingSpec, arm: str, batch: int, prompt: int, sampling: str, slow: float, rng: np.random.Generator) -> dict[str, Any]:
    ms = 5.0 * (1 + 0.05 * batch) * slow * np.exp(0.005 * rng.standard_normal())
    latency = ms * spec.output_tokens
    cell = {"batch_size": batch, "prompt_length": prompt, "output_tokens": spec.output_tokens, "sampling": sampling}
    cell |= {"adapters_active": min(ARM_ADAPTERS.get(arm, 0), batch), "requests": spec.prompts_per_cell}
    cell |= {"seconds": latency * spec.prompts_per_cell / batch / 1000, "ms_per_token": ms, "tokens_per_s": 1000 * batch / ms}
    note = "alternation" if ARM_ADAPTERS.get(arm, 0) > batch else ""
    quantiles = {name: [x, x * 1.1, x * 1.2] for name, x in (("ttft_ms", 3 * ms), ("tpot_ms", ms), ("latency_ms", latency))}
    return {**cell, **quantiles, "note": note}
