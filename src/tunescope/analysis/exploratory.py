"""Beside the claims: the practical threshold, whether tasks agree, surprises, and seeds added after the plan was fixed."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tunescope.study.schema import Study

from .correlate import correlations
from .crossed import RatioTest, relative_test
from .drift import drift_test
from .effects import anova
from .frames import Frames
from .paired import mcnemar
from .quality import task_quality
from .regression import cochran_q
from .scores import DriftPair, Paired, paired_drift, paired_scores
from .tables import Material, Table, run_values, steps_of, table
from .tables_runs import points

SURPRISE = 0.05
Row = tuple[Any, ...]


def practical_table(m: Material) -> Table:
    """Is the difference in quality smaller than the practical threshold, in either direction?"""
    spec = m.study.analysis
    rows = [_practical(s, 1 - spec.quality_retained, spec.alpha) for s in m.testable]
    threshold = f"{100 * (1 - spec.quality_retained):g} %"
    note = (
        f"Two one-sided crossed t tests against a loss and a gain of {threshold}. Equivalent: both reject. Statistically clear is not "
        f"the same as practically large: the last column says on which side of {threshold} the difference lies, not whether it is 0."
    )
    columns = ("task", "relative difference", "90 % low", "90 % high", "p above the loss", "p below the gain", "reading")
    return table(f"Against the practical threshold of {threshold}", columns, rows, note, (x for s in m.testable for x in s.steps))


def _practical(s: Paired, threshold: float, alpha: float) -> Row:
    candidate, reference = s.units()
    loss = relative_test(candidate, reference, margin=1 - threshold)
    gain = relative_test(candidate, reference, margin=1 + threshold, alternative="less")
    low, high = loss.interval
    shown = [None if x is None else x - 1 for x in (loss.ratio, low, high)]
    return (s.task, *shown, loss.contrast.p, gain.contrast.p, _reading(loss, gain, threshold, alpha))


def _reading(loss: RatioTest, gain: RatioTest, threshold: float, alpha: float) -> str:
    def rejects(p: float | None) -> bool:
        return p is not None and p <= alpha

    size = f"{100 * threshold:g} %"
    if rejects(loss.contrast.p):
        if rejects(gain.contrast.p):
            return f"equivalent within {size}"
        return f"better by more than {size}" if rejects(gain.contrast.p_opposite) else f"loses less than {size}"
    return f"loses more than {size}" if rejects(loss.contrast.p_opposite) else "not decided"


def agreement_table(m: Material) -> Table:
    """Do the tasks tell the same story?"""
    pairs = [(d, found) for d in m.contrasts if len(d.seeds) > 1 and (found := d.crossed()) is not None]
    quality = [(s.task, *_log_ratio(*s.units())) for s in m.testable]
    drift = [(d.task, *_log_ratio(*found, few_columns=True)) for d, found in pairs]
    rows = [row for name, values in (("quality", quality), ("drift", drift)) if (row := _agreement(name, values)) is not None]
    note = (
        "Ratios candidate / reference on the log scale. Q is Cochran's test of one common ratio, I2 the share of the spread beyond chance; "
        "with few seeds both are guides. Where tasks disagree, a mean over tasks describes none of them. Exploratory."
    )
    columns = ("dimension", "tasks", "below 1", "smallest ratio", "largest ratio", "Q", "df", "p", "I2", "reading")
    return table("Do the tasks agree?", columns, rows, note, [*steps_of(m.testable), *steps_of(d for d, _ in pairs)])


def _log_ratio(candidate_SN: np.ndarray, reference_SN: np.ndarray, few_columns: bool = False) -> tuple[float, float]:
    """log of the ratio of means and its standard error: that of the contrast at the ratio itself (delta method); nan where undefined."""
    top, bottom = float(candidate_SN.mean()), float(reference_SN.mean())
    if top <= 0 or bottom <= 0:
        return math.nan, math.nan
    contrast = relative_test(candidate_SN, reference_SN, margin=top / bottom, few_columns=few_columns).contrast
    return math.log(top / bottom), contrast.se / top


def _agreement(name: str, values: list[tuple[str, float, float]]) -> Row | None:
    known = [(log, se) for _, log, se in values if math.isfinite(log) and se > 0]
    found = cochran_q([log for log, _ in known], [se for _, se in known])
    if found is None:
        return None
    ratios = sorted(math.exp(log) for log, _ in known)
    below = sum(r < 1 for r in ratios)
    direction = "all one way" if below in (0, len(ratios)) else "not all one way"
    size = "sizes differ beyond chance" if found.p <= SURPRISE else "sizes agree within chance"
    return (name, len(ratios), below, ratios[0], ratios[-1], found.q, found.df, found.p, found.i2, f"{direction}; {size}")


def surprises_table(m: Material) -> Table:
    """What was not asked and stands out."""
    rows = [("exploratory", *row) for row in (*_better(m), *_more_drift(m), *_disagreement(m), *_interaction(m), *_relation(m), *_seeds(m))]
    note = "Found by looking, not registered, not corrected for the number of looks: each is a question for a new study."
    steps = [*steps_of(m.testable), *steps_of(m.contrasts)]
    return table("Surprises (exploratory)", ("kind", "subject", "observation", "p"), rows, note, steps)


def _better(m: Material) -> Iterator[Row]:
    for s in m.testable:
        test = relative_test(*s.units(), margin=1.0)
        if test.contrast.p is not None and test.contrast.p <= SURPRISE / 2:
            yield s.task, f"{_names(m)[0]} scores above {_names(m)[1]} (ratio {test.ratio:.3f})", test.contrast.p


def _more_drift(m: Material) -> Iterator[Row]:
    for d in m.contrasts:
        found = drift_test(d, 0.0)
        p, ratio = (found[0].contrast.p_opposite, found[0].ratio) if found is not None else (None, None)
        if p is not None and ratio is not None and p <= SURPRISE / 2:
            yield d.task, f"{_names(m)[0]} drifts more than {_names(m)[1]} (ratio {ratio:.2f})", p


def _disagreement(m: Material) -> Iterator[Row]:
    for row in agreement_table(m)["rows"]:
        if row[7] <= SURPRISE:
            yield row[0], f"the ratio differs between tasks, from {row[3]:.3f} to {row[4]:.3f}", row[7]


def _interaction(m: Material) -> Iterator[Row]:
    for row in anova(run_values(m)):
        if row["effect"] == "method x task" and row["p"] <= SURPRISE:
            yield "quality", "the difference between methods depends on the task (analysis of variance)", row["p"]


def _relation(m: Material) -> Iterator[Row]:
    found = correlations(points(m))["within_method"]
    if found is not None and found["p"] <= SURPRISE:
        way = "higher" if found["r"] > 0 else "lower"
        yield "drift", f"runs of one method that drift more score {way} on a task (r = {found['r']:.2f} over {found['n']} runs)", found["p"]


def _seeds(m: Material) -> Iterator[Row]:
    """Seeds on which the order of the methods turns over, clearly."""
    for task in m.passing:
        s = paired_scores(m.frames, task, "exact_match", *_names(m))
        if s is None or len(s.seeds) < 3:
            continue
        mean = float((s.candidate_SN - s.reference_SN).mean())
        for k, seed in enumerate(s.seeds):
            a, b = s.candidate_SN[k] > 0.5, s.reference_SN[k] > 0.5
            n10, n01 = int((a & ~b).sum()), int((~a & b).sum())
            p = mcnemar(n10, n01).p_mid
            if (n10 - n01) * mean < 0 and p <= SURPRISE:
                yield task, f"seed {seed} turns the order of the methods over ({n10} against {n01} examples)", p


def _names(m: Material) -> tuple[str, str]:
    return m.study.analysis.candidate_method, m.study.analysis.reference_method


def added_seeds_table(frames: Frames, study: Study, added: tuple[int, ...]) -> Table:
    """Quality and drift with the seeds that were added after the plan was fixed: exploratory, no verdict."""
    spec, rows = study.analysis, list[Row]()
    steps: list[str] = []
    names = spec.candidate_method, spec.reference_method
    for task in study.tasks if added else ():
        quality = task_quality(frames, study, task)
        scores, test = quality.scores, quality.test
        if scores is not None and test is not None and set(scores.seeds) & set(added) and not quality.gate_failed(spec.reference_method):
            rows.append(("quality", task, len(scores.seeds), *_ratio(test)))
            steps += scores.steps
        pair: DriftPair | None = paired_drift(frames, task, *names) if quality.learned(names) else None
        found = drift_test(pair, spec.drift_reduction) if pair is not None and set(pair.seeds) & set(added) else None
        if pair is not None and found is not None:
            rows.append(("drift", task, len(pair.seeds), *_ratio(found[0])))
            steps += pair.steps
    note = f"Seeds {', '.join(map(str, added))} were added after the plan was fixed. Exploratory: these rows decide nothing."
    columns = ("dimension", "task", "seeds", "ratio", "90 % low", "90 % high", "p")
    return table("With the seeds added later (exploratory)", columns, rows, note, steps)


def _ratio(test: RatioTest) -> Row:
    return (test.ratio, *test.interval, test.contrast.p)
