"""Advice for deployment, each with the conditions it holds under. Follows the verdicts; adds none."""

from collections.abc import Iterator

from tunescope.study.schema import TASK_NAMES

from .answer import figure, margin_percent, served_how
from .confirmatory import standing
from .drift import saturated_methods
from .findings import Claim
from .scores import seeds_of
from .tables import Material, Table, table
from .verdicts import comparable, meaningless

Row = tuple[str, str, str, str]


def advice_table(m: Material) -> Table:
    """What to do, and when that holds."""
    by_id = {c.id: c for c in m.claims}
    rows = [*_quality(m), *_drift(m, by_id["drift/all"]), *_serving(m, by_id)]
    note = "Advice follows the verdicts; where nothing is decided it says so. It holds for what was measured, under the conditions named."
    steps = [s for c in m.claims for s in c.steps]
    return table("Advice for deployment", ("question", "advice", "holds for", "claim"), rows, note, steps)


def _quality(m: Material) -> Iterator[Row]:
    spec = m.study.analysis
    share, ours, theirs = margin_percent(spec.quality_retained), spec.candidate_method, spec.reference_method
    words = {
        "supported": f"{ours} can take the place of {theirs}: it keeps at least {share} of its score",
        "contradicted": f"use {theirs} where the score counts: {ours} loses more than {margin_percent(1 - spec.quality_retained)} of it",
        "inconclusive": f"not decided here: compare {ours} and {theirs} on your own data before choosing",
    }
    nothing = f"neither, as they are: {theirs} does not beat its baselines here, so there is nothing to compare"
    unknown = f"not known: no runs of {ours} and {theirs} to compare are finished"
    for claim in (c for c in m.claims if c.dimension == "quality" and c.task):
        text = unknown if claim.estimate is None else nothing if meaningless(claim) else words[claim.verdict] + _figure(m, claim)
        yield f"Which method for {TASK_NAMES[str(claim.task)]}?", text, _training_conditions(m) + _status(claim), claim.id


def _drift(m: Material, claim: Claim) -> Iterator[Row]:
    if claim.estimate is None:
        return
    ours, theirs = m.study.analysis.candidate_method, m.study.analysis.reference_method
    words = {
        "supported": f"prefer {ours} where later work builds on the base model's representations",
        "contradicted": f"do not choose {ours} over {theirs} for its drift",
        "inconclusive": "drift is no ground to choose between the methods yet",
    }
    saturated = [f"{TASK_NAMES[d.task]}: {names} saturated" for d in m.drifts if (names := saturated_methods(m.study, d))]
    doubt = f"; differences mean little where drift is near its largest ({'; '.join(saturated)})" if saturated else ""
    conditions = _training_conditions(m) + doubt + _status(claim)
    yield "Does it matter how far the model moves?", words[claim.verdict] + _figure(m, claim), conditions, claim.id


def _serving(m: Material, claims: dict[str, Claim]) -> Iterator[Row]:
    overhead, conditions, question = claims["overhead"], _serving_conditions(m), "Merge, or serve adapters side by side?"
    if overhead.estimate is None or overhead.has("no_serving"):
        why = "no part of this study" if overhead.has("no_serving") else "not measured"
        yield question, f"{why}: merged adapters run as the full model does", "any engine", overhead.id
        return
    words = {
        "supported": "serve adapters side by side where one engine for several tasks is worth the measured cost",
        "contradicted": "merge and run one engine a task: side by side costs more than the limit",
        "inconclusive": "not decided: more launches have to say what side by side costs before it is chosen or ruled out",
    }
    yield question, words[overhead.verdict] + _figure(m, overhead), conditions + _status(overhead), overhead.id
    for line in m.serving.get("recommendations", []):
        yield "Serving in detail", line, conditions, overhead.id


def _figure(m: Material, claim: Claim) -> str:
    return f" ({figure(claim, m.study.analysis)})" if comparable(claim, m.claims) else ""


def _status(claim: Claim) -> str:
    return f"; {standing(claim)}" if standing(claim) else ""


def _training_conditions(m: Material) -> str:
    study = m.study
    adapter = study.methods[study.analysis.candidate_method].adapter
    what = f", {adapter.peft_type} r = {adapter.r} on {_modules(adapter.target_modules)}" if adapter else ""
    return f"{study.model.name}{what}, {_rates(m)}, {len(study.seeds)} seeds, this data ({study.data.source})"


def _rates(m: Material) -> str:
    """How the learning rates were chosen, and how often the first or last of a grid was, where a longer grid might have given another."""
    grids, edges = 0, 0
    for task in m.study.tasks:
        for method in (m.study.analysis.candidate_method, m.study.analysis.reference_method):
            grid = m.study.learning_rates(task, method)
            step = next(iter(seeds_of(m.frames, task, method).values()), None)
            rate = m.frames.outputs(step).get("learning_rate") if step else None
            if rate is not None and len(grid) > 1:
                grids, edges = grids + 1, edges + (rate in (min(grid), max(grid)))
    return "learning rates of the searched grid" + (f" (on its edge in {edges} of {grids})" if edges else "")


def _modules(names: tuple[str, ...] | str) -> str:
    return names if isinstance(names, str) else ", ".join(names)


def _serving_conditions(m: Material) -> str:
    spec = m.study.analysis
    device = served_how(m.frames) or "on this GPU"
    batches = ", ".join(map(str, spec.overhead_batch_sizes))
    return f"{m.study.model.name} {device}; batches of {batches}, prompts of {spec.overhead_prompt_length} tokens, greedy"
