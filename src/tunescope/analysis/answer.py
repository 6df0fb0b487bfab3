"""The answer in three sentences with numbers, and the examples on which the methods disagree."""

from typing import Any

import pandas as pd

from tunescope.study.arms import arm_name
from tunescope.study.schema import TASK_NAMES, AnalysisSpec, Study

from .confirmatory import standing
from .findings import Claim, ReasonKind
from .frames import Frames
from .scores import seeds_of
from .verdicts import comparable, meaningless, weakest

PER_TASK = 10


def percent(share: float | None, places: int = 1) -> str:
    """A fraction as per cent: 0.97 as `97.0 %`."""
    if share is None:
        return "-"
    return f"{share * 100:,.0f} %" if abs(share) >= 10 else f"{share * 100:.{places}f} %"


def margin_percent(share: float) -> str:
    """A registered margin as per cent with all its digits, since it is what was tested: 0.97 as `97 %`, 0.975 as `97.5 %`."""
    return f"{100 * share:.6g} %"


def answer(claims: list[Claim], spec: AnalysisSpec, done: int, planned: int, served: str = "") -> list[str]:
    """Quality, drift, and overhead with the verdict on the hypothesis: exactly three sentences, true of partial studies too.

    Args:
        served: what keeps the serving figures from carrying over (`served_how`), which the serving sentence begins with.
    """
    by_id = {c.id: c for c in claims}
    return [
        _dimension(claims, by_id["quality/all"], spec, _quality_words(spec)),
        _dimension(claims, by_id["drift/all"], spec, _drift_words(spec)),
        _overhead(by_id["overhead"], by_id["hypothesis"], spec, done, planned, served),
    ]


def served_how(frames: Frames) -> str:
    """How serving was measured, where that keeps its figures from carrying over to GPUs or to production; "" elsewhere."""
    outputs = [frames.outputs(step) for step in frames.of_kind("serve")]
    eager = any(o.get("eager") for o in outputs)
    if any(o.get("cpu_figures") for o in outputs):
        return f"on a CPU{' in eager mode' if eager else ''}, which says nothing about GPUs"
    return "on a GPU in eager mode, without the compiled graphs of production" if eager else ""


def _quality_words(spec: AnalysisSpec) -> dict[str, str]:
    share, ours, theirs = margin_percent(spec.quality_retained), spec.candidate_method, spec.reference_method
    return {
        "supported": f"Quality: {ours} keeps at least {share} of {theirs}'s score on every task",
        "contradicted": f"Quality: on at least one task {ours} does not keep {share} of {theirs}'s score",
        "inconclusive": f"Quality: whether {ours} keeps {share} of {theirs}'s score on every task is not decided",
        "nothing": f"Quality: {ours} cannot be compared with {theirs} yet",
    }


def _drift_words(spec: AnalysisSpec) -> dict[str, str]:
    share, ours, theirs = margin_percent(spec.drift_reduction), spec.candidate_method, spec.reference_method
    return {
        "supported": f"Drift: {ours} drifts at least {share} less than {theirs} on every task",
        "contradicted": f"Drift: on at least one task {ours} does not drift {share} less than {theirs}",
        "inconclusive": f"Drift: whether {ours} drifts {share} less than {theirs} on every task is not decided",
        "nothing": f"Drift: {ours} cannot be compared with {theirs} yet",
    }


def _dimension(claims: list[Claim], overall: Claim, spec: AnalysisSpec, words: dict[str, str]) -> str:
    tasks = [c for c in claims if c.dimension == overall.dimension and c.task is not None]
    worst = weakest(tasks)
    if worst is None:
        return f"{words['nothing']}{_why(tasks, overall)}."
    measured = [c for c in tasks if c.p is not None and meaningless(c) == meaningless(worst)]
    scope = f"weakest of {len(measured)} compared tasks" if len(measured) > 1 else "the only compared task"
    detail = f" ({scope}, {TASK_NAMES[str(worst.task)]}: {figure(worst, spec)}{_p(overall)})" if comparable(worst, claims) else ""
    return f"{words[overall.verdict]}{detail}{_why(tasks, overall)}{_plan_note(overall)}."


def figure(claim: Claim, spec: AnalysisSpec) -> str:
    """What was measured, in words, with its interval."""
    if claim.dimension == "quality":
        return f"{percent(claim.estimate)} of {spec.reference_method}{_interval(claim)}"
    if claim.dimension == "drift":
        return f"a reduction of {percent(claim.estimate)}{_interval(claim)}"
    return f"{_change(claim)} time per token than {spec.overhead_baseline_arm}{_interval(claim)}"


def _change(overhead: Claim) -> str:
    change = overhead.estimate or 0.0
    return f"{percent(abs(change))} {'more' if change >= 0 else 'less'}"


def _interval(claim: Claim) -> str:
    low, high = claim.interval or (None, None)
    return "" if low is None or high is None else f", 90 % interval {percent(low)} to {percent(high)}"


def _p(claim: Claim) -> str:
    """The p behind the verdict; the one against the claim when it is contradicted."""
    p, name = (claim.p_opposite, "p against it") if claim.verdict == "contradicted" else (claim.p, "p")
    if p is None:
        return ""
    return f"; {name} < 0.0001" if p < 1e-4 else f"; {name} = {p:.2g}"


def _why(tasks: list[Claim], overall: Claim) -> str:
    """Why an undecided claim is undecided, when it is more than a wide interval."""
    if overall.verdict != "inconclusive":
        return ""
    words: dict[ReasonKind, str] = {
        "gate_failed": "full fine-tuning does not beat its baselines on", "nothing_learned": "nothing was learned on",
        "missing_steps": "runs are missing on", "too_few_seeds": "fewer than two seeds are paired on",
        "gate_unknown": "what was learned cannot be checked on", "metric_not_stored": "scores are missing on",
        "no_drift_scalar": "drift values are missing on", "too_few_examples": "there are too few groups of examples on",
        "no_reference_drift": "the reference does not drift on", "no_variation": "all values are equal on",
    }  # fmt: skip
    found: dict[str, list[str]] = {}
    for claim in tasks:
        reason = next((text for kind, text in words.items() if claim.has(kind)), None)
        if reason:
            found.setdefault(reason, []).append(TASK_NAMES[str(claim.task)])
    return "; " + "; ".join(f"{reason} {', '.join(names)}" for reason, names in found.items()) if found else ""


def _plan_note(claim: Claim) -> str:
    """What a reader of one sentence has to know about the registered plan."""
    return f" ({standing(claim)})" if standing(claim) else ""


def _overhead(overhead: Claim, hypothesis: Claim, spec: AnalysisSpec, done: int, planned: int, served: str) -> str:
    arm, baseline, limit = arm_name(spec.overhead_arm), spec.overhead_baseline_arm, margin_percent(spec.overhead_limit)
    if overhead.estimate is None or overhead.has("no_serving"):
        missing = "is no part of this study" if overhead.has("no_serving") else "has not been measured"
        first = f"Serving: the cost of {arm} against {baseline} {missing}"
    else:
        launches = f"{overhead.n_launches} launch{'es' if overhead.n_launches != 1 else ''} an arm"
        decided = {"supported": f"within the limit of {limit}", "contradicted": f"above the limit of {limit}"}
        why = ", because arms of identical shape do not tie" if overhead.has("twins_differ") else ""
        state = decided.get(overhead.verdict, f"not decided against the limit of {limit}{why}")
        how = f"measured {served}, " if served else ""
        found = f"{arm} cost {_change(overhead)} time per token than {baseline} ({launches}{_interval(overhead)}{_p(overhead)})"
        first = f"Serving: {how}{found}, {state}"
    part = [f"on {done} of {planned} planned steps"] if done < planned else []
    part += [_p(hypothesis).removeprefix("; ")] if hypothesis.verdict != "inconclusive" else []
    state = f"{hypothesis.verdict}{' (' + ', '.join(part) + ')' if part else ''}"
    return f"{first}; taken together the hypothesis is {state}{_plan_note(hypothesis)}."


def disagreements(frames: Frames, study: Study) -> list[dict[str, Any]]:
    """Up to ten examples a task on which the methods' majority predictions over seeds differ, the most unanimous first."""
    methods = (study.analysis.reference_method, study.analysis.candidate_method)
    found: list[dict[str, Any]] = []
    for task in study.tasks:
        tables = [_majority(frames, task, method) for method in methods]
        if any(len(t) == 0 for t in tables):
            continue
        pair = tables[0].join(tables[1], lsuffix="_0", rsuffix="_1", how="inner")
        pair = pair[(pair.prediction_0 != pair.prediction_1) & (pair.right_0 != pair.right_1)]
        pair = pair.assign(votes=pair.share_0 + pair.share_1).sort_values("votes", ascending=False, kind="stable").head(PER_TASK)
        found += [_row(task, methods, str(example), row) for example, row in pair.iterrows()]
    return found


def _row(task: str, methods: tuple[str, str], example: str, row: pd.Series) -> dict[str, Any]:
    return {
        "task": task,
        "example_id": example,
        "label": None if pd.isna(row.label_0) else str(row.label_0),
        "predictions": {m: str(row[f"prediction_{k}"]) for k, m in enumerate(methods)},
        "agreement": {m: float(row[f"share_{k}"]) for k, m in enumerate(methods)},
        "right": {m: bool(row[f"right_{k}"]) for k, m in enumerate(methods)},
        "steps": [*row.steps_0, *row.steps_1],
    }


def _majority(frames: Frames, task: str, method: str) -> pd.DataFrame:
    """Per example: the prediction most seeds gave, the share that gave it, and whether it is right. Ties go by the alphabet."""
    steps = list(seeds_of(frames, task, method).values())
    rows = frames.predictions[frames.predictions.step_id.isin(steps)]
    rows = rows.assign(prediction=rows.prediction.fillna(""))
    votes = rows.groupby(["example_id", "prediction"], sort=True).agg(
        votes=("correct", "size"), right=("correct", "max"), label=("label", "first")
    )
    best = votes.reset_index().sort_values("votes", ascending=False, kind="stable").drop_duplicates("example_id").set_index("example_id")
    best = best.reindex(list(dict.fromkeys(rows.example_id)))
    return best.assign(share=best.votes / max(len(steps), 1), right=best.right >= 0.5, steps=[steps] * len(best)).drop(columns="votes")
