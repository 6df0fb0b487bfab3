"""What cannot be decided, and what it would take: seeds, examples, launches. From spreads, never from the observed effect.

So each row names the truth that its numbers assume, and says when the estimate speaks against that truth.
"""

import math

import numpy as np

from tunescope.serve.overhead import log_ratios
from tunescope.study.schema import TASK_NAMES, Study

from .findings import Claim, ReasonKind
from .overhead import launch_rows, registered_cells
from .power import components, detectable_margin, detectable_shift, examples_needed, seeds_needed, units_needed
from .scores import DriftPair, Paired
from .tables import Material, Table, table
from .verdicts import briefly, meaningless, not_entering, said_reasons

MOST_SEEDS = 50
FIRST: dict[ReasonKind, str] = {
    "missing_steps": "the missing runs first", "too_few_seeds": "two paired seeds at the least",
    "gate_unknown": "first predictions that the gate can be checked with", "too_few_examples": "test examples of two groups at the least",
    "metric_not_stored": "first predictions with a value of the registered metric for each example",
    "no_drift_scalar": "first the drift scalar of every registered run", "no_reference_drift": "a reference that drifts at all",
    "no_variation": "values that are not all equal", "no_serving": "a serving part in the study",
    "twins_differ": "first the serve step again, alone on the machine, until arms of equal shape tie",
}  # fmt: skip
"""What a reason asks for besides more of the same; launches and cells are told with their number."""
NUMBERLESS: tuple[ReasonKind, ...] = ("metric_not_stored", "no_reference_drift", "no_variation")
"""Reasons under which no spread is known that a number could come from."""


def undecided_table(m: Material) -> Table:
    """One row for each claim without a verdict."""
    rows = [(c.id, _why(m, c), _assumed(m.study, c), _takes(m, c) + _against(c)) for c in m.claims if c.verdict == "inconclusive"]
    note = (
        "Needed numbers give an 80 % chance of supporting the claim if the assumed truth holds, which nobody knows: the nearer the truth "
        "lies to the margin, the more it takes, and beyond the margin no number supports the claim. They come from the standard deviations "
        "of this study, which few seeds know poorly, and not from its estimates. Those of a task are for its test alone, as the claim on "
        "all tasks asks for it; the task's own verdict is corrected for the number of tasks (Holm) and may take more."
    )
    steps = (s for c in m.claims if c.verdict == "inconclusive" for s in c.steps)
    return table("Not decided, and what it would take", ("claim", "why", "if in truth", "what it would take"), rows, note, steps)


def _why(m: Material, claim: Claim) -> str:
    if claim.dimension == "hypothesis":
        return "; ".join([*said_reasons(claim), *not_entering(m.claims)]) or "neither one-sided test rejects"
    if claim.p is not None and claim.id.endswith("/all") and claim.reasons:
        return briefly(claim)
    if claim.reasons:
        return "; ".join(said_reasons(claim))
    low, high = claim.interval or (None, None)
    if low is None or high is None or claim.margin is None:
        return "neither one-sided test rejects"
    if low <= claim.margin <= high:
        return f"the interval holds the margin ({100 * claim.margin:g} %)"
    alpha, smallest = m.study.analysis.alpha, min(p for p in (claim.p, claim.p_opposite, 1.0) if p is not None)
    stricter = alpha < (1 - claim.interval_level) / 2 - 1e-9 and smallest > alpha
    why = (
        f"alpha is {alpha:g}, stricter than its {claim.interval_level:.0%}" if stricter else "not after correction for the number of tasks"
    )
    return f"the interval excludes the margin ({100 * claim.margin:g} %), but {why}"


def _assumed(study: Study, claim: Claim) -> str | None:
    """The truth that the needed numbers of a claim assume; None where there are none."""
    if claim.dimension == "overhead":
        return "adapters cost nothing"
    if claim.task is None or meaningless(claim):
        return None
    names = f"{study.analysis.candidate_method} and {study.analysis.reference_method}"
    return f"{names} score the same" if claim.dimension == "quality" else f"{names} differ by the reduction named"


def _against(claim: Claim) -> str:
    """What to expect instead when the estimate lies where the claim is false."""
    if claim.estimate is None or claim.margin is None or claim.id.endswith("/all") or meaningless(claim):
        return ""
    wrong = claim.estimate > claim.margin if claim.dimension == "overhead" else claim.estimate < claim.margin
    found = f"the estimate ({100 * claim.estimate:.1f} %) lies on the other side of the margin ({100 * claim.margin:g} %)"
    return f"; but {found}: if it is the truth, more runs will contradict the claim" if wrong else ""


def _takes(m: Material, claim: Claim) -> str:
    if claim.dimension == "hypothesis":
        return "a verdict on quality over all tasks, and on drift over all tasks or on overhead"
    if claim.id.endswith("/all"):
        open_tasks = [TASK_NAMES[c.task] for c in m.claims if c.dimension == claim.dimension and c.task and c.verdict != "supported"]
        still = f"every task decided; still open or against it: {', '.join(open_tasks)}"
        return still if open_tasks else "more seeds: the tasks hold one by one"
    if meaningless(claim):
        reference = m.study.analysis.reference_method
        return f"first a {reference} that beats its baselines (more data, other rates, a larger model): no number of runs helps before"
    first = list(dict.fromkeys(FIRST[reason.kind] for reason in claim.reasons if reason.kind in FIRST))
    number = None if claim.has(*NUMBERLESS) else _number(m, claim)
    if number is None:
        return "; ".join(first)
    return f"{'; '.join(first)}; in all, {number}" if first else number


def _number(m: Material, claim: Claim) -> str | None:
    """How many seeds, examples or launches; None where nothing was paired that tells a spread."""
    if claim.dimension == "quality":
        return next((_quality(m, s) for s in m.testable if s.task == claim.task), None)
    if claim.dimension == "drift":
        return next((_drift(m, d) for d in m.contrasts if d.task == claim.task and len(d.seeds) > 1), None)
    return _overhead(m)


def _quality(m: Material, s: Paired) -> str:
    spec = m.study.analysis
    candidate, reference = s.units()
    sd, mean = components(candidate - spec.quality_retained * reference), float(reference.mean())
    difference, n, seeds = (1 - spec.quality_retained) * mean, candidate.shape[1], len(s.seeds)
    more_seeds = seeds_needed(sd, difference, n, alpha=spec.alpha, most=MOST_SEEDS)
    per_unit = len(s.example_ids) / n
    more = examples_needed(sd, difference, seeds, alpha=spec.alpha)
    tested = f"these {len(s.example_ids)} examples"
    by_seeds = f"{more_seeds} seeds on {tested}" if more_seeds else f"not even {MOST_SEEDS} seeds on {tested}"
    by_examples = f"{math.ceil(more * per_unit):,} examples with {seeds} seeds" if more else f"no number of examples with {seeds} seeds"
    margin = detectable_margin(sd, mean, seeds, n, alpha=spec.alpha)
    now = f"as it is, a margin of {100 * margin:.1f} % could be confirmed" if margin else "as it is, no margin could be confirmed"
    return f"{by_seeds}, or {by_examples}; {now}"


def _drift(m: Material, d: DriftPair) -> str:
    spec = m.study.analysis
    reference = float(d.reference_S.mean())
    sd = float(np.std(d.candidate_S - (1 - spec.drift_reduction) * d.reference_S, ddof=1))
    shifts = {n: detectable_shift(sd, n, alpha=spec.alpha) for n in sorted({len(d.seeds), 5, 10}) if n >= len(d.seeds)}
    needed = {n: spec.drift_reduction + s / reference for n, s in shifts.items() if s is not None}
    if not needed:
        return f"an alpha above {spec.alpha:g}: no reduction is found at it"
    shown = ", ".join(f"{100 * share:.0f} % with {n} seeds" for n, share in needed.items() if share < 0.995)
    never = ", ".join(str(n) for n, share in needed.items() if share >= 0.995)
    lacking = f"runs that vary less, as no reduction up to 100 % could be shown with {never} seeds like these" if never else ""
    return "; or ".join(filter(None, (f"a true reduction of {shown}" if shown else "", lacking)))


def _overhead(m: Material) -> str:
    spec, least = m.study.analysis, max(m.study.analysis.min_launches, 2)
    cells = registered_cells(m.study)
    logs = list(log_ratios(launch_rows(m.frames), spec.overhead_arm, spec.overhead_baseline_arm, cells).values())
    if len(logs) < 2:
        return f"at least {least} launches of both registered arms with all registered cells"
    needed = units_needed(float(np.std(logs, ddof=1)), math.log1p(spec.overhead_limit), alpha=spec.alpha)
    return f"{max(needed, least)} launches an arm" if needed else "launches that vary less: no number up to 1,000 decides"
