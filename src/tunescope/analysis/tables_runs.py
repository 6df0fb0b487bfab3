"""Statistics tables on the runs themselves: correlations, frontier, noise floor, merge, rank."""

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from tunescope.train.red_flags import MERGED_BF16_AGREEMENT, MERGED_BF16_GAP

from .correlate import correlations
from .effects import constant, tukey
from .findings import Missing
from .frames import Frames
from .frontier import RunPoint, frontier
from .scores import scalar, scalars
from .tables import Material, Table, table


def points(m: Material) -> list[RunPoint]:
    """Every finished training run as a point, with its task's registered metric as quality."""
    metrics = m.study.analysis.primary_metric
    return [p for task in m.study.tasks for p in frontier(m.frames, task, metrics.get(task, "accuracy"))]


def correlation_table(m: Material) -> Table:
    """Quality against drift: within task first."""
    found = correlations(points(m))
    names = {
        "within": ("test quality ~ drift, final runs", "within task (repeated measures)"),
        "within_method": ("test quality ~ drift, final runs", "within task and method"),
        "pooled": ("test quality ~ drift, final runs", "pooled"),
        "selection_loss_within": ("selection loss ~ drift, all runs", "within task (repeated measures)"),
        "selection_loss_within_method": ("selection loss ~ drift, all runs", "within task and method"),
        "selection_loss_pooled": ("selection loss ~ drift, all runs", "pooled"),
    }
    rows = [(*names[key], v["n"], v["r"], *v["interval"], v["df"], v["p"]) for key in names if (v := found[key]) is not None]
    columns = ("what", "form", "runs", "r", "95 % low", "95 % high", "df", "p")
    note = (
        "The within-task line is the registered one. Both methods' runs enter it, so a method that drifts less and scores less makes it "
        "positive; within task and method is what drift tells beyond the method. The pooled r mixes in differences between tasks too. "
        "All runs: a search run that a final run repeats to the last bit counts once."
    )
    return table("Correlation of quality and drift over runs", columns, rows, note, found["steps"])


def tukey_table(m: Material) -> Table:
    """Post-hoc comparisons between three or more methods."""
    runs = [p for p in points(m) if p.role == "final" and p.quality is not None and p.task in m.passing]
    found = tukey(
        pd.DataFrame([{"method": p.method, "task": p.task, "value": p.quality} for p in runs], columns=["method", "task", "value"])
    )
    columns = ("method", "against", "difference", "low", "high", "p_adjusted")
    note = "Tukey's honestly significant differences of the primary metric over final runs, task means removed, 95 % limits. Exploratory."
    note += " Methods that share no task, directly or through others, have no line."
    return table("Post-hoc comparison of methods", columns, [[row[c] for c in columns] for row in found], note, (p.step for p in runs))


def correlation_matrix(m: Material) -> Table:
    """Pearson correlations of run scalars, task means removed."""
    runs = [p for p in points(m) if p.role == "final"]
    names = ("wall_s", "trainable_parameters", "clipped_share", "best_step")
    frame = pd.DataFrame(
        [
            {"task": p.task, "quality": p.quality, "selection_loss": p.selection_loss, "drift": p.drift}
            | {name: scalar(m.frames, p.step, name) for name in names}
            for p in runs
        ],
        columns=["task", "quality", "selection_loss", "drift", *names],
    )
    values = frame.drop(columns="task").astype(float)
    centred = values - values.groupby(frame.task).transform("mean")
    centred.loc[:, constant(values, centred)] = math.nan
    matrix = centred.corr(min_periods=4)
    rows = [(name, *matrix.loc[name]) for name in matrix.index] if len(frame) else []
    note = "Final runs, task means removed; an empty cell does not vary or has fewer than four runs. Exploratory."
    return table("Correlation matrix over final runs", ("", *matrix.columns), rows, note, [p.step for p in runs])


def frontier_table(m: Material) -> Table:
    """The quality-drift frontier, one row per run."""
    found = points(m)
    columns = (
        "task",
        "method",
        "role",
        "seed",
        "learning_rate",
        "batch_size",
        "selection_loss",
        "quality",
        "drift",
        "selected",
        "frontier",
        "repeated",
    )
    rows = [[getattr(p, c) for c in columns] for p in found]
    note = "Drift depends first of all on the learning rate. `frontier`: no run of the task has both lower selection loss and lower drift. "
    note += "`repeated`: a search run that a final run repeats to the last bit; it counts once in correlations and in the figure's numbers."
    return table("Quality-drift frontier", columns, rows, note, (p.step for p in found))


def noise_table(m: Material) -> Table:
    """Base against base: the resolution of the drift scalar, beside the drift found."""
    noise, pooling = m.frames.noise, m.study.drift.primary_pooling
    chosen = noise[(noise.measure == "cka_drift_debiased") & (noise.pooling == pooling) & (noise.layer > 0)]
    rows: list[tuple[Any, ...]] = []
    smallest = {d.task: float(min(d.candidate_S.min(), d.reference_S.min())) for d in m.drifts}
    for (task, condition), group in chosen.groupby(["task", "condition"], sort=False):
        floor = float(group.value.mean())
        drift = smallest.get(str(task))
        rows.append((task, condition, floor, drift, None if drift is None else ("below resolution" if drift <= floor else "above")))
    columns = ("task", "condition", "base against base", "smallest drift of a run", "drift is")
    note = "Registered scalar of the untuned model against itself under another batch size, padding side or precision."
    steps = [*chosen.step_id.unique(), *(s for d in m.drifts for s in d.steps)]
    return table("Noise floor of drift", columns, rows, note, steps if rows else ())


SETTINGS = ("precision", "optimizer", "batching", "captured", "fused_kernels", "learning_rate", "batch_size")


def settings_table(m: Material) -> Table:
    """How the final runs were computed: what must not differ between the methods compared, and is a factor when it does."""
    found: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
    for step, outputs, row in _final_runs(m.frames):
        key = (row.task, row.method, *(outputs.get(name) for name in SETTINGS))
        found.setdefault(key, []).append((int(row.seed), step))
    rows = [(*key, ", ".join(str(seed) for seed, _ in sorted(runs))) for key, runs in found.items()]
    columns = ("task", "method", *(name.replace("_", " ") for name in SETTINGS), "seeds")
    note = (
        "The default is fp32 master weights (bf16-mixed: under bf16 autocast) with AdamW. bf16 (weights and optimizer in bf16) and "
        "adamw_8bit are variants: figures under them are compared with nothing else. Everything is scored in fp32."
    )
    return table("How the final runs were computed", columns, rows, note, [step for runs in found.values() for _, step in runs])


def merge_table(m: Material) -> Table:
    """Merged against adapter model, per adapter run."""
    rows, steps, tolerances = [], [], set[float]()
    for step, outputs, row in _final_runs(m.frames):
        gap, agreement = scalar(m.frames, step, "merge_max_abs_logit_difference"), scalar(m.frames, step, "merge_label_agreement")
        if gap is not None or agreement is not None:
            steps.append(step)
            tolerances |= {outputs["merge_tolerance"]} if "merge_tolerance" in outputs else set()
            cast = [scalar(m.frames, step, f"merge_bf16_{name}") for name in ("label_agreement", "score_gap")]
            computed = outputs.get("merge_bf16_computed_in")
            rows.append((row.task, row.method, int(row.seed), gap, agreement, *cast, computed, base_unchanged(outputs)))
    head, cast_columns = (
        ("task", "method", "seed", "max |logit difference|", "label agreement"),
        ("bf16: equal predictions", "bf16: score gap", "bf16: computed in"),
    )
    columns = (*head, *cast_columns, "base unchanged")
    within = " or ".join(f"{t:g}" for t in sorted(tolerances)) or "not recorded"
    note = (
        f"Tolerance {within} on logits in fp32. bf16: the model merged in fp32 and cast once predicts test examples again; "
        f"at least {MERGED_BF16_AGREEMENT:g} equal and a gap of at most {MERGED_BF16_GAP:g} in the task's primary metric are "
        "wanted. Computed in fp32 (no GPU with bf16) the weights alone are rounded: arithmetic in bf16, as an engine serves it, "
        "can move more predictions. `base unchanged`: the hash of the frozen weights before and after training."
    )
    return table("Merge equivalence of adapters", columns, rows, note, steps)


def base_unchanged(outputs: dict[str, Any]) -> bool | None:
    """Whether an adapter run left the base weights as they were; None when it was not recorded."""
    found = outputs.get("base_unchanged")
    if isinstance(found, dict):
        return bool(found.get("ok", found.get("before") == found.get("after")))
    return None if found is None else bool(found)


def _final_runs(frames: Frames) -> Iterator[tuple[str, dict[str, Any], Any]]:
    runs = frames.steps[(frames.steps.kind == "train") & (frames.steps.role == "final")]
    for row in runs.itertuples():
        yield str(row.step_id), row.outputs, row


def rank_table(m: Material) -> Table:
    """How much of the adapter's rank is used."""
    rows, steps = [], []
    for step, _, row in _final_runs(m.frames):
        share = scalar(m.frames, step, "rank_utilisation")
        if share is not None:
            steps.append(step)
            rows.append((row.task, row.method, int(row.seed), share))
    note = "Mean over adapted matrices of effective rank over rank, from the singular values of B A."
    return table("Rank utilisation", ("task", "method", "seed", "utilisation"), rows, note, steps)


def leakage_table(m: Material) -> Table:
    """Duplicates between splits, as the data steps counted them."""
    rows, steps = [], []
    for task in m.study.tasks:
        for step in m.frames.of_kind("data", task):
            steps.append(step)
            found = m.frames.outputs(step).get("leakage") or {}
            rows += [(task, pair, v.get("exact"), v.get("normalised")) for pair, v in found.items() if isinstance(v, dict)]
    columns = ("task", "splits", "exact duplicates", "normalised duplicates")
    return table("Duplicates between splits", columns, rows, "Counted and kept: the publishers' splits are used as they are.", steps)


def runs_table(m: Material, missing: list[Missing]) -> Table:
    """Runs that are missing, failed or went wrong: kept, counted, named."""
    rows = [(step, "diverged", _divergence(m.frames, step)) for step in m.diverged]
    rows += [(row.step, row.state, row.why) for row in missing if row.step.startswith("train/")]
    note = "Diverged runs stay in every registered test; a sensitivity line leaves their seeds out."
    return table("Dropped and diverged runs", ("run", "state", "why"), rows, note, m.diverged)


def diverged_runs(frames: Frames) -> tuple[str, ...]:
    """Final runs whose training loss ended no lower than it began."""
    return tuple(step for step, _, _ in _final_runs(frames) if _divergence(frames, step))


def _divergence(frames: Frames, step: str) -> str:
    first, last = (next(iter(scalars(frames, [step], name)), None) for name in ("train_loss_first", "train_loss_last"))
    return f"training loss {first:.3g} to {last:.3g}" if first is not None and last is not None and last >= first else ""
