"""What may count as confirmatory: claims rest on registered seeds only, and say when the registered plan has changed."""

from tunescope.study.registration import PlanCheck
from tunescope.study.schema import Study

from .findings import Claim
from .frames import Frames

NOT_CONFIRMATORY = "not confirmatory: "
FIRST_LOOK = "a first look"
CONFIRMATORY_SEEDS = 5
"""Registered seeds that a confirmatory claim about quality or drift takes; fewer are a first look."""


def registered_part(frames: Frames, study: Study, check: PlanCheck) -> tuple[Frames, Study]:
    """Frames and study without the final runs of seeds that were added after the plan was fixed."""
    kept = tuple(s for s in study.seeds if s not in check.added_seeds)
    if not check.added_seeds or not kept:
        return frames, study
    runs = frames.steps[(frames.steps.kind == "train") & (frames.steps.role == "final") & frames.steps.seed.isin(check.added_seeds)]
    return frames.without(runs.step_id), study.model_copy(update={"seeds": kept})


def labelled(claims: list[Claim], frames: Frames, study: Study, check: PlanCheck) -> list[Claim]:
    """The claims, those marked that are no more than a first look, or that the registered plan no longer covers.

    Before any final run there is nothing to mark.
    """
    if not frames.final_runs:
        return claims
    return [_labelled(_looked_at(claim, len(study.seeds)), _why_not(claim.dimension, check)) for claim in claims]


def _looked_at(claim: Claim, seeds: int) -> Claim:
    """Few seeds: the verdict stands, but it is a first look. Overhead is measured over launches, not seeds."""
    if seeds >= CONFIRMATORY_SEEDS or claim.dimension == "overhead":
        return claim
    note = f"{FIRST_LOOK}: {seeds} seed{'s' if seeds > 1 else ''}, where a confirmatory claim takes {CONFIRMATORY_SEEDS}"
    return claim.model_copy(update={"confirmatory": False, "notes": [*claim.notes, note]})


def standing(claim: Claim) -> str:
    """What a reader of a claim has to know about its plan: "" for a confirmatory one, `a first look …` or `not confirmatory …`."""
    if claim.confirmatory:
        return ""
    if claim.notes[0].startswith(NOT_CONFIRMATORY):
        return "not confirmatory: see the note of the claim"
    return f"{FIRST_LOOK}, with fewer than {CONFIRMATORY_SEEDS} seeds"


def _why_not(dimension: str, check: PlanCheck) -> str:
    if check.damaged:
        return "the registration kept with the runs is unreadable or was edited"
    if check.registered is None:
        return "no registration was kept, so the plan cannot be shown to be older than the runs"
    changes = check.concerning(dimension)
    return f"registered plan changed ({'; '.join(changes)})" if changes else ""


def _labelled(claim: Claim, why: str) -> Claim:
    if not why:
        return claim
    return claim.model_copy(update={"confirmatory": False, "notes": [NOT_CONFIRMATORY + why, *claim.notes]})
