"""From p values to verdicts: three-way decisions, families of tasks, and the composite hypothesis."""

from collections.abc import Sequence

from tunescope.study.schema import TASK_NAMES, AnalysisSpec

from .confirmatory import FIRST_LOOK, NOT_CONFIRMATORY
from .families import any_of, composite, composite_opposite, holm, intersection_union
from .findings import Claim, Reason, Verdict


def entering(claim: Claim) -> tuple[float | None, float | None]:
    """p and opposite p as they may enter a verdict or a family: None where a reason forbids deciding the claim."""
    return (None, None) if claim.reasons else (claim.p, claim.p_opposite)


def three_way(p: float | None, p_opposite: float | None, alpha: float) -> Verdict:
    """Supported when the test against the margin rejects, contradicted when the opposite one does, else inconclusive."""
    if p is not None and p <= alpha:
        return "supported"
    return "contradicted" if p_opposite is not None and p_opposite <= alpha else "inconclusive"


def decide(claim: Claim, alpha: float) -> Claim:
    """The claim with its verdict, when it stands alone."""
    return claim.model_copy(update={"verdict": three_way(*entering(claim), alpha)})


def decide_family(claims: list[Claim], alpha: float) -> list[Claim]:
    """Per-task verdicts of one family: Holm over all its tasks, an undecidable or missing p counting as 1."""
    adjusted, opposite = (holm(ps) for ps in zip(*map(entering, claims), strict=True))
    return [
        claim.model_copy(update={"p_adjusted": p, "verdict": three_way(p, q, alpha)})
        for claim, p, q in zip(claims, adjusted, opposite, strict=True)
    ]


def meaningless(claim: Claim) -> bool:
    """Whether the claim compares methods on a task that was not learned."""
    return claim.has("gate_failed", "nothing_learned")


def comparable(claim: Claim, claims: Sequence[Claim]) -> bool:
    """Whether a claim's numbers compare anything: those of a task that was not learned do not, whoever shows them."""
    if claim.dimension == "hypothesis":
        return True
    tasks = [c for c in claims if c.dimension == claim.dimension and c.task is not None]
    shown = claim.task or claim.weakest_task or (tasks[0].task if tasks else None)
    return not any(meaningless(c) for c in tasks if c.task == shown)


def compared(claims: list[Claim]) -> list[Claim]:
    """The claims on tasks that were learned; all of them where none was."""
    return [c for c in claims if not meaningless(c)] or claims


def weakest(claims: list[Claim]) -> Claim | None:
    """The measured claim with the largest p: the one an intersection-union verdict rests on; of a task that was learned, if any was."""
    measured = [c for c in compared(claims) if c.estimate is not None and c.p is not None]
    return max(measured, key=lambda c: (c.p or 0.0, -(c.estimate or 0.0)), default=None)


def overall(claims: list[Claim], claim_id: str, statement: str, alpha: float) -> Claim:
    """One claim on all tasks at once: intersection-union for it, Bonferroni over tasks against it, the weakest task as its estimate.

    It has the reasons of every task: one undecidable task leaves it undecided. p, estimate and counts are then of the tasks that compare
    something: a p of a task on which nothing was learned would stand beside another task's estimate.
    """
    worst, tasks = weakest(claims), compared(claims)
    p = intersection_union([c.p for c in tasks]) if worst else None
    opposite = any_of([c.p_opposite for c in tasks]) if worst else None
    first, counted = worst or claims[0], f"{len(tasks)} task{'s' * (len(tasks) != 1)}"
    found = first.model_copy(
        update={
            "id": claim_id, "task": None, "statement": statement, "p": p, "p_opposite": opposite, "p_adjusted": None,
            "weakest_task": worst.task if worst else None, "reasons": [r for c in claims for r in c.reasons],
            "notes": [f"{TASK_NAMES[str(c.task)]}: {note}" for c in claims for note in c.notes],
            "method": f"intersection-union over {counted} (largest p, no correction); against it {len(tasks)} x the smallest opposite p",
            "steps": sorted({s for c in claims for s in c.steps}), "verdict": "inconclusive", "n_seeds": first.n_seeds,
            "n_examples": first.n_examples, "df": worst.df if worst else None,
        }
    )  # fmt: skip
    return decide(found, alpha)


def hypothesis(quality: Claim, drift: Claim, overhead: Claim, *, spec: AnalysisSpec) -> Claim:
    """Quality AND (drift OR overhead), from the overall claims; a failed gate makes it inconclusive.

    A part that cannot be decided counts as p = 1 on both sides and is named in the notes: the others may still decide.
    """
    parts = (quality, drift, overhead)
    ps, opposites = zip(*((1.0 if p is None else p, 1.0 if q is None else q) for p, q in map(entering, parts)), strict=True)
    gate = "inconclusive: on at least one task full fine-tuning did not beat its baselines, so quality cannot be compared there"
    claim = Claim(
        id="hypothesis", dimension="hypothesis", task=None, statement=_hypothesis_text(spec), verdict="inconclusive", estimate=None,
        estimate_name="", interval=None, interval_level=0.90, margin=None, p=composite(*ps), p_opposite=composite_opposite(*opposites),
        p_adjusted=None, df=None, attainable_p=None,
        method="max(p quality, min(1, 2 min(p drift, p overhead))); opposite min(1, 2 min(p' quality, max(p' drift, p' overhead)))",
        n_seeds=quality.n_seeds, n_examples=quality.n_examples, n_launches=overhead.n_launches,
        reasons=[Reason(kind="gate_failed", text=gate)] if quality.has("gate_failed") else [], notes=not_entering(parts),
        steps=sorted({s for c in parts for s in c.steps}),
    )  # fmt: skip
    return decide(claim, spec.alpha)


def not_entering(claims: Sequence[Claim]) -> list[str]:
    """The parts of the hypothesis that do not enter it, each with why, in a sentence."""
    parts = [c for c in claims if c.task is None and c.dimension != "hypothesis"]
    return [f"{c.id} does not enter: {briefly(c)}" for c in parts if entering(c)[0] is None]


def briefly(claim: Claim) -> str:
    """Why a claim cannot be decided: the tasks that cannot be decided, or its first reason."""
    if claim.task is None and (tasks := _by_task(claim)):
        return ", ".join(f"{TASK_NAMES[task]} cannot be decided" for task in tasks)
    return claim.reasons[0].text if claim.reasons else "nothing was measured"


def said_reasons(claim: Claim) -> list[str]:
    """Why a claim cannot be decided, in sentences: one a reason, or one a task where the claim is on all tasks."""
    if claim.task is None and (tasks := _by_task(claim)):
        return [f"inconclusive because {TASK_NAMES[task]} cannot be decided: {'; '.join(why)}" for task, why in tasks.items()]
    return [reason.text for reason in claim.reasons]


def said(claim: Claim) -> list[str]:
    """All that is said of a claim, as it is read: the plan that does not cover it, whose estimate it is, reasons, notes, few seeds."""
    plan, seeds = ([r.text for r in claim.reservations if r.kind == kind] for kind in ("plan", "few_seeds"))
    shown = [f"the estimate is the weakest task's: {TASK_NAMES[claim.weakest_task]}"] if claim.weakest_task else []
    first, last = [f"{NOT_CONFIRMATORY}: {text}" for text in plan], [f"{FIRST_LOOK}: {text}" for text in seeds]
    return [*first, *shown, *said_reasons(claim), *claim.notes, *last]


def _by_task(claim: Claim) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for reason in claim.reasons:
        if reason.task is not None:
            found.setdefault(reason.task, []).append(reason.text)
    return found


def _hypothesis_text(spec: AnalysisSpec) -> str:
    return (
        f"{spec.candidate_method} keeps at least {100 * spec.quality_retained:g} % of {spec.reference_method}'s quality on every task, "
        f"AND (drifts at least {100 * spec.drift_reduction:g} % less on every task "
        f"OR costs at most {100 * spec.overhead_limit:g} % more time per token at inference)"
    )
