"""What a fine-tuned model has to beat: the majority class, random labels, and the untuned base with the same prompts and scorer."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from tunescope.data import load_examples
from tunescope.data.tasks import Example, Task, get_task
from tunescope.models.loading import load_model, load_tokenizer, resolve_model
from tunescope.records import Metric, StepContext, StepResult, store_root
from tunescope.study.inputs import BaselineInputs

from .bootstrap import Interval, Ratio, bootstrap_interval
from .evaluate import Prediction, answer_prediction, evaluate, label_prediction, write_predictions
from .published import published_for

SEED = 20_240
"""Seed of every draw here: the random systems use (SEED, k), the bootstrap (SEED, system, metric)."""
MAX_SPAN_WORDS = 10
"""Longest random answer, in words of the passage."""
INTERVAL_METRICS = ("accuracy", "f1", "exact_match")


@dataclass(frozen=True)
class System:
    """One baseline's predictions on the test part, and its scores."""

    name: str
    predictions: list[Prediction]
    metrics: list[Metric]


def run_baseline(inputs: BaselineInputs, ctx: StepContext) -> StepResult:
    """Score majority, random and zero-shot baselines on the test part.

    Nothing but label rates is taken from the training part, so there is no cross-validation. Writes `predictions.parquet` (with a `system`
    column) and `baselines.json`.

    Raises:
        PrerequisiteError: no data or no model.
    """
    task = get_task(inputs.task)
    train, test = (load_examples(ctx.data_dir, inputs.task, part) for part in ("train", "test"))
    rates = training_rates(task, train)
    ctx.progress(0, 3, "majority and random")
    constant = majority(task, rates, test)
    random = [random_system(task, rates, test, k) for k in range(inputs.random_seeds)]
    ctx.progress(1, 3, "untuned base")
    base = zero_shot(inputs, ctx, task, test)
    ctx.progress(2, 3, "intervals")
    systems = [constant, *random, base]
    metrics = [_renamed(m, f"{s.name}/{m.name}") for s in systems for m in s.metrics] + mean_metrics(random)
    groups = {"majority": [constant], "random": random, "base": [base]}
    outputs = {
        "training_rates": rates,
        "intervals": intervals(task, groups, inputs.bootstrap_draws),
        "interval_method": "95 % bootstrap (BCa), resampling clusters of test examples; Clopper-Pearson where all outcomes are equal",
        "random_sd": deviations(random),
        "random_seeds": inputs.random_seeds,
        "published": published_for(inputs.task),
        "mcnemar": pairwise_mcnemar(systems),
    }
    _write(ctx.folder, systems, metrics, outputs)
    ctx.tracker.log({m.name: m.value for m in metrics if m.value is not None}, step=0)
    return StepResult(metrics=metrics, outputs=outputs, content=["predictions.parquet", "baselines.json"], notes=remarks(task, metrics))


def training_rates(task: Task, train: Sequence[Example]) -> dict[str, float]:
    """Share of each label in the training part; for questions, of `answerable` and `unanswerable`."""
    if task.kind == "qa":
        counts = Counter("answerable" if e.golds else "unanswerable" for e in train)
        names: Sequence[str] = ("answerable", "unanswerable")
    else:
        counts, names = Counter(str(e.label) for e in train), task.labels
    return {name: counts[name] / len(train) for name in names}


def majority(task: Task, rates: Mapping[str, float], test: Sequence[Example]) -> System:
    """Always the commonest training label (the first of equals); for questions, always abstain."""
    if task.kind == "qa":
        return _system("majority", task, [answer_prediction(e, "", 1.0) for e in test])
    label = max(task.labels, key=lambda name: rates[name])
    return _system("majority", task, [label_prediction(e, label) for e in test])


def random_system(task: Task, rates: Mapping[str, float], test: Sequence[Example], k: int) -> System:
    """Labels drawn at training rates; for questions, abstention at the training rate or a random span of the passage.

    It never looks at gold labels or answers.
    """
    rng = np.random.default_rng((SEED, k))
    if task.kind == "qa":
        answers = ["" if rng.random() < rates["unanswerable"] else random_span(e.passage, rng) for e in test]
        return _system(f"random-{k}", task, [answer_prediction(e, a) for e, a in zip(test, answers, strict=True)])
    drawn = rng.choice(len(task.labels), size=len(test), p=[rates[name] for name in task.labels])
    return _system(f"random-{k}", task, [label_prediction(e, task.labels[i]) for e, i in zip(test, drawn, strict=True)])


def random_span(passage: str, rng: Generator) -> str:
    """A run of 1 to MAX_SPAN_WORDS words: start uniform over the words, length uniform over what fits."""
    words = passage.split()
    if not words:
        return ""
    start = int(rng.integers(len(words)))
    length = int(rng.integers(1, min(MAX_SPAN_WORDS, len(words) - start) + 1))
    return " ".join(words[start : start + length])


def zero_shot(inputs: BaselineInputs, ctx: StepContext, task: Task, test: Sequence[Example]) -> System:
    """The untuned base, in fp32 as every scored run."""
    path = resolve_model(inputs.model, store_root(ctx.folder))
    model = load_model(path, dtype=torch.float32, device=ctx.device)
    predictions, metrics = evaluate(
        model, load_tokenizer(path), test, task, max_length=inputs.max_length, batch_size=inputs.eval_batch, device=ctx.device
    )
    return System("base", predictions, metrics)


def mean_metrics(systems: Sequence[System]) -> list[Metric]:
    """Means over the random systems, as `random/<metric>`."""
    return [_renamed(m, f"random/{m.name}", float(np.mean(_values(systems, m.name)))) for m in systems[0].metrics if m.value is not None]


def deviations(systems: Sequence[System]) -> dict[str, float | None]:
    """Standard deviations (n - 1) over the random systems; None for a single one."""
    names = [m.name for m in systems[0].metrics]
    return {f"random/{n}": float(np.std(_values(systems, n), ddof=1)) if len(systems) > 1 else None for n in names}


def intervals(task: Task, groups: Mapping[str, Sequence[System]], draws: int) -> dict[str, Interval]:
    """95 % bootstrap intervals by `<system>/<metric>`; for the random baseline, of the mean over its seeds."""
    found: dict[str, Interval] = {}
    for name, systems in groups.items():
        for metric in (m.name for m in systems[0].metrics if m.name in INTERVAL_METRICS):
            ratios = [metric_ratio(task, s.predictions, metric) for s in systems]
            rng = np.random.default_rng((SEED, *f"{name}/{metric}".encode()))
            found[f"{name}/{metric}"] = bootstrap_interval(ratios, draws, rng)
    return found


def metric_ratio(task: Task, predictions: Sequence[Prediction], metric: str) -> Ratio:
    """A metric as sums per cluster: accuracy and exact match over rows, F1 of a class as 2 TP / (2 TP + FP + FN)."""
    groups, index = np.unique([p.group for p in predictions], return_inverse=True)
    if metric == "f1" and task.kind == "classification":
        positive = getattr(task, "positive", None)
        said, is_ = (np.array([getattr(p, a) == positive for p in predictions]) for a in ("prediction", "label"))
        rows = 2.0 * (said & is_), 1.0 * said + is_
    else:
        values = [p.f1 if metric == "f1" else p.correct for p in predictions]
        rows = np.array(values, dtype=np.float64), np.ones(len(values))
    top, bottom = (np.bincount(index, weights=w, minlength=len(groups)) for w in rows)
    return Ratio(top, bottom)


def pairwise_mcnemar(systems: Sequence[System]) -> list[dict[str, Any]]:
    """Exact two-sided McNemar tests of `correct`, with Holm's correction over all pairs; random systems are not set against each other.

    Descriptive: questions of one SQuAD paragraph are not independent, and the test takes them as if they were.
    """
    pairs = [(a, b) for a, b in combinations(systems, 2) if not (a.name.startswith("random") and b.name.startswith("random"))]
    rows = [_mcnemar(a, b) for a, b in pairs]
    adjusted = multipletests([row["p"] for row in rows], method="holm")[1]
    return [{**row, "p_holm": float(p)} for row, p in zip(rows, adjusted, strict=True)]


def _mcnemar(a: System, b: System) -> dict[str, Any]:
    right_a, right_b = (np.array([p.correct for p in s.predictions]) == 1.0 for s in (a, b))
    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    table = [[int((right_a & right_b).sum()), only_a], [only_b, int((~right_a & ~right_b).sum())]]
    p = float(mcnemar(table, exact=True).pvalue)
    return {"a": a.name, "b": b.name, "n": len(right_a), "only_a": only_a, "only_b": only_b, "p": p}


def remarks(task: Task, metrics: Sequence[Metric]) -> list[str]:
    """What a reader should know before comparing with these baselines."""
    values = {m.name: m.value for m in metrics}
    metric = task.primary_metric
    base, constant = values[f"base/{metric}"], values[f"majority/{metric}"]
    name = "always abstaining" if task.kind == "qa" else "the majority class"
    if base is None or constant is None or base >= constant:
        return []
    return [f"the untuned base ({metric} {base:.3f}) lies below {name} ({constant:.3f})"]


def _system(name: str, task: Task, predictions: list[Prediction]) -> System:
    return System(name, predictions, task.score([p.scored for p in predictions]))


def _values(systems: Sequence[System], name: str) -> list[float]:
    return [m.value for s in systems for m in s.metrics if m.name == name and m.value is not None]


def _renamed(metric: Metric, name: str, value: float | None = None) -> Metric:
    return metric.model_copy(update={"name": name, "value": metric.value if value is None else value})


def _write(folder: Path, systems: Sequence[System], metrics: Sequence[Metric], outputs: Mapping[str, Any]) -> None:
    rows = [(p, s.name) for s in systems for p in s.predictions]
    write_predictions(folder / "predictions.parquet", [p for p, _ in rows], [name for _, name in rows])
    content = {"metrics": [m.model_dump(mode="json") for m in metrics], **outputs}
    (folder / "baselines.json").write_text(json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n")
