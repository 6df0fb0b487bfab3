"""Aligned matrices from frames: per-example scores (seeds x examples) and drift scalars (seeds x probe blocks) of two methods."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .crossed import Array, cluster_totals, f1_pseudo_values
from .frames import Frames

EXACT = ("accuracy", "exact_match")


@dataclass(frozen=True)
class Paired:
    """Two methods on one task at equal seeds and examples. Corpus F1 enters as jackknife pseudo-values."""

    task: str
    metric: str
    seeds: tuple[int, ...]
    candidate_SN: Array
    reference_SN: Array
    example_ids: tuple[str, ...]
    groups: tuple[str, ...]
    articles: tuple[str, ...] | None
    steps: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def clustered(self) -> bool:
        """Whether examples share groups (SQuAD paragraphs), so that group totals are the units."""
        return len(set(self.groups)) < len(self.groups)

    def units(self, names: Sequence[str] | None = None) -> tuple[Array, Array]:
        """Candidate and reference as (S, units): cluster totals by `names` (default the groups)."""
        names = self.groups if names is None else names
        return cluster_totals(self.candidate_SN, names), cluster_totals(self.reference_SN, names)


@dataclass(frozen=True)
class DriftPair:
    """The registered drift scalar of two methods at equal seeds, with its values on the probe blocks where they were stored."""

    task: str
    seeds: tuple[int, ...]
    candidate_S: Array
    reference_S: Array
    candidate_SK: Array | None
    reference_SK: Array | None
    steps: tuple[str, ...]

    def crossed(self) -> tuple[Array, Array] | None:
        """(S, K) values whose row means are the registered scalars and whose spread over columns is that of the probe blocks."""
        if self.candidate_SK is None or self.reference_SK is None:
            return None
        return _centred_on(self.candidate_SK, self.candidate_S), _centred_on(self.reference_SK, self.reference_S)


def _centred_on(blocks_SK: Array, scalar_S: Array) -> Array:
    return scalar_S[:, None] + blocks_SK - blocks_SK.mean(axis=1, keepdims=True)


def seeds_of(frames: Frames, task: str, method: str) -> dict[int, str]:
    """seed -> step id of the finished final runs of one method on one task."""
    return frames.final_runs.get((task, method), {})


def scalar(frames: Frames, step_id: str, name: str, split: str | None = None) -> float | None:
    """One metric or resource of one step, None when absent or not finite."""
    found = [value for s, value in frames.values.get((step_id, name), []) if split is None or s == split]
    return found[0] if found and np.isfinite(found[0]) else None


def scalars(frames: Frames, steps: Sequence[str], name: str, split: str | None = None) -> list[float]:
    """The finite values of one metric over steps."""
    return [v for v in (scalar(frames, s, name, split) for s in steps) if v is not None]


def values_matrix(tables: Sequence[pd.DataFrame], ids: Sequence[str], metric: str, task: str) -> Array | None:
    """Per-example values (tables, examples) of predictions indexed by example; None without a per-example form or with values missing."""
    column = "correct" if metric in EXACT else "f1"
    if metric not in (*EXACT, "f1"):
        return None
    tables = [t.reindex(list(ids)) for t in tables]
    if column == "f1" and all(t.f1.isna().all() for t in tables):
        return _corpus_f1(tables, task)
    values = np.stack([t[column].to_numpy(dtype=np.float64) for t in tables])
    return values if np.isfinite(values).all() else None


def _corpus_f1(tables: list[pd.DataFrame], task: str) -> Array | None:
    positive = positive_label(task)
    if positive is None or any(t.prediction.isna().any() for t in tables):
        return None
    predicted = np.stack([(t.prediction == positive).to_numpy(dtype=bool) for t in tables])
    return f1_pseudo_values((tables[0].label == positive).to_numpy(dtype=bool), predicted)


def positive_label(task: str) -> str | None:
    """The class of corpus F1 for a classification task that has one, else None."""
    from tunescope.data.tasks import get_task

    return getattr(get_task(task), "positive", None)


def paired_scores(frames: Frames, task: str, metric: str, candidate: str, reference: str) -> Paired | None:
    """Both methods on the seeds and examples they share; None without a common seed or a per-example form of the metric."""
    by_method = [seeds_of(frames, task, m) for m in (candidate, reference)]
    seeds = tuple(s for s in by_method[0] if s in by_method[1])
    steps = tuple(m[s] for m in by_method for s in seeds)
    ids, notes = common_ids(frames, steps)
    if not seeds or not ids:
        return None
    matrices = [values_matrix([frames.scored[m[s]] for s in seeds], ids, metric, task) for m in by_method]
    if matrices[0] is None or matrices[1] is None:
        return None
    first = frames.scored[steps[0]].reindex(list(ids))
    articles = None if first.article.isna().any() else tuple(first.article)
    return Paired(task, metric, seeds, matrices[0], matrices[1], ids, groups_of(frames, steps[0], ids), articles, steps, notes)


def groups_of(frames: Frames, step: str, ids: Sequence[str]) -> tuple[str, ...]:
    """The cluster of each example; an example without one is its own."""
    groups = frames.scored[step].group.reindex(list(ids))
    return tuple(g if isinstance(g, str) else i for i, g in zip(ids, groups, strict=True))


def common_ids(frames: Frames, steps: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Example ids all runs scored, in the first run's order, and a note when some were lost."""
    if not steps or any(s not in frames.scored for s in steps):
        return (), ()
    per_step = [frames.scored[s].index for s in steps]
    if all(ids.equals(per_step[0]) for ids in per_step[1:]):
        return tuple(per_step[0]), ()
    common = set(per_step[0]).intersection(*per_step[1:])
    lost = max(len(ids) for ids in per_step) - len(common)
    notes = (f"{lost} test examples were not scored by every run and are left out",) if lost else ()
    return tuple(i for i in per_step[0] if i in common), notes


def baseline_values(frames: Frames, task: str, system: str, ids: Sequence[str], metric: str) -> tuple[Array, str] | None:
    """Per-example values (1, N) of a baseline system on these examples and the step they came from; None when missing."""
    rows = frames.baselines[(frames.baselines.task == task) & (frames.baselines.system == system)]
    if not len(rows):
        return None
    values = values_matrix([rows.drop_duplicates("example_id").set_index("example_id")], ids, metric, task)
    return None if values is None else (values, str(rows.iloc[0].step_id))


def paired_drift(frames: Frames, task: str, candidate: str, reference: str) -> DriftPair | None:
    """The drift scalars of both methods on the seeds they share; None without one."""
    runs = [seeds_of(frames, task, m) for m in (candidate, reference)]
    values = [{s: scalar(frames, step, "drift", "probe") for s, step in r.items()} for r in runs]
    seeds = tuple(s for s in values[0] if values[0][s] is not None and values[1].get(s) is not None)
    if not seeds:
        return None
    scalars_MS = [np.array([v[s] for s in seeds], dtype=np.float64) for v in values]
    blocks_MSK = [_blocks(frames, [r[s] for s in seeds]) for r in runs]
    steps = tuple(r[s] for r in runs for s in seeds)
    return DriftPair(task, seeds, scalars_MS[0], scalars_MS[1], blocks_MSK[0], blocks_MSK[1], steps)


def _blocks(frames: Frames, steps: Sequence[str]) -> Array | None:
    """drift_block_k of each run as (S, K); None unless every run has the same two or more blocks."""
    rows = frames.metrics[frames.metrics.step_id.isin(steps) & frames.metrics.name.str.fullmatch(r"drift_block_\d+")]
    if not len(rows):
        return None
    table = rows.pivot_table(index="step_id", columns="name", values="value", dropna=False).reindex(list(steps))
    values = table.to_numpy(dtype=np.float64)
    return values if values.shape[1] >= 2 and np.isfinite(values).all() else None
