"""Dummy data with known effects: the statistics must find what was planted, and nothing at the margin."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.random import Generator

from tunescope.analysis.frames import collect
from tunescope.analysis.statistical_analysis import analyse
from tunescope.data.tasks import get_task
from tunescope.study.identity import fingerprint
from tunescope.study.inputs import TrainInputs
from tunescope.study.plan import Step, build_plan
from tunescope.study.schema import AdapterSpec, MethodSpec, ModelSpec, ServingSpec, Study, TaskSpec

from .outcome import Check, judge

EXAMPLES, LAUNCHES, BLOCKS, SEED = 1000, 10, 5, 20_240
FULL_QUALITY, MAJORITY, FULL_DRIFT = 0.90, 0.55, 0.30


@dataclass(frozen=True)
class Effect:
    """What is planted, and the verdict it must get."""

    name: str
    quality: float
    """LoRA's expected accuracy over full's."""
    drift: float
    """LoRA's expected drift over full's."""
    overhead: float
    verdict: str


EFFECTS = (
    Effect("a benefit", 1.0, 0.6, 0.10, "supported"),
    Effect("a harm", 0.88, 1.3, 0.60, "contradicted"),
    Effect("effects at their margins", 0.97, 0.80, 0.30, "inconclusive"),
)


def planted_verdicts(root: Path) -> Check:
    """The hypothesis gets the planted verdict in three simulated studies (the margin case: neither way)."""
    study, problems, lines = dummy_study(), [], []
    for k, effect in enumerate(EFFECTS):
        store = root / f"planted-{k}"
        write_dummy_store(store, study, effect, np.random.default_rng((SEED, k)))
        claims = {c.id: c for c in analyse(collect(store, study), study, now="check").claims}
        found = claims["hypothesis"].verdict
        problems += [] if found == effect.verdict else [f"{effect.name} was planted, the verdict is {found}, not {effect.verdict}"]
        parts = ", ".join(f"{i} {claims[i].verdict}" for i in ("quality/all", "drift/all", "overhead"))
        lines.append(
            f"{effect.name}: quality x{effect.quality:g}, drift x{effect.drift:g}, overhead +{effect.overhead:.0%} → {found} ({parts})"
        )
    return judge("statistics on planted effects", problems, f"{len(EFFECTS)} simulated studies of {EXAMPLES} examples", tuple(lines))


def dummy_study() -> Study:
    """Two tasks, two methods, three seeds."""
    serving = ServingSpec(arms=("merged", "adapters_2"), two_adapters=("sst2", "mrpc"), sampling=("greedy",))
    rates = {"warmup_ratio": 0.1, "learning_rates": (1e-3,)}
    methods = {"full": MethodSpec(**rates), "lora": MethodSpec(**rates, adapter=AdapterSpec())}  # type: ignore[arg-type]
    return Study(
        name="planted", model=ModelSpec(name="sprout-2m"), tasks={t: TaskSpec(max_length=128) for t in ("sst2", "mrpc")}, methods=methods,
        seeds=(42, 1337, 2024), serving=serving,
    )  # fmt: skip


def write_dummy_store(root: Path, study: Study, effect: Effect, rng: Generator) -> None:
    """The records the claims are computed from: predictions and drift scalars of runs, baseline predictions, launches."""
    difficulty: dict[str, np.ndarray] = {task: (rng.permutation(EXAMPLES) + 0.5) / EXAMPLES for task in study.tasks}
    for step in build_plan(study).steps:
        if step.kind == "train":
            _run(root, study, step, effect, difficulty[str(step.task)], rng)
        elif step.kind == "baseline":
            _baseline(root, study, step, difficulty[str(step.task)], rng)
        elif step.kind == "serve":
            folder = _finish(root, step, {"cpu_figures": False, "eager": False, "correct": True})
            lines = [json.dumps(row) for row in _launches(study, effect, rng)]
            (folder / "launches.jsonl").write_text("\n".join(lines) + "\n")
        else:
            _finish(root, step, {})


def _run(root: Path, study: Study, step: Step, effect: Effect, difficulty: np.ndarray, rng: Generator) -> None:
    assert isinstance(step.inputs, TrainInputs)
    candidate = step.method == study.analysis.candidate_method
    drift = FULL_DRIFT * (effect.drift if candidate else 1) * np.exp(0.03 * rng.standard_normal())
    values = {"drift": drift} | {f"drift_block_{k}": drift + 0.005 * rng.standard_normal() for k in range(BLOCKS)}
    metrics = [_metric(name, value, "probe") for name, value in values.items()]
    right = difficulty < FULL_QUALITY * (effect.quality if candidate else 1)
    flips = rng.random(EXAMPLES) < 0.02
    predictions = _predictions(str(step.task), np.where(flips, ~right, right))
    metrics += [_metric("accuracy", predictions.correct.mean(), "test"), _metric("selection_loss", 0.3, "selection")]
    outputs = {"learning_rate": step.inputs.learning_rate, "batch_size": step.inputs.batch_size, "precision": "fp32"}
    folder = _finish(root, step, outputs, metrics)
    predictions.to_parquet(folder / "predictions.parquet")


def _baseline(root: Path, study: Study, step: Step, difficulty: np.ndarray, rng: Generator) -> None:
    systems = {"majority": rng.permutation(difficulty) < MAJORITY, "base": rng.permutation(difficulty) < MAJORITY + 0.05}
    frames = [_predictions(str(step.task), right).assign(system=name) for name, right in systems.items()]
    folder = _finish(root, step, {"intervals": {}, "published": [], "mcnemar": []})
    pd.concat(frames).to_parquet(folder / "predictions.parquet")


def _predictions(task: str, right: np.ndarray) -> pd.DataFrame:
    first, second = get_task(task).labels
    gold = np.where(np.arange(len(right)) % 2 == 0, first, second)
    other = np.where(gold == first, second, first)
    ids = [f"validation/{k}" for k in range(len(right))]
    frame = pd.DataFrame({"example_id": ids, "group": ids, "label": gold, "prediction": np.where(right, gold, other)})
    return frame.assign(article=None, correct=right.astype(float), f1=np.nan, no_answer_probability=np.nan, label_logprobs=None)


def _launches(study: Study, effect: Effect, rng: Generator) -> Iterator[dict[str, Any]]:
    serving, analysis = study.serving, study.analysis
    assert serving is not None
    for launch in range(LAUNCHES):
        for arm in serving.arms:
            slow = 1 + effect.overhead if arm == analysis.overhead_arm else 1.0
            slow *= float(np.exp(0.02 * rng.standard_normal()))
            cells = [_cell(serving, b, analysis.overhead_prompt_length, slow) for b in analysis.overhead_batch_sizes]
            yield {
                "arm": arm, "launch": launch, "order": launch, "ok": True, "error": None,
                "adapters": ["a", "b"] if "adapters" in arm else [], "max_loras": 2, "cold_start_s": 10.0, "engine_start_s": 5.0,
                "compiled_during_inference": False, "cells": cells,
            }  # fmt: skip


def _cell(serving: ServingSpec, batch: int, prompt: int, slow: float) -> dict[str, Any]:
    ms, tokens = 5.0 * slow, serving.output_tokens
    quantiles = {name: [x, 1.1 * x, 1.2 * x] for name, x in (("ttft_ms", 3 * ms), ("tpot_ms", ms), ("latency_ms", ms * tokens))}
    return {
        "batch_size": batch, "prompt_length": prompt, "output_tokens": tokens, "sampling": "greedy", "adapters_active": 2, "requests": 100,
        "seconds": ms * tokens / 10 / batch, "ms_per_token": ms, "tokens_per_s": 1000 * batch / ms, "note": "", **quantiles,
    }  # fmt: skip


def _metric(name: str, value: float, split: str) -> dict[str, Any]:
    return {"name": name, "value": float(value), "unit": "fraction", "split": split, "n": EXAMPLES, "higher_is_better": None}


def _finish(root: Path, step: Step, outputs: dict[str, Any], metrics: list[dict[str, Any]] | None = None) -> Path:
    folder = root / "steps" / step.id
    folder.mkdir(parents=True, exist_ok=True)
    inputs = step.inputs.model_dump(mode="json")
    (folder / "step.json").write_text(json.dumps({"id": step.id, "kind": step.kind, "inputs": inputs, "fingerprint": fingerprint(inputs)}))
    result = {"metrics": metrics or [], "resources": [], "outputs": outputs, "content": {}, "notes": []}
    (folder / "result.json").write_text(json.dumps(result))
    return folder
