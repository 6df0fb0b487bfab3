"""Statistics tables on quality and drift: what stands beside the registered verdicts, each with what it may and may not be used for."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tunescope.study.power import planned_power, sizes_of_tests
from tunescope.study.schema import Study, TaskName

from .crossed import Array, f1_from_counts
from .effects import anova, cohens_dz, paired_anova
from .families import bonferroni, holm
from .findings import Claim
from .frames import Frames
from .paired import mcnemar, tango
from .power import components, detectable_margin, power
from .quality import TaskQuality
from .resampling import PermutationTest, approximate_randomisation
from .scores import DriftPair, Paired, paired_scores, positive_label
from .verdicts import entering, meaningless

Table = dict[str, Any]
CANNOT = "cannot be decided by this test"


@dataclass(frozen=True)
class Material:
    """What the tables are made from."""

    frames: Frames
    study: Study
    qualities: list[TaskQuality]
    drifts: list[DriftPair]
    claims: list[Claim]
    diverged: tuple[str, ...]
    """Final runs whose training loss did not fall or that went wrong, as step ids."""
    serving: dict[str, Any]
    """`overhead_summary` of the launches, {} without any."""

    @property
    def paired(self) -> list[Paired]:
        """Tasks with at least one paired seed."""
        return [q.scores for q in self.qualities if q.scores is not None]

    @property
    def passing(self) -> list[str]:
        """Tasks whose gate has not failed: on the others a comparison of scores means nothing."""
        return [q.task for q in self.qualities if not q.gate_failed(self.study.analysis.reference_method)]

    @property
    def comparable(self) -> list[Paired]:
        """The paired tasks whose gate has not failed."""
        return [s for s in self.paired if s.task in self.passing]

    @property
    def testable(self) -> list[Paired]:
        """Comparable tasks with at least two paired seeds and two groups of examples."""
        return [s for s in self.comparable if len(s.seeds) > 1 and len(set(s.groups)) > 1]

    @property
    def learned(self) -> list[str]:
        """Tasks but for those that neither method learned, where a comparison of drift means nothing."""
        return [q.task for q in self.qualities if q.learned(_methods(self))]

    @property
    def contrasts(self) -> list[DriftPair]:
        """Drift of both methods on the tasks that were learned."""
        return [d for d in self.drifts if d.task in self.learned]


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]], note: str, steps: Iterable[str]) -> Table:
    """A table as plain data: rows are lists in the order of the columns; what is not finite becomes None."""
    return {
        "title": title,
        "columns": list(columns),
        "rows": [[plain(v) for v in row] for row in rows],
        "note": note,
        "steps": sorted(set(steps)),
    }


def plain(value: Any) -> Any:
    """JSON types only: numpy scalars become Python's, non-finite numbers None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(v) for v in value]
    return None if value is pd.NA else value


def steps_of(items: Iterable[Paired | DriftPair]) -> list[str]:
    return [s for item in items for s in item.steps]


def gate_table(m: Material) -> Table:
    """Did each method learn anything? Both against the majority class and the untuned base."""
    rows = [
        (g.task, g.method, g.system, g.method_mean, g.system_mean, g.test.estimate, g.test.p, g.passed) for q in m.qualities for g in q.gate
    ]
    note = (
        "One-sided crossed t on paired scores. Where the reference method fails either line, a comparison of quality means nothing, and "
        "tables that compare leave the task out; where neither method beats the majority class, so do those that compare drift."
    )
    columns = ("task", "method", "system", "method mean", "system mean", "difference", "p", "beats it")
    return table(
        "Gate: methods against the majority class and the untuned base",
        columns,
        rows,
        note,
        (s for q in m.qualities for g in q.gate for s in g.steps),
    )


def mcnemar_table(m: Material) -> Table:
    """Exact and mid-p McNemar per task and seed."""
    rows = []
    found = [s for s in (paired_scores(m.frames, task, "exact_match", *_methods(m)) for task in m.passing) if s is not None]
    for s in found:
        for k, seed in enumerate(s.seeds):
            a, b = s.candidate_SN[k] > 0.5, s.reference_SN[k] > 0.5
            test = mcnemar(int((a & ~b).sum()), int((~a & b).sum()))
            difference = tango(test.n10, test.n01, len(a))
            rows.append(
                (
                    s.task, seed, test.n10, test.n01, test.p_exact, test.p_mid, test.attainable_p, test.odds_ratio, *test.interval,
                    difference.difference, *difference.interval,
                )
            )  # fmt: skip
    columns = ("task", "seed", *(f"only {name} right" for name in _methods(m)), "p exact", "p mid", "attainable p", "odds ratio")
    columns = (*columns, "95 % low", "95 % high", "difference", "90 % low", "90 % high")
    note = (
        "Describes one pair of checkpoints each; never pooled over seeds, where its false-positive rate reaches 8 to 62 %. The last three "
        "columns are the difference of the shares of right answers with Tango's score limits."
    )
    return table("McNemar per task and seed", columns, rows, note, steps_of(found))


def _methods(m: Material) -> tuple[str, str]:
    return m.study.analysis.candidate_method, m.study.analysis.reference_method


def f1_table(m: Material) -> Table:
    """Approximate randomisation of F1 per task and seed."""
    rows: list[tuple[Any, ...]] = []
    steps: list[str] = []
    for index, task in enumerate(m.passing):
        s = paired_scores(m.frames, task, "f1", *_methods(m))
        if s is None:
            continue
        steps += s.steps
        for k, seed in enumerate(s.seeds):
            rng = np.random.default_rng([index, k])
            test = _f1_test(m, s, k, rng)
            rows.append((task, seed, test.statistic, test.p, test.attainable_p, test.draws, decision_of(test, m.study.analysis.alpha)))
    columns = ("task", "seed", "F1 difference", "p", "attainable p", "draws", "at alpha")
    note = "Two-sided, systems swapped within each example; token F1 for SQuAD, F1 of the positive class elsewhere."
    return table("Approximate randomisation test of F1", columns, rows, note, steps)


def decision_of(test: PermutationTest, alpha: float) -> str:
    if not test.decides(alpha):
        return CANNOT
    return "rejects" if test.p <= alpha else "does not reject"


def _f1_test(m: Material, s: Paired, k: int, rng: np.random.Generator) -> PermutationTest:
    draws = max(9_999, m.study.analysis.permutation_draws)
    positive = positive_label(s.task)
    steps = s.steps[k], s.steps[len(s.seeds) + k]
    if positive is None or m.frames.scored[steps[0]].f1.notna().any():
        return approximate_randomisation(s.candidate_SN[k], s.reference_SN[k], draws=draws, rng=rng)
    counts = [_counts(m.frames.scored[step], s.example_ids, positive) for step in steps]
    score: Callable[[Array], Array] = lambda sums: f1_from_counts(sums[:, 0], sums[:, 1])  # noqa: E731
    return approximate_randomisation(counts[0], counts[1], score=score, draws=draws, rng=rng)


def _counts(rows: pd.DataFrame, ids: Sequence[str], positive: str) -> Array:
    """True positives and predicted plus gold positives per example."""
    rows = rows.reindex(list(ids))
    predicted, gold = (rows.prediction == positive).to_numpy(bool), (rows.label == positive).to_numpy(bool)
    return np.stack([predicted & gold, predicted.astype(int) + gold], axis=1).astype(np.float64)


def multiplicity_table(m: Material) -> Table:
    """Raw, Holm and Bonferroni p of the per-task claims that compare something, and their opposites; corrected as the verdicts are."""
    rows = []
    for dimension in ("quality", "drift"):
        claims = [c for c in m.claims if c.dimension == dimension and c.task]
        raw, opposite = zip(*map(entering, claims), strict=True) if claims else ((), ())
        corrected = zip(claims, holm(raw), bonferroni(raw), holm(opposite), strict=True)
        rows += [(c.id, c.p, h, b, c.p_opposite, o, not c.reasons, c.verdict) for c, h, b, o in corrected if not meaningless(c)]
    names = ("claim", "p", "Holm", "Bonferroni", "p opposite", "Holm opposite", "may be decided", "verdict")
    note = (
        "Families are all tasks within a dimension; a claim that may not be decided counts as 1 in its family and has no corrected p. "
        "Tasks on which nothing was learned are left out."
    )
    return table("Corrections for several tasks", names, rows, note, (s for c in m.claims if c.task for s in c.steps))


def gap_table(m: Material) -> Table:
    """Equal-weight mean of relative quality gaps."""
    gaps = {s.task: _relative_gaps(s) for s in m.comparable}
    rows = [(task, len(v), float(v.mean()), float(v.std(ddof=1)) if len(v) > 1 else None, None, None) for task, v in gaps.items()]
    if gaps and min(len(v) for v in gaps.values()) > 1:
        mean = float(np.mean([v.mean() for v in gaps.values()]))
        variances = [float(v.var(ddof=1)) / len(v) for v in gaps.values()]
        total = sum(variances)
        df = total**2 / sum(x**2 / (len(v) - 1) for x, v in zip(variances, gaps.values(), strict=True)) if total > 0 else 1.0
        from scipy import stats

        half = float(stats.t.ppf(0.95, df)) * total**0.5 / len(gaps)
        rows.append(
            (
                f"{len(gaps)} of {len(m.study.tasks)} tasks, equal weight",
                sum(len(v) for v in gaps.values()),
                mean,
                None,
                mean - half,
                mean + half,
            )
        )
    note = "Relative gap = (reference - candidate) / reference, over runs. Descriptive: the mean hides the weakest task."
    return table(
        "Mean relative quality gap", ("task", "runs", "mean gap", "sd", "90 % low", "90 % high"), rows, note, steps_of(m.comparable)
    )


def _relative_gaps(s: Paired) -> Array:
    reference = s.reference_SN.mean(axis=1)
    return (reference - s.candidate_SN.mean(axis=1))[reference > 0] / reference[reference > 0]


def effect_table(m: Material) -> Table:
    """Hedges-corrected d_z over seeds."""
    measured = [("quality", s.task, s.candidate_SN.mean(axis=1) - s.reference_SN.mean(axis=1)) for s in m.comparable]
    measured += [("drift", d.task, d.candidate_S - d.reference_S) for d in m.contrasts]
    rows = []
    for dimension, task, differences in measured:
        found = cohens_dz(differences)
        if found is not None:
            rows.append((dimension, task, len(differences), float(differences.mean()), found[0], *found[1]))
    note = "d_z of candidate minus reference over seeds, exact Hedges correction; noncentral t limits of the true d_z."
    columns = ("dimension", "task", "seeds", "mean difference", "d_z", "95 % low", "95 % high")
    return table("Effect sizes over seeds", columns, rows, note, [*steps_of(m.comparable), *steps_of(m.contrasts)])


def run_values(m: Material) -> pd.DataFrame:
    """The primary metric of every comparable run: method, task, value."""
    runs = [
        {"method": method, "task": s.task, "value": value}
        for s in m.comparable
        for method, values in zip(_methods(m), (s.candidate_SN, s.reference_SN), strict=True)
        for value in values.mean(axis=1)
    ]
    return pd.DataFrame(runs, columns=["method", "task", "value"])


def anova_table(m: Material) -> Table:
    """Exploratory analysis of variance of the primary metric."""
    gaps = [{"task": s.task, "value": value} for s in m.comparable for value in _relative_gaps(s)]
    found = anova(run_values(m)) + (paired_anova(pd.DataFrame(gaps)) if gaps else [])
    columns = ("effect", "df", "F", "p", "partial_eta2", "partial_omega2")
    note = (
        "Exploratory: tasks are not a sample and their metrics differ. Seeds pair, so the line on paired relative differences is the "
        "sharper one. Two methods need no post-hoc test."
    )
    return table("Analysis of variance, method x task", columns, [[row[c] for c in columns] for row in found], note, steps_of(m.comparable))


def power_table(m: Material) -> Table:
    """Smallest margin each task's design can confirm, and the power at equal methods."""
    spec, rows = m.study.analysis, []
    for s in m.testable:
        candidate, reference = s.units()
        sd, mean = components(candidate - spec.quality_retained * reference), float(reference.mean())
        n = candidate.shape[1]
        at = [power(sd, (1 - spec.quality_retained) * mean, seeds, n, spec.alpha) for seeds in (3, 5, 10)]
        margin = detectable_margin(sd, mean, len(s.seeds), n, alpha=spec.alpha)
        rows.append((s.task, len(s.seeds), n, sd.seeds, sd.examples, sd.residual, margin, *at))
    columns = (
        "task",
        "seeds",
        "units",
        "sd seeds",
        "sd units",
        "sd residual",
        "detectable margin",
        "power 3 seeds",
        "power 5 seeds",
        "power 10 seeds",
    )
    note = (
        "Chance of confirming the registered margin if both methods were truly equal, and the smallest relative margin confirmed in "
        "80 % of studies, from the standard deviations found here; nothing is computed from the observed effect."
    )
    return table("Power and minimum detectable margin of the quality test", columns, rows, note, steps_of(m.testable))


def planned_power_table(m: Material) -> Table:
    """Power as it stood before the runs."""
    known: dict[TaskName, int] = {s.task: len(s.example_ids) for s in m.paired}  # type: ignore[misc]
    found = planned_power(m.study, sizes_of_tests(m.study, known))
    note = (
        "Chance of confirming the registered margin if both methods are truly equal, from a noisy and a quiet case of standard deviations "
        "assumed before the runs: they were fitted to the original plan's own table and are no evidence; `tunescope plan` prints the same."
    )
    columns = ("task", "test examples", "seeds", "power from", "power to")
    rows = [(r.task, r.examples, r.seeds, r.low, r.high) for r in found]
    return table("Power stated before the runs", columns, rows, note, ())
