"""From p values to verdicts: three-way decisions, families of tasks, and the composite hypothesis."""

from dataclasses import dataclass, replace

from tunescope.study.schema import AnalysisSpec

from .families import any_of, composite, composite_opposite, holm, intersection_union
from .findings import Claim, Verdict

NAMES = {"mrpc": "MRPC", "sst2": "SST-2", "rte": "RTE", "squad_v2": "SQuAD v2"}
"""Task names as their publishers write them."""


@dataclass(frozen=True)
class Decision:
    """A claim, and whether something forbids deciding it (a failed gate, missing runs, too few launches); the claim's notes say what."""

    claim: Claim
    blocked: bool
    remarks: tuple[str, ...] = ()
    """The claim's notes that are no reason to leave it undecided."""

    @property
    def p(self) -> float | None:
        """The p that may enter a verdict or a family; None when blocked."""
        return None if self.blocked else self.claim.p

    @property
    def p_opposite(self) -> float | None:
        return None if self.blocked else self.claim.p_opposite


def three_way(p: float | None, p_opposite: float | None, alpha: float) -> Verdict:
    """Supported when the test against the margin rejects, contradicted when the opposite one does, else inconclusive."""
    if p is not None and p <= alpha:
        return "supported"
    return "contradicted" if p_opposite is not None and p_opposite <= alpha else "inconclusive"


def decide(decision: Decision, alpha: float) -> Decision:
    """The verdict of a claim that stands alone."""
    verdict = three_way(decision.p, decision.p_opposite, alpha)
    return replace(decision, claim=decision.claim.model_copy(update={"verdict": verdict}))


def decide_family(decisions: list[Decision], alpha: float) -> list[Decision]:
    """Per-task verdicts of one family: Holm over all its tasks, a blocked or missing p counting as 1."""
    adjusted, opposite = holm([d.p for d in decisions]), holm([d.p_opposite for d in decisions])
    return [
        replace(d, claim=d.claim.model_copy(update={"p_adjusted": p, "verdict": three_way(p, q, alpha)}))
        for d, p, q in zip(decisions, adjusted, opposite, strict=True)
    ]


def meaningless(claim: Claim) -> bool:
    """Whether the claim compares methods on a task that was not learned."""
    return any(note.startswith(("gate failed", "nothing was learned")) for note in claim.notes)


def weakest(claims: list[Claim]) -> Claim | None:
    """The measured claim with the largest p: the one an intersection-union verdict rests on; of a task that was learned, if any was."""
    measured = [c for c in claims if c.estimate is not None and c.p is not None]
    measured = [c for c in measured if not meaningless(c)] or measured
    return max(measured, key=lambda c: (c.p or 0.0, -(c.estimate or 0.0)), default=None)


def overall(decisions: list[Decision], claim_id: str, statement: str, alpha: float) -> Decision:
    """One claim on all tasks at once: intersection-union for it, Bonferroni over tasks against it, the weakest task as its estimate."""
    claims = [d.claim for d in decisions]
    blocked = [d for d in decisions if d.blocked]
    worst = weakest(claims)
    p = intersection_union([c.p for c in claims]) if worst else None
    opposite = any_of([c.p_opposite for c in claims]) if worst else None
    notes = [f"the estimate is the weakest task's: {NAMES[str(worst.task)]}"] if worst else []
    reasons = [(d.claim.task, "; ".join(n for n in d.claim.notes if n not in d.remarks)) for d in blocked]
    notes += [f"{_BECAUSE}{NAMES[str(task)]} cannot be decided: {why}" for task, why in reasons]
    notes += [f"{NAMES[str(d.claim.task)]}: {remark}" for d in decisions for remark in d.remarks]
    first = worst or claims[0]
    found = first.model_copy(
        update={
            "id": claim_id, "task": None, "statement": statement, "p": p, "p_opposite": opposite, "p_adjusted": None, "notes": notes,
            "method": f"intersection-union over tasks (largest p, no correction); against it {len(claims)} x the smallest opposite p",
            "steps": sorted({s for c in claims for s in c.steps}), "verdict": "inconclusive",
            "n_seeds": min((c.n_seeds for c in claims if c.n_seeds is not None), default=None),
            "n_examples": sum(c.n_examples or 0 for c in claims) or None, "df": worst.df if worst else None,
        }
    )  # fmt: skip
    return decide(Decision(found, bool(blocked)), alpha)


def hypothesis(quality: Decision, drift: Decision, overhead: Decision, gate_failed: bool, spec: AnalysisSpec) -> Decision:
    """Quality AND (drift OR overhead), from the overall claims; a failed gate makes it inconclusive."""
    parts = (quality, drift, overhead)
    p = composite(*(1.0 if d.p is None else d.p for d in parts))
    opposite = composite_opposite(*(1.0 if d.p_opposite is None else d.p_opposite for d in parts))
    notes = [f"{d.claim.id} does not enter: {reason(d.claim)}" for d in parts if d.blocked or d.claim.p is None]
    if gate_failed:
        notes.insert(
            0, "inconclusive: on at least one task full fine-tuning did not beat its baselines, so quality cannot be compared there"
        )
    claim = Claim(
        id="hypothesis", dimension="hypothesis", task=None, statement=_hypothesis_text(spec), verdict="inconclusive", estimate=None,
        estimate_name="", interval=None, interval_level=0.90, margin=None, p=p, p_opposite=opposite, p_adjusted=None, df=None,
        attainable_p=None, 
        method="max(p quality, min(1, 2 min(p drift, p overhead))); opposite min(1, 2 min(p' quality, max(p' drift, p' overhead)))",
        n_seeds=quality.claim.n_seeds, n_examples=quality.claim.n_examples, n_launches=overhead.claim.n_launches, notes=notes,
        steps=sorted({s for d in parts for s in d.claim.steps}),
    )  # fmt: skip
    return decide(Decision(claim, gate_failed), spec.alpha)


_BECAUSE = "inconclusive because "


def reason(claim: Claim) -> str:
    """Why a claim cannot be decided: the tasks that cannot be decided, or the claim's own first note."""
    tasks = [note.removeprefix(_BECAUSE).split(":")[0] for note in claim.notes if note.startswith(_BECAUSE)]
    return ", ".join(tasks) or (claim.notes[0] if claim.notes else "nothing was measured")


def _hypothesis_text(spec: AnalysisSpec) -> str:
    return (
        f"{spec.candidate_method} keeps at least {100 * spec.quality_retained:g} % of {spec.reference_method}'s quality on every task, "
        f"AND (drifts at least {100 * spec.drift_reduction:g} % less on every task "
        f"OR costs at most {100 * spec.overhead_limit:g} % more time per token at inference)"
    )
