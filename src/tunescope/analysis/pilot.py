"""What a pilot study teaches about spreads, for the power of the next one."""

from tunescope.study.power import Pilot
from tunescope.study.schema import Study, TaskName

from .frames import Frames
from .power import components
from .scores import paired_scores


def measured(frames: Frames, study: Study, retained: float) -> dict[TaskName, Pilot]:
    """Mean score and variance components of candidate - retained x reference, for every task with two paired seeds."""
    spec, found = study.analysis, dict[TaskName, Pilot]()
    for task in study.tasks:
        s = paired_scores(frames, task, spec.primary_metric.get(task, "accuracy"), spec.candidate_method, spec.reference_method)
        if s is None or len(s.seeds) < 2 or len(set(s.groups)) < 2:
            continue
        candidate, reference = s.units()
        share = candidate.shape[1] / len(s.example_ids)
        found[task] = Pilot(float(reference.mean()), components(candidate - retained * reference), share)
    return found
