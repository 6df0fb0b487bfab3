"""What cannot be decided, and what it would take: seeds, examples, launches. From spreads, never from the observed effect."""

import math

import numpy as np

from tunescope.serve.overhead import log_ratios

from .findings import Claim
from .overhead import launch_rows, registered_cells
from .power import components, detectable_margin, detectable_shift, examples_needed, seeds_needed, units_needed
from .scores import DriftPair, Paired
from .tables import Material, Table, table
from .verdicts import meaningless

MOST_SEEDS = 50


def undecided_table(m: Material) -> Table:
    """One row for each claim without a verdict."""
    rows = [(c.id, _why(c), _takes(m, c)) for c in m.claims if c.verdict == "inconclusive"]
    note = (
        "Needed numbers give an 80 % chance of deciding if, in truth, the methods are equally good and adapters cost nothing; they come "
        "from the standard deviations of this study, which few seeds know poorly. For drift: the smallest true reduction that would show."
    )
    steps = (s for c in m.claims if c.verdict == "inconclusive" for s in c.steps)
    return table("Not decided, and what it would take", ("claim", "why", "what it would take"), rows, note, steps)


def _why(claim: Claim) -> str:
    if claim.p is None:
        return "; ".join(claim.notes) or "nothing was measured"
    reasons = [n for n in claim.notes if n.startswith(_REASONS)]
    if reasons:
        return "; ".join(reasons)
    if claim.interval is not None and None not in claim.interval and claim.margin is not None:
        return f"the interval holds the margin ({claim.margin:g})"
    return "neither one-sided test rejects"


_REASONS = (
    "gate failed", "partial", "fewer than 2", "nothing was learned", "too few launches", "inconclusive because", "whether anything",
    "the gate cannot", "no drift scalar", "the mean drift", "hypothesis", "quality/all", "drift/all", "overhead does",
)  # fmt: skip


def _takes(m: Material, claim: Claim) -> str:
    if claim.dimension == "hypothesis":
        return "a verdict on quality/all, and on drift/all or overhead"
    if claim.id.endswith("/all"):
        open_tasks = [c.id for c in m.claims if c.dimension == claim.dimension and c.task and c.verdict != "supported"]
        still = f"every task decided; still open or against it: {', '.join(open_tasks)}"
        return still if open_tasks else "more seeds: the tasks hold one by one"
    if meaningless(claim):
        return "first, methods that learn the task: better rates, more steps or more data"
    if claim.dimension == "quality":
        found = next((_quality(m, s) for s in m.testable if s.task == claim.task), None)
    elif claim.dimension == "drift":
        found = next((_drift(m, d) for d in m.contrasts if d.task == claim.task and len(d.seeds) > 1), None)
    else:
        found = _overhead(m)
    return found or "the missing runs first: two paired seeds at the least"


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
    if reference <= 0:
        return "a reference that drifts at all"
    sd = float(np.std(d.candidate_S - (1 - spec.drift_reduction) * d.reference_S, ddof=1))
    shown = [
        f"{100 * (spec.drift_reduction + detectable_shift(sd, n, alpha=spec.alpha) / reference):.0f} % with {n} seeds"
        for n in sorted({len(d.seeds), 5, 10})
        if n >= len(d.seeds)
    ]
    return f"a true reduction of {', '.join(shown)}"


def _overhead(m: Material) -> str:
    spec = m.study.analysis
    cells = registered_cells(m.study)
    logs = list(log_ratios(launch_rows(m.frames), spec.overhead_arm, spec.overhead_baseline_arm, cells).values())
    if len(logs) < 2:
        return f"at least {spec.min_launches} launches of both registered arms with all registered cells"
    needed = units_needed(float(np.std(logs, ddof=1)), math.log1p(spec.overhead_limit), alpha=spec.alpha)
    return f"{max(needed or 0, spec.min_launches)} launches an arm" if needed else "launches that vary less: no number up to 1,000 decides"
