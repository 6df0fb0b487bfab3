"""Quality claims: the candidate keeps a registered share of the reference's score, on tasks where the reference learnt something."""

from dataclasses import dataclass

from tunescope.study.schema import TASK_NAMES, Study

from .crossed import Interval, RatioTest, TTest, cluster_totals, crossed_t, relative_test
from .findings import Claim, Reason, ReasonKind
from .frames import Frames
from .scores import Paired, baseline_values, paired_scores, seeds_of
from .verdicts import decide_family, overall

SYSTEMS = ("majority", "base")


@dataclass(frozen=True)
class GateRow:
    """Does one method beat one baseline system on one task? One-sided crossed t on the paired difference."""

    task: str
    method: str
    system: str
    method_mean: float
    system_mean: float
    test: TTest
    passed: bool
    steps: tuple[str, ...]


@dataclass(frozen=True)
class TaskQuality:
    """What is known of one task's quality: the paired scores, the gate, the test; None where runs are missing."""

    task: str
    scores: Paired | None
    test: RatioTest | None
    gate: tuple[GateRow, ...]
    gate_missing: tuple[str, ...]
    missing_seeds: tuple[str, ...]
    unpredicted: tuple[str, ...] = ()
    """Finished runs without predictions, as step ids."""

    def beats(self, method: str, system: str) -> bool | None:
        """Whether a method beats a baseline system; None when unknown."""
        return next((row.passed for row in self.gate if (row.method, row.system) == (method, system)), None)

    def gate_failed(self, reference: str) -> bool:
        """Whether the reference is known not to beat the majority class or the base."""
        return any(self.beats(reference, system) is False for system in SYSTEMS)

    def learned(self, methods: tuple[str, ...]) -> bool:
        """False when no method beats the majority class: then no quality or drift contrast is claimed."""
        return any(self.beats(m, "majority") is not False for m in methods)

    def unpaired(self) -> str:
        """Why the scores of finished runs could not be paired."""
        if self.unpredicted:
            return f"no predictions of {', '.join(self.unpredicted)}"
        return "no per-example form of the registered metric in the stored predictions"

    def unchecked(self) -> str:
        """Why it is not known whether the finished runs learned anything, "" where it is."""
        if self.gate_missing:
            return f"baseline/{self.task} has no predictions"
        if self.gate:
            return ""
        return self.unpaired() if self.scores is None else "fewer than 2 groups of test examples"


def task_quality(frames: Frames, study: Study, task: str) -> TaskQuality:
    """Pair the runs of one task, test the registered margin and the gate."""
    spec = study.analysis
    metric = spec.primary_metric.get(task, "accuracy")  # type: ignore[call-overload]
    scores = paired_scores(frames, task, metric, spec.candidate_method, spec.reference_method)
    absent, unpredicted = missing_runs(frames, study, task), _unpredicted(frames, study, task)
    if scores is None or len(scores.seeds) < 2 or len(set(scores.groups)) < 2:
        return TaskQuality(task, scores, None, (), (), absent, unpredicted)
    test = relative_test(*scores.units(), margin=spec.quality_retained)
    gate, unknown = _gate(frames, study, scores)
    return TaskQuality(task, scores, test, gate, unknown, absent, unpredicted)


def missing_runs(frames: Frames, study: Study, task: str) -> tuple[str, ...]:
    """Registered final runs of both methods without a result, as step ids."""
    methods = (study.analysis.candidate_method, study.analysis.reference_method)
    done = {m: seeds_of(frames, task, m) for m in methods}
    return tuple(f"train/{task}/{m}/final/seed-{s}" for m in methods for s in study.seeds if s not in done[m])


def _unpredicted(frames: Frames, study: Study, task: str) -> tuple[str, ...]:
    """Finished final runs of both methods whose predictions are not stored."""
    methods = (study.analysis.candidate_method, study.analysis.reference_method)
    return tuple(step for m in methods for step in seeds_of(frames, task, m).values() if step not in frames.scored)


def _gate(frames: Frames, study: Study, scores: Paired) -> tuple[tuple[GateRow, ...], tuple[str, ...]]:
    """Both methods against majority and base, and the systems without predictions."""
    spec, rows, unknown = study.analysis, [], []
    for system in SYSTEMS:
        found = baseline_values(frames, scores.task, system, scores.example_ids, scores.metric)
        if found is None:
            unknown.append(system)
            continue
        values_1N, step = found
        for method, matrix_SN in ((spec.reference_method, scores.reference_SN), (spec.candidate_method, scores.candidate_SN)):
            test = crossed_t(cluster_totals(matrix_SN - values_1N, scores.groups))
            passed = test.estimate > 0 if test.p is None else test.p <= spec.alpha
            means = float(matrix_SN.mean()), float(values_1N.mean())
            rows.append(GateRow(scores.task, method, system, *means, test, passed, (*scores.steps, step)))
    return tuple(rows), tuple(unknown)


def quality_claims(qualities: list[TaskQuality], study: Study) -> tuple[list[Claim], Claim]:
    """Per-task claims (Holm) and the claim on all tasks (intersection-union)."""
    spec = study.analysis
    tasks = decide_family([_claim(q, study) for q in qualities], spec.alpha)
    return tasks, overall(tasks, "quality/all", _statement(study, "every task", "primary metric"), spec.alpha)


def _statement(study: Study, where: str, metric: str) -> str:
    spec = study.analysis
    return f"On {where}, {spec.candidate_method} keeps at least {100 * spec.quality_retained:g} % of {spec.reference_method}'s {metric}"


def _claim(quality: TaskQuality, study: Study) -> Claim:
    spec, scores, test = study.analysis, quality.scores, quality.test
    metric = scores.metric if scores else spec.primary_metric.get(quality.task, "accuracy")  # type: ignore[call-overload]
    ratio = test.ratio if test else _plain_ratio(scores)
    interval: Interval | None = test.interval if test else None
    contrast = test.contrast if test else None
    return Claim(
        id=f"quality/{quality.task}", dimension="quality", task=quality.task,
        statement=_statement(study, TASK_NAMES[quality.task], metric),
        verdict="inconclusive", estimate=ratio, estimate_name=f"{spec.candidate_method} / {spec.reference_method} {metric}",
        interval=interval, interval_level=0.90, margin=spec.quality_retained, p=contrast.p if contrast else None,
        p_opposite=contrast.p_opposite if contrast else None, p_adjusted=None, df=contrast.df if contrast else None, attainable_p=None,
        method=_method(scores), n_seeds=len(scores.seeds) if scores else 0, n_examples=len(scores.example_ids) if scores else None,
        n_launches=None, reasons=_reasons(quality, study), notes=_notes(quality),
        steps=sorted({*(scores.steps if scores else ()), *_gate_steps(quality)}),
    )  # fmt: skip


def _plain_ratio(scores: Paired | None) -> float | None:
    """The ratio of a single seed, which can be shown but not tested."""
    bottom = float(scores.reference_SN.mean()) if scores else 0.0
    return float(scores.candidate_SN.mean()) / bottom if scores and bottom > 0 else None


def _gate_steps(quality: TaskQuality) -> list[str]:
    return [step for row in quality.gate for step in row.steps]


def _method(scores: Paired | None) -> str:
    units = f"{len(set(scores.groups))} paragraph totals" if scores and scores.clustered else "examples"
    return f"crossed random-effects t over seeds x {units} on the score less the margin, Satterthwaite df, Fieller limits"


def _reasons(quality: TaskQuality, study: Study) -> list[Reason]:
    """Why the claim may not be decided, most telling first."""
    spec, scores = study.analysis, quality.scores
    found: list[tuple[ReasonKind, str]] = []
    if quality.gate_failed(spec.reference_method):
        text = f"gate failed: {gate_text(quality, spec.reference_method)}; the comparison means nothing here"
        found.append(("gate_failed", text))
    if quality.missing_seeds:
        found.append(("missing_steps", f"partial: missing {', '.join(quality.missing_seeds)}"))
    if scores is not None and len(scores.seeds) < 2:
        found.append(("too_few_seeds", "fewer than 2 paired seeds: nothing can be tested"))
    elif scores is not None and len(set(scores.groups)) < 2:
        found.append(("too_few_examples", "fewer than 2 groups of test examples: nothing can be tested"))
    if scores is None and not quality.missing_seeds:
        found.append(("metric_not_stored", quality.unpaired()))
    if quality.gate_missing:
        systems = " and ".join(quality.gate_missing)
        found.append(("gate_unknown", f"the gate cannot be checked: baseline/{quality.task} has no predictions of {systems}"))
    if quality.test is not None and quality.test.contrast.p is None:
        found.append(("no_variation", quality.test.contrast.note))
    return [Reason(kind=kind, text=text, task=quality.task) for kind, text in found]


def gate_text(quality: TaskQuality, reference: str) -> str:
    """Which baselines the reference method does not beat, with the scores."""
    failed = [row for row in quality.gate if row.method == reference and not row.passed]
    words = {"majority": "the majority baseline", "base": "the untuned base"}
    return " and ".join(
        f"{reference} ({row.method_mean:.3f}) does not beat {words[row.system]} ({row.system_mean:.3f}"
        + (")" if row.test.p is None else f"; one-sided p = {row.test.p:.2g})")
        for row in failed
    )


def _notes(quality: TaskQuality) -> list[str]:
    found = list(quality.scores.notes) if quality.scores else []
    if quality.test is not None and quality.test.contrast.note and quality.test.contrast.p is not None:
        found.append(quality.test.contrast.note)
    return found
