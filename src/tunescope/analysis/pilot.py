"""What a pilot study teaches about spreads, for the power of the next one."""

from dataclasses import dataclass

from scipy import stats

from tunescope.study.power import Components, Pilot
from tunescope.study.schema import AnalysisSpec, Study, TaskName

from .crossed import Array, mean_products
from .frames import Frames
from .power import components
from .quality import TaskQuality, gate_text, task_quality

_CAUTION = 0.8
"""Level of the upper limit of the spread over seeds: a few seeds know it poorly, and often estimate it as 0."""


@dataclass(frozen=True)
class Measured:
    """A pilot's tasks, and why the others are not used."""

    tasks: dict[TaskName, Pilot]
    refused: dict[TaskName, str]


def measured(frames: Frames, pilot: Study, study: Study) -> Measured:
    """Mean score and variance components of candidate - retained x reference in a pilot, by the analysis that `study` registers.

    A task on which the pilot's reference method does not beat its baselines is refused: methods that both give a constant answer differ
    nowhere, and would promise a power of 1.
    """
    spec, found = study.analysis, Measured({}, {})
    view = pilot.model_copy(update={"analysis": spec})
    for task in (t for t in study.tasks if t in pilot.tasks):
        quality = task_quality(frames, view, task)
        why = _unusable(quality, spec)
        if why or quality.scores is None:
            found.refused[task] = why
            continue
        candidate, reference = quality.scores.units()
        contrast = candidate - spec.quality_retained * reference
        share = candidate.shape[1] / len(quality.scores.example_ids)
        found.tasks[task] = Pilot(float(reference.mean()), components(contrast), cautious(contrast), share, len(quality.scores.seeds))
    return found


def _unusable(quality: TaskQuality, spec: AnalysisSpec) -> str:
    reference = spec.reference_method
    if quality.test is None:
        metric = spec.primary_metric.get(quality.task, "accuracy")  # type: ignore[call-overload]
        return f"it has no two seeds of both {spec.candidate_method} and {reference} with predictions scored by {metric}"
    if quality.gate_missing:
        return f"whether anything was learned is not known: its baseline step has no predictions of {' and '.join(quality.gate_missing)}"
    return gate_text(quality, reference) if quality.gate_failed(reference) else ""


def cautious(contrast_SN: Array) -> Components:
    """Components with the seeds' at the upper 80 % limit of its mean square: MS_s (S - 1) / chi-squared quantile."""
    n_seeds, n_examples = contrast_SN.shape
    squares, point = mean_products(contrast_SN, contrast_SN), components(contrast_SN)
    upper = squares.seeds * (n_seeds - 1) / float(stats.chi2.ppf(1 - _CAUTION, n_seeds - 1))
    return Components(max(point.seeds, max(0.0, (upper - squares.residual) / n_examples) ** 0.5), point.examples, point.residual)
