"""What may count as confirmatory: claims rest on registered seeds only, and say when the registered plan has changed."""

from tunescope.study.registration import PlanCheck
from tunescope.study.schema import Study

from .findings import Claim, Reservation
from .frames import Frames

NOT_CONFIRMATORY = "not confirmatory"
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
    return [_reserved(claim, _reservations(claim, len(study.seeds), check)) for claim in claims]


def _reservations(claim: Claim, seeds: int, check: PlanCheck) -> list[Reservation]:
    """Few seeds: the verdict stands, but it is a first look. Overhead is measured over launches, not seeds."""
    why = _plan_broken(claim.dimension, check)
    found = [Reservation(kind="plan", text=why)] if why else []
    if seeds < CONFIRMATORY_SEEDS and claim.dimension != "overhead":
        text = f"{seeds} seed{'s' if seeds > 1 else ''}, where a confirmatory claim takes {CONFIRMATORY_SEEDS}"
        found.append(Reservation(kind="few_seeds", text=text))
    return found


def _plan_broken(dimension: str, check: PlanCheck) -> str:
    if check.damaged:
        return "the registration kept with the runs is unreadable or was edited"
    if check.registered is None:
        return "no registration was kept, so the plan cannot be shown to be older than the runs"
    changes = check.concerning(dimension)
    return f"registered plan changed ({'; '.join(changes)})" if changes else ""


def _reserved(claim: Claim, found: list[Reservation]) -> Claim:
    return claim.model_copy(update={"confirmatory": not found, "reservations": found})


def broken_plan(claim: Claim) -> str | None:
    """Why the registered plan does not cover a claim; None when it does."""
    return next((r.text for r in claim.reservations if r.kind == "plan"), None)


def standing(claim: Claim) -> str:
    """What a reader of a claim has to know about its plan: "" for a confirmatory one, `a first look …` or `not confirmatory …`."""
    if claim.confirmatory:
        return ""
    if broken_plan(claim):
        return f"{NOT_CONFIRMATORY}: see the note of the claim"
    return f"{FIRST_LOOK}, with fewer than {CONFIRMATORY_SEEDS} seeds"
