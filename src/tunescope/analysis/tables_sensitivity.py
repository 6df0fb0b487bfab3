"""What other sound analyses of the same runs would have said, beside the registered ones."""

import math
from typing import Any

import numpy as np

from .crossed import relative_test, seed_test, t_test
from .drift import drift_test
from .resampling import multi_bootstrap, sign_flip
from .scores import DriftPair, Paired
from .tables import Material, Table, decision_of, steps_of, table


def quality_sensitivity_table(m: Material) -> Table:
    """The quality claim under other procedures."""
    rows: list[tuple[Any, ...]] = []
    for index, s in enumerate(m.testable):
        rows += [(s.task, *row) for row in _quality_rows(m, s, np.random.default_rng([index, 7]))]
    columns = ("task", "procedure", "ratio", "90 % low", "90 % high", "p", "attainable p", "at alpha")
    note = "Beside the registered test, never instead of it. A bootstrap or sign flip over few seeds is too narrow or cannot decide."
    return table("Sensitivity of the quality claim", columns, rows, note, steps_of(m.testable))


def _quality_rows(m: Material, s: Paired, rng: np.random.Generator) -> list[tuple[Any, ...]]:
    spec = m.study.analysis
    candidate, reference = s.units()
    means = candidate.mean(axis=1), reference.mean(axis=1)
    rows = [_ratio_row("registered test", relative_test(candidate, reference, margin=spec.quality_retained), spec.alpha)]
    limits, p = multi_bootstrap(candidate, reference, margin=spec.quality_retained, rng=rng)
    ratio = means[0].mean() / means[1].mean() if means[1].mean() > 0 else None
    rows.append(("multi-bootstrap over seeds and examples", ratio, *limits, p, None, None))
    rows.append(_ratio_row("t over seeds only", seed_test(*means, spec.quality_retained, "greater"), spec.alpha))
    flip = sign_flip(means[0] - spec.quality_retained * means[1], rng=rng)
    rows.append(("sign flip over seeds, margin subtracted", ratio, None, None, flip.p, flip.attainable_p, decision_of(flip, spec.alpha)))
    if s.articles is not None and 2 <= len(set(s.articles)) < len(set(s.groups)):
        rows.append(_ratio_row("clustered by article", relative_test(*s.units(s.articles), margin=spec.quality_retained), spec.alpha))
    kept = [k for k in range(len(s.seeds)) if not {s.steps[k], s.steps[len(s.seeds) + k]} & set(m.diverged)]
    if 2 <= len(kept) < len(s.seeds):
        trimmed = relative_test(candidate[kept], reference[kept], margin=spec.quality_retained)
        rows.append(_ratio_row(f"without {len(s.seeds) - len(kept)} diverged seeds", trimmed, spec.alpha))
    return rows


def _ratio_row(name: str, test: Any, alpha: float) -> tuple[Any, ...]:
    p = test.contrast.p
    return (name, test.ratio, *test.interval, p, None, None if p is None else "rejects" if p <= alpha else "does not reject")


def drift_sensitivity_table(m: Material) -> Table:
    """The drift claim under other procedures."""
    rows: list[tuple[Any, ...]] = []
    found = [d for d in m.contrasts if len(d.seeds) > 1]
    for index, d in enumerate(found):
        rows += [(d.task, *row) for row in _drift_rows(m, d, np.random.default_rng([index, 11]))]
    columns = ("task", "procedure", "ratio", "90 % low", "90 % high", "p", "attainable p", "at alpha")
    note = "Ratio D_candidate / D_reference. Beside the registered test, never instead of it."
    return table("Sensitivity of the drift claim", columns, rows, note, steps_of(found))


def _drift_rows(m: Material, d: DriftPair, rng: np.random.Generator) -> list[tuple[Any, ...]]:
    spec = m.study.analysis
    margin = 1 - spec.drift_reduction
    registered = drift_test(d, spec.drift_reduction)
    rows = [_ratio_row(f"registered test ({registered[1]})", registered[0], spec.alpha)] if registered else []
    rows.append(_ratio_row("t over seeds only", seed_test(d.candidate_S, d.reference_S, margin), spec.alpha))
    ratio = d.candidate_S.mean() / d.reference_S.mean() if d.reference_S.mean() > 0 else None
    if (d.candidate_S > 0).all() and (d.reference_S > 0).all():
        logs = np.log(d.candidate_S / d.reference_S)
        test, limits = t_test(logs - math.log(margin), "less"), t_test(logs).interval()
        bounds = [None if x is None else math.exp(x) for x in limits]
        decision = None if test.p is None else "rejects" if test.p <= spec.alpha else "does not reject"
        rows.append(("t over seeds on log ratios", math.exp(logs.mean()), *bounds, test.p, None, decision))
    flip = sign_flip(margin * d.reference_S - d.candidate_S, rng=rng)
    rows.append(("sign flip over seeds, margin subtracted", ratio, None, None, flip.p, flip.attainable_p, decision_of(flip, spec.alpha)))
    return rows
