"""The registered plan: what was fixed before the first confirmatory run, and what has changed since."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .identity import differences, fingerprint
from .schema import Study

FILE = "registration.json"
"""Kept beside the steps of a study from the start of its first final run."""
_CONCERNS = {
    "alpha": ("quality", "drift", "overhead"), "seeds": ("quality", "drift"), "tasks": ("quality", "drift"), "quality": ("quality",),
    "drift": ("drift",), "overhead": ("overhead",), "methods": ("quality", "drift", "overhead"), "gate": ("quality",),
}  # fmt: skip
"""Part of the plan -> the dimensions whose claims it decides; every one of them decides the hypothesis."""


def registered_plan(study: Study) -> dict[str, Any]:
    """Margins, metrics, layers, seeds and families, as JSON types."""
    spec, drift = study.analysis, study.drift
    return {
        "alpha": spec.alpha,
        "seeds": sorted(study.seeds),
        "tasks": dict.fromkeys(sorted(study.tasks), "Holm within quality and within drift; the largest p over all"),
        "methods": {"candidate": spec.candidate_method, "reference": spec.reference_method},
        "gate": "the reference beats the majority class and the untuned base, one-sided at alpha",
        "quality": {"retained": spec.quality_retained, "metric": {t: spec.primary_metric.get(t, "accuracy") for t in sorted(study.tasks)}},
        "drift": {
            "reduction": spec.drift_reduction, "measure": "debiased CKA", "layers": "mean over all decoder layers",
            "checkpoint": "best selection loss", "pooling": drift.primary_pooling, "probe_examples": drift.probe_examples,
            "blocks": drift.blocks,
        },
        "overhead": {
            "limit": spec.overhead_limit, "arm": spec.overhead_arm, "baseline": spec.overhead_baseline_arm,
            "batch_sizes": sorted(spec.overhead_batch_sizes), "prompt_length": spec.overhead_prompt_length, "sampling": "greedy",
            "min_launches": spec.min_launches,
        },
    }  # fmt: skip


def cells_lacking(study: Study) -> list[str]:
    """What of the registered overhead cells the serving grid has not, e.g. `batch size 8`: without any one of them there is no figure."""
    spec, grid = study.analysis, study.serving
    if grid is None:
        return []
    found = [f"arm {a}" for a in (spec.overhead_arm, spec.overhead_baseline_arm) if a not in grid.arms]
    found += [f"batch size {b}" for b in spec.overhead_batch_sizes if b not in grid.batch_sizes]
    found += [f"prompt length {spec.overhead_prompt_length}"] if spec.overhead_prompt_length not in grid.prompt_lengths else []
    return [*found, *(["greedy sampling"] if "greedy" not in grid.sampling else [])]


def overhead_undecided(study: Study) -> list[str]:
    """Why the overhead claim cannot be decided however well the runs go, and what would change that; [] when it can."""
    grid, least = study.serving, max(study.analysis.min_launches, 2)
    if grid is None:
        return ["the study has no serving part"]
    found = []
    if lacking := cells_lacking(study):
        what = f"the serving grid lacks the registered {', '.join(lacking)}"
        found.append(f"{what}; add what is missing to `serving`, or name what it has in `analysis.overhead_…`")
    if grid.launches < least:
        found.append(f"serving.launches is {grid.launches}, and analysis.min_launches asks for {least} an arm")
    return found


def registration(study: Study, now: str, by: str) -> dict[str, Any]:
    """The content of registration.json.

    Args:
        now: time stamp (ISO 8601).
        by: the step whose start fixed the plan.
    """
    plan = registered_plan(study)
    return {"format": 1, "sha256": fingerprint(plan), "registered": now, "first_run": by, "plan": plan}


@dataclass(frozen=True)
class PlanCheck:
    """How a study stands to its registered plan."""

    sha256: str
    """Of the plan as the study file has it now."""
    registered: str | None
    """When the plan was fixed; None when no final run has started, or no registration was kept."""
    changes: dict[str, tuple[str, ...]]
    """Part of the plan -> what changed, as `path old → new`."""
    added_seeds: tuple[int, ...] = ()
    """Seeds that are not in the registered plan: never used for a confirmatory claim."""
    damaged: bool = False
    """A registration is there and cannot be trusted: unreadable, or not what its own hash says."""

    def concerning(self, dimension: str) -> list[str]:
        """Changes that bear on claims of a dimension. Added seeds are left out of the claims, so they are no change to them."""
        found: list[str] = []
        for part, lines in self.changes.items():
            if dimension == "hypothesis" or dimension in _CONCERNS[part]:
                found += lines
        return found

    def lines(self) -> Iterator[str]:
        """The state in words, one line each."""
        short = self.sha256[:16]
        if self.damaged:
            yield f"registered plan {short}: the kept registration is unreadable or was edited; no claim counts as confirmatory"
        elif self.registered is None:
            yield f"registered plan {short}: not fixed yet; it is when the first final run starts"
        elif not self.changes and not self.added_seeds:
            yield f"registered plan {short}: fixed {self.registered}, unchanged since"
        else:
            yield f"registered plan: fixed {self.registered} and changed since; what changed makes its claims not confirmatory"
            yield from (f"  changed: {line}" for lines in self.changes.values() for line in lines)
            if self.added_seeds:
                seeds = ", ".join(map(str, self.added_seeds))
                yield f"  seeds added later: {seeds}; refused for confirmatory claims, shown in exploratory rows only"


def check_plan(study: Study, kept: Mapping[str, Any] | None) -> PlanCheck:
    """Compare a study with the registration kept in its store (None: there is none)."""
    now = registered_plan(study)
    mark = fingerprint(now)
    if kept is None:
        return PlanCheck(mark, None, {})
    before = kept.get("plan")
    if not isinstance(before, Mapping) or not isinstance(kept.get("registered"), str) or fingerprint(before) != kept.get("sha256"):
        return PlanCheck(mark, None, {}, damaged=True)
    old_seeds, new_seeds = set(before.get("seeds", [])), set(study.seeds)
    parts = {part: tuple(differences({part: before.get(part)}, {part: now.get(part)})) for part in now if part != "seeds"}
    lost = tuple(sorted(old_seeds - new_seeds))
    if lost:
        parts["seeds"] = (f"seeds {', '.join(map(str, lost))} were registered and are left out",)
    return PlanCheck(mark, kept["registered"], {k: v for k, v in parts.items() if v}, tuple(s for s in study.seeds if s not in old_seeds))
