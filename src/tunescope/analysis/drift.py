"""Drift claims: the candidate's registered drift scalar lies a registered share below the reference's."""

from tunescope.study.schema import TASK_NAMES, Study

from .crossed import Interval, RatioTest, relative_test, seed_test
from .findings import Claim, Reason, ReasonKind
from .frames import Frames
from .frontier import frontier, frontier_note
from .quality import TaskQuality, missing_runs
from .scores import DriftPair, paired_drift
from .verdicts import decide_family, overall


def drift_test(pair: DriftPair, reduction: float) -> tuple[RatioTest, str] | None:
    """Test of mean D_candidate < (1 - reduction) x mean D_reference and the name of the form used; None below two seeds.

    Probe blocks are the second crossed factor where they were stored (their row means set to the registered scalars); otherwise a plain
    paired t over seeds.
    """
    if len(pair.seeds) < 2:
        return None
    crossed = pair.crossed()
    if crossed is not None:
        test = relative_test(*crossed, margin=1 - reduction, alternative="less", few_columns=True)
        return test, f"crossed random-effects t over seeds x {crossed[0].shape[1]} probe blocks"
    return seed_test(pair.candidate_S, pair.reference_S, 1 - reduction), "t over seeds"


def drift_claims(frames: Frames, study: Study, qualities: list[TaskQuality]) -> tuple[list[Claim], Claim]:
    """Per-task claims (Holm) and the claim on all tasks (intersection-union)."""
    spec = study.analysis
    tasks = decide_family([_claim(frames, study, q) for q in qualities], spec.alpha)
    return tasks, overall(tasks, "drift/all", _statement(study, "every task"), spec.alpha)


def _statement(study: Study, where: str) -> str:
    spec = study.analysis
    return f"On {where}, {spec.candidate_method} drifts at least {100 * spec.drift_reduction:g} % less than {spec.reference_method}"


def _claim(frames: Frames, study: Study, quality: TaskQuality) -> Claim:
    spec, task = study.analysis, quality.task
    pair = paired_drift(frames, task, spec.candidate_method, spec.reference_method)
    tested = drift_test(pair, spec.drift_reduction) if pair else None
    test, form = tested if tested else (None, "crossed random-effects t over seeds x probe blocks")
    contrast, reasons = test.contrast if test else None, _reasons(frames, study, quality, pair, test)
    unlearned = any(r.kind == "nothing_learned" for r in reasons)
    reduction, interval = _reduction(test)
    if test is None and pair is not None and pair.reference_S.mean() > 0:
        reduction = 1 - float(pair.candidate_S.mean() / pair.reference_S.mean())  # a single seed: shown, not tested
    return Claim(
        id=f"drift/{task}", dimension="drift", task=task,
        statement=_statement(study, TASK_NAMES[task]),
        verdict="inconclusive", estimate=reduction, estimate_name=f"1 - D_{spec.candidate_method} / D_{spec.reference_method}",
        interval=interval, interval_level=0.90, margin=spec.drift_reduction, p=contrast.p if contrast else None,
        p_opposite=contrast.p_opposite if contrast else None, p_adjusted=None, df=contrast.df if contrast else None, attainable_p=None,
        method=f"{form} on D_{spec.candidate_method} - {1 - spec.drift_reduction:g} D_{spec.reference_method}, Fieller limits",
        n_seeds=len(pair.seeds) if pair else 0, n_examples=_probed(frames, pair), n_launches=None,
        reasons=reasons, notes=[] if unlearned else _notes(frames, study, task, pair, test),
        steps=sorted({*(pair.steps if pair else ()), *(s for row in quality.gate for s in row.steps)}),
    )  # fmt: skip


def _probed(frames: Frames, pair: DriftPair | None) -> int | None:
    """Examples that were probed, as the runs recorded them (a small split may hold fewer than the study asks for)."""
    d = frames.drift
    found = d.n[d.step_id.isin(pair.steps if pair else ()) & (d.block == -1) & (d.measure == "cka_drift_debiased")]
    return int(found.min()) if len(found) and found.min() > 0 else None


def _reduction(test: RatioTest | None) -> tuple[float | None, Interval | None]:
    if test is None or test.ratio is None:
        return None, None
    low, high = test.interval
    return 1 - test.ratio, (None if high is None else 1 - high, None if low is None else 1 - low)


def _reasons(frames: Frames, study: Study, quality: TaskQuality, pair: DriftPair | None, test: RatioTest | None) -> list[Reason]:
    """Why the claim may not be decided, most telling first."""
    spec = study.analysis
    found: list[tuple[ReasonKind, str]] = []
    if not quality.learned((spec.candidate_method, spec.reference_method)):
        text = "nothing was learned: neither method beats the majority baseline, so no drift contrast is claimed"
        found.append(("nothing_learned", text))
    absent = missing_runs(frames, study, quality.task)
    if absent:
        found.append(("missing_steps", f"partial: missing {', '.join(absent)}"))
    elif pair is None:
        found.append(("no_drift_scalar", "no drift scalar in the finished runs"))
    elif set(pair.seeds) != set(study.seeds):
        without = ", ".join(str(s) for s in study.seeds if s not in pair.seeds)
        found.append(("no_drift_scalar", f"no drift scalar for seeds {without}"))
    if pair is not None and len(pair.seeds) < 2:
        found.append(("too_few_seeds", "fewer than 2 paired seeds: nothing can be tested"))
    if test is not None and (unchecked := quality.unchecked()):
        found.append(("gate_unknown", f"whether anything was learned cannot be checked: {unchecked}"))
    if test is not None and test.contrast.p is None:
        found.append(("no_variation", test.contrast.note))
    if test is not None and test.ratio is None:
        found.append(("no_reference_drift", f"the mean drift of {spec.reference_method} is not positive: no ratio can be formed"))
    return [Reason(kind=kind, text=text, task=quality.task) for kind, text in found]


def saturated_methods(study: Study, pair: DriftPair) -> str:
    """Methods whose mean drift lies where differences mean little, "" for none."""
    return ", ".join(method for method, mean in _means(study, pair).items() if mean > study.analysis.saturated_drift)


def _means(study: Study, pair: DriftPair) -> dict[str, float]:
    spec = study.analysis
    return {spec.candidate_method: float(pair.candidate_S.mean()), spec.reference_method: float(pair.reference_S.mean())}


def _notes(frames: Frames, study: Study, task: str, pair: DriftPair | None, test: RatioTest | None) -> list[str]:
    """What a reader of a contrast that means something has to know beside it."""
    spec, found = study.analysis, []
    if pair is not None:
        found += [
            f"{m}: mean drift {v:.3f} is saturated (above {spec.saturated_drift:g}); differences there mean little"
            for m, v in _means(study, pair).items()
            if v > spec.saturated_drift
        ]
    if test is not None and test.contrast.note and test.contrast.p is not None:
        found.append(test.contrast.note)
    return [*found, *frontier_note(frontier(frames, task), spec)]
