"""Tables of drift beside the registered claim: runs paired by seed, layers, depth, tasks, equal quality, and the other measures.

All of it is descriptive. The training run is the unit: every test flips whole runs. Shape legend: S seeds, L layers.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from tunescope.drift.contrast import BAND_LEVEL, INTERVAL_LEVEL, critical_layers, max_statistic, sign_flip, simultaneous_band, thirds
from tunescope.drift.progress_slice import equal_quality

from .drift import saturated_methods, seed_test
from .inference import Array
from .tables import Material, Table, table

MEASURE = "cka_drift_debiased"
LEVEL = f"{100 * INTERVAL_LEVEL:g} %"
Limits = tuple[float | None, float | None]


@dataclass(frozen=True)
class _Run:
    """One final run's selection losses and mean drift by step."""

    losses: dict[int, float]
    drifts: dict[int, float]

    def selection_losses(self) -> dict[int, float]:
        return self.losses

    def series(self) -> dict[int, float]:
        return self.drifts


@dataclass(frozen=True)
class Profiles:
    """Drift of the final runs by layer 1..L and step, as the training steps stored it; primary pooling, whole probe set."""

    m: Material

    @property
    def methods(self) -> tuple[str, str]:
        """(candidate, reference)."""
        return self.m.study.analysis.candidate_method, self.m.study.analysis.reference_method

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Every measure of every layer and step of the final runs (measures with a pooling of their own included)."""
        d = self.m.frames.drift
        chosen = (d.block == -1) & (d.role == "final") & (d.pooling.isin((self.m.study.drift.primary_pooling, "token")))
        return d[chosen.fillna(False)]

    @cached_property
    def drift(self) -> pd.DataFrame:
        """The registered measure on decoder layers."""
        return self.rows[(self.rows.measure == MEASURE) & (self.rows.layer > 0)]

    @cached_property
    def scored(self) -> dict[tuple[str, str], pd.DataFrame]:
        """(task, method) -> drift at the scored checkpoint: seeds down, layers across."""
        groups = self.drift[self.drift.scored].groupby(["task", "method"], sort=False)
        return {(str(t), str(m)): rows.pivot_table(index="seed", columns="layer", values="value") for (t, m), rows in groups}

    def pair(self, task: str) -> tuple[list[int], Array, Array] | None:
        """Seeds both methods have, and their (S, L) profiles: candidate, reference."""
        found = [self.scored.get((task, method)) for method in self.methods]
        if found[0] is None or found[1] is None:
            return None
        seeds = [int(s) for s in found[0].index.intersection(found[1].index)]
        return (seeds, found[0].loc[seeds].to_numpy(float), found[1].loc[seeds].to_numpy(float)) if seeds else None

    def runs(self, task: str, method: str) -> dict[int, _Run]:
        """seed -> how selection loss and drift went over training."""
        losses, drifts = self.m.frames.series, self.drift
        losses = losses[(losses.task == task) & (losses.method == method) & (losses.role == "final")].dropna(subset=["selection_loss"])
        drifts = drifts[(drifts.task == task) & (drifts.method == method)]
        means = {int(s): rows.groupby("step").value.mean().to_dict() for s, rows in drifts.groupby("seed")}  # type: ignore[call-overload]
        by_seed = {int(s): dict(zip(rows.step, rows.selection_loss, strict=True)) for s, rows in losses.groupby("seed")}  # type: ignore[call-overload]
        return {seed: _Run(by_seed.get(seed, {}), drift) for seed, drift in means.items()}

    def steps(self, task: str | None = None) -> list[str]:
        """Training steps the profiles of a task (of all tasks) came from."""
        rows = self.drift if task is None else self.drift[self.drift.task == task]
        return [str(s) for s in rows.step_id.unique()]


def drift_tables(m: Material) -> dict[str, Table]:
    """Every drift table by name, in the order of reading; those without rows are the caller's to drop."""
    profiles = Profiles(m)
    makers: dict[str, Callable[[Profiles], Table]] = {
        "drift_paired": paired_table, "drift_runs": runs_table, "drift_blocks": blocks_table, "drift_layers": layers_table,
        "drift_depth": depth_table, "drift_cross_task": cross_task_table, "drift_equal_quality": equal_quality_table,
        "drift_measures": measures_table,
    }  # fmt: skip
    return {name: make(profiles) for name, make in makers.items()}


def paired_table(p: Profiles) -> Table:
    """Candidate minus reference per task and over all tasks, with the sign-flip test and the smallest p it can give."""
    pairs = p.m.contrasts
    sides = [(d.candidate_S, d.reference_S) for d in pairs]
    rows = [(d.task, *_paired_row([side]), saturated_methods(p.m.study, d) or "no") for d, side in zip(pairs, sides, strict=True)]
    if len(pairs) > 1:
        some = f"{len(pairs)} of {len(p.m.study.tasks)} tasks"
        rows.append((f"{some}, each run flipped", *_paired_row(sides), None))
        shared = sorted(set.intersection(*(set(d.seeds) for d in pairs)))
        if shared:
            places = [[d.seeds.index(s) for s in shared] for d in pairs]
            picked = [(c[at], r[at]) for (c, r), at in zip(sides, places, strict=True)]
            rows.append((f"{some}, each seed flipped", *_paired_row(picked, of_seeds=True), None))
    candidate, reference = p.methods
    columns = (
        "task", "pairs", f"{candidate} mean", f"{candidate} sd", f"{reference} mean", f"{reference} sd", "difference", f"{LEVEL} low",
        f"{LEVEL} high", "reduction", "p sign flip", "attainable p", "vectors", "saturated",
    )  # fmt: skip
    note = (
        f"Registered drift scalar, {candidate} minus {reference}, runs paired by task and seed; t limits over runs (over tasks: "
        "within-task spread only). Reduction: of the mean, as a share of the reference's. Two-sided sign flip of whole runs; the last "
        "line flips a seed on all tasks at once, for runs of one seed that are not independent. A p at its attainable value is as "
        f"small as it can be. Saturated: above {p.m.study.analysis.saturated_drift:g}, where differences mean little."
    )
    return table("Drift paired by task and seed", columns, rows, note, (s for d in pairs for s in d.steps))


def _paired_row(pairs: list[tuple[Array, Array]], of_seeds: bool = False) -> tuple[Any, ...]:
    """One line from (candidate, reference) runs of each task; with `of_seeds` a seed's differences on all tasks are one."""
    groups = [candidate - reference for candidate, reference in pairs]
    groups = [np.mean(groups, axis=0)] if of_seeds else groups
    differences = np.concatenate(groups)
    test, mean = sign_flip(differences), float(np.mean([g.mean() for g in groups]))
    means = [float(np.mean([runs.mean() for runs in side])) for side in zip(*pairs, strict=True)]
    sds = [float(runs.std(ddof=1)) if len(runs) > 1 else None for runs in pairs[0]] if len(pairs) == 1 else [None, None]
    return (
        len(differences), means[0], sds[0], means[1], sds[1], mean, *_stratified_limits(groups),
        1 - means[0] / means[1] if means[1] > 0 else None, test.p, test.attainable_p, test.vectors,
    )  # fmt: skip


def _stratified_limits(groups: list[Array]) -> Limits:
    """t limits of the equal-weight mean of group means, from the spread within groups, with Satterthwaite's degrees of freedom."""
    if min(len(g) for g in groups) < 2:
        return None, None
    variances = np.array([g.var(ddof=1) / len(g) for g in groups])
    if variances.sum() == 0:
        return None, None
    df = variances.sum() ** 2 / np.sum(variances**2 / np.array([len(g) - 1 for g in groups]))
    half = float(stats.t.ppf((1 + INTERVAL_LEVEL) / 2, df) * np.sqrt(variances.sum())) / len(groups)
    mean = float(np.mean([g.mean() for g in groups]))
    return mean - half, mean + half


def runs_table(p: Profiles) -> Table:
    """The registered scalar of every paired run."""
    rows = [
        (d.task, seed, c, r, c - r, float(np.log(c / r)) if c > 0 and r > 0 else None, 1 - c / r if r > 0 else None)
        for d in p.m.contrasts
        for seed, c, r in zip(d.seeds, d.candidate_S.tolist(), d.reference_S.tolist(), strict=True)
    ]
    columns = ("task", "seed", *p.methods, "difference", "log ratio", "reduction")
    note = (
        "Mean over decoder layers of 1 − debiased CKA at the checkpoint with the best selection loss, one line a seed. Runs on tasks that "
        "neither method learned are in the quality-drift frontier."
    )
    return table("Drift of every pair of runs", columns, rows, note, (s for d in p.m.contrasts for s in d.steps))


def blocks_table(p: Profiles) -> Table:
    """The registered comparison on each disjoint part of the probe set."""
    margin, rows = 1 - p.m.study.analysis.drift_reduction, []
    found = [d for d in p.m.contrasts if d.candidate_SK is not None and d.reference_SK is not None and len(d.seeds) > 1]
    for d in found:
        assert d.candidate_SK is not None and d.reference_SK is not None
        for k in range(min(d.candidate_SK.shape[1], d.reference_SK.shape[1])):
            test = seed_test(d.candidate_SK[:, k], d.reference_SK[:, k], margin)
            rows.append((d.task, k + 1, test.ratio, *test.interval, test.contrast.p))
    columns = ("task", "part", "ratio", f"{LEVEL} low", f"{LEVEL} high", "p")
    note = "The registered scalar on each disjoint part of the probe set alone: t over seeds against the margin. Sensitivity, no claim."
    return table("Drift on parts of the probe set", columns, rows, note, (s for d in found for s in d.steps))


def layers_table(p: Profiles) -> Table:
    """Candidate minus reference by layer: simultaneous band and max-statistic p."""
    rows, steps = [], []
    for task in p.m.learned:
        if (found := layer_differences(p, task)) is None:
            continue
        steps += p.steps(task)
        rows += [(task, *line) for line in zip(*found, strict=True)]
    band = (f"{100 * BAND_LEVEL:g} % low", f"{100 * BAND_LEVEL:g} % high")
    columns = ("task", "layer", *p.methods, "difference", *band, "p max", "attainable p")
    note = (
        "Scored checkpoint, means over paired seeds. The band holds on all layers of a task at once (Bonferroni t over seeds); p max: "
        "two-sided sign flip with the largest statistic over layers, one sign a seed on all layers; attainable p: the smallest that "
        "so many seeds can give. Profiles are descriptive."
    )
    return table("Drift by layer", columns, rows, note, steps)


def layer_differences(p: Profiles, task: str) -> tuple[list[Any], ...] | None:
    """Per layer: number, candidate mean, reference mean, difference, band low and high, p max, attainable p. None without a paired seed."""
    if (pair := p.pair(task)) is None:
        return None
    _, candidate_SL, reference_SL = pair
    differences_SL = candidate_SL - reference_SL
    low, high = simultaneous_band(differences_SL)
    layers = [int(k) for k in p.scored[task, p.methods[0]].columns]
    means = (candidate_SL.mean(axis=0), reference_SL.mean(axis=0), differences_SL.mean(axis=0), low, high, max_statistic(differences_SL))
    attainable = sign_flip(differences_SL[:, 0]).attainable_p  # of the same sign vectors
    return layers, *(v.tolist() for v in means), [attainable] * len(layers)


def depth_table(p: Profiles) -> Table:
    """Where in the model a method drifts: early against late layers, and the layers that stand out."""
    rows = []
    for (task, method), profile in p.scored.items():
        mean = profile.mean(axis=0).to_numpy(float)
        early, late = (float(v.mean()) for v in thirds(mean))
        top = int(np.argmax(mean))
        standing_out = ", ".join(map(str, critical_layers(mean))) or "none"
        rows.append((task, method, early, late, late / early if early > 0 else None, top + 1, float(mean[top]), standing_out))
    columns = ("task", "method", "early layers", "late layers", "late / early", "layer of most drift", "drift there", "critical layers")
    note = (
        "Early and late: first and last third of the decoder layers. Critical: above the mean over layers by more than one sd over layers."
    )
    return table("Early, late and critical layers", columns, _ordered(p, rows), note, p.steps())


def _ordered(p: Profiles, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Rows that begin with task and method in the study's order."""
    tasks, methods = list(p.m.study.tasks), list(p.m.study.methods)
    return sorted(rows, key=lambda r: (tasks.index(r[0]), methods.index(r[1])))


def cross_task_table(p: Profiles) -> Table:
    """Do a method's layers drift alike on different tasks?"""
    rows = []
    for method in p.m.study.methods:
        means = {task: p.scored[task, method].mean(axis=0) for task in p.m.study.tasks if (task, method) in p.scored}
        for a, b in combinations(means, 2):
            x, y = means[a].align(means[b], join="inner")
            shared = sorted(set(critical_layers(x.to_numpy(float))) & set(critical_layers(y.to_numpy(float))))
            ratio = float(y.mean() / x.mean()) if x.mean() > 0 else None
            rows.append((method, a, b, len(x), *_alike(x, y), ratio, ", ".join(map(str, shared)) or "none"))
    columns = ("method", "first task", "second task", "layers", "Pearson r", "Spearman rho", "drift ratio", "shared critical layers")
    note = (
        "Mean layer profiles at the scored checkpoint, compared between tasks. Neighbouring layers are not independent, so no p stands "
        "here. Drift ratio: second task over first, means over layers."
    )
    return table("Layer profiles across tasks", columns, rows, note, p.steps())


def _alike(x: pd.Series, y: pd.Series) -> tuple[float | None, float | None]:
    """Pearson's and Spearman's correlation of two profiles; None where one does not vary."""
    if len(x) < 3 or x.nunique() == 1 or y.nunique() == 1:
        return None, None
    return float(np.corrcoef(x, y)[0, 1]), float(stats.spearmanr(x, y).statistic)


def equal_quality_table(p: Profiles) -> Table:
    """Drift of both methods when each first reached the same selection loss."""
    rows: list[tuple[Any, ...]] = []
    steps = []
    for task in p.m.learned:
        found = equal_quality(*(p.runs(task, method) for method in p.methods))
        lines = [
            [r[k] for k in ("selection_loss", "candidate_step", "reference_step", "candidate_drift", "reference_drift")] for r in found
        ]
        rows += [(task, str(r["seed"]), *line, _reduction(line)) for r, line in zip(found, lines, strict=True)]
        if len(found) > 1:
            mean = np.mean(lines, axis=0).tolist()
            rows.append((task, "mean", *mean, _reduction(mean)))
        steps += p.steps(task) if found else []
    candidate, reference = p.methods
    columns = (
        "task",
        "seed",
        "selection loss",
        f"{candidate} step",
        f"{reference} step",
        f"{candidate} drift",
        f"{reference} drift",
        "reduction",
    )
    note = (
        "Methods differ in learning rate, so equal steps are not equal progress: here each is read where it first reached the weaker "
        "method's best selection loss (nats per token), interpolated between evaluations and probes."
    )
    return table("Drift at equal quality", columns, rows, note, steps)


def _reduction(line: list[float]) -> float | None:
    return 1 - line[3] / line[4] if line[4] > 0 else None


def measures_table(p: Profiles) -> Table:
    """Every measure that was stored, at the scored checkpoint: mean over decoder layers, then over seeds."""
    rows = p.rows[p.rows.scored & (p.rows.layer != 0)]
    rows = pd.concat([rows, _chance_z(rows)])
    runs = rows.groupby(["task", "measure", "method", "seed"], sort=False).value.mean()
    found = runs.groupby(["task", "measure", "method"], sort=False).agg(["mean", "std"])
    lines: list[tuple[Any, ...]] = []
    for task, measure in dict.fromkeys((t, m) for t, m, _ in found.index):
        cells = [tuple(found.loc[(task, measure, m)]) if (task, measure, m) in found.index else (None, None) for m in p.methods]
        lines.append((task, measure, *(v for pair in cells for v in pair)))
    columns = ("task", "measure", *(f"{m} {what}" for m in p.methods for what in ("mean", "sd")))
    note = (
        "Primary pooling (token cosine: over tokens), whole probe set; output measures have no layer. Similarities fall with drift, "
        "distances grow. Chance CKA: plain CKA of unrelated rows, exact over permutations; plain CKA above chance: how many such sds it "
        "lies above their mean; being far above says only that base and tuned are related, and is no evidence of preservation."
    )
    return table("All measures of drift", columns, _by_task(p, lines), note, p.steps())


def _chance_z(rows: pd.DataFrame) -> pd.DataFrame:
    """(plain CKA - chance mean) / chance sd of every layer and run, as rows of a measure; none where the sd is 0."""
    keys, parts = ["task", "method", "seed", "layer"], ("cka_plain", "cka_chance_mean", "cka_chance_sd")
    wide = rows[rows.measure.isin(parts)].pivot_table(index=keys, columns="measure", values="value").reindex(columns=list(parts))
    wide = wide[wide.cka_chance_sd > 0]
    z = (wide.cka_plain - wide.cka_chance_mean) / wide.cka_chance_sd
    return z.rename("value").reset_index().assign(measure="cka_chance_z")


def _by_task(p: Profiles, rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    tasks = list(p.m.study.tasks)
    return sorted(rows, key=lambda r: tasks.index(r[0]))
