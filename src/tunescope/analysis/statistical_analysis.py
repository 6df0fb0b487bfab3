"""From frames to findings: claims with verdicts, tables, flags, limitations and the answer. Pure; reads no files."""

import re
from collections.abc import Sequence
from textwrap import shorten
from typing import Any

from tunescope.study.registration import PlanCheck, check_plan
from tunescope.study.schema import Study

from . import tables, tables_methods, tables_runs, tables_sensitivity
from .advice import advice_table
from .answer import answer, disagreements, served_how
from .confirmatory import labelled, registered_part
from .drift import drift_claims
from .drift_patterns import drift_tables
from .exploratory import added_seeds_table, agreement_table, practical_table, surprises_table
from .findings import Claim, Findings, Missing, Reason, RegisteredPlan, TaskRow
from .flags import red_flags
from .frames import Frames, MissingByStep, as_missing
from .limitations import limitations
from .overhead import overhead_claim
from .quality import quality_claims, task_quality
from .rows import baseline_rows, cost_rows, task_rows
from .scores import paired_drift
from .serving import overhead_summary, serving_rows
from .tables import Material, Table, plain
from .tables_serving import serving_tables
from .undecided import undecided_table
from .verdicts import hypothesis


def analyse(frames: Frames, study: Study, missing: Sequence[Missing] | MissingByStep | None = None, *, now: str) -> Findings:
    """All findings of a study from what is finished; what is missing is named and makes its claims inconclusive.

    Args:
        frames: tables of the finished steps.
        study: the study with its registered analysis.
        missing: planned steps without a valid result, as rows or {step id: (state, why)}; results they left behind are not used. Planned
            steps without a result that are not named here count as `todo`.
        now: time stamp of the findings (ISO 8601).
    """
    absent = _all_missing(frames, as_missing(missing))
    everything = frames.without(row.step for row in absent)
    check = check_plan(study, frames.registration)
    whole_study, (frames, study) = study, registered_part(everything, study, check)
    spec, planned = study.analysis, len(frames.planned)
    done = planned - len(absent)
    qualities = [task_quality(frames, study, task) for task in study.tasks]
    quality_tasks, quality_all = quality_claims(qualities, study)
    drift_tasks, drift_all = drift_claims(frames, study, qualities)
    parts = [quality_all, *quality_tasks, drift_all, *drift_tasks, overhead_claim(frames, study)]
    parts = _naming_states(parts, absent)
    whole = hypothesis(*(c for c in parts if c.task is None), spec=spec)
    claims = labelled([whole, *parts], frames, study, check)
    drifts = [d for d in (paired_drift(frames, t, spec.candidate_method, spec.reference_method) for t in study.tasks) if d is not None]
    material = Material(frames, study, qualities, drifts, claims, tables_runs.diverged_runs(frames), overhead_summary(frames, study))
    rows, how = task_rows(frames, study), served_how(frames)
    added = added_seeds_table(everything, whole_study, check.added_seeds)
    return Findings(
        study=study.name, title=study.title or study.name, generated=now, complete=not absent, steps_done=done, steps_planned=planned,
        missing=absent, answer=answer(claims, spec, done, planned, how), registered_plan=_plan(check), claims=claims, table=rows,
        baselines=baseline_rows(frames, study), costs=cost_rows(frames, study), serving=serving_rows(frames, study),
        statistics=_statistics(material, rows, absent, added), disagreements=[plain(d) for d in disagreements(frames, study)],
        red_flags=red_flags(frames, study, claims),
        limitations=limitations(frames, study, qualities, claims, rows, absent),
    )  # fmt: skip


def _all_missing(frames: Frames, named: list[Missing]) -> list[Missing]:
    """Named missing steps of the plan in plan order, and planned steps without a result."""
    by_step, finished = {row.step: row for row in named}, set(frames.steps.step_id)
    return [
        by_step.get(step) or Missing(step=step, state="todo", why="no result yet")
        for step in frames.planned
        if step in by_step or step not in finished
    ]


def _naming_states(claims: list[Claim], absent: Sequence[Missing]) -> list[Claim]:
    """The claims, whose reasons that name a missing step say why it is missing."""
    said = {m.step: f"{m.step} ({m.state}{': ' + shorten(m.why, 120, placeholder=' ...') if m.why else ''})" for m in absent}
    if not said:
        return claims
    names = re.compile("|".join(rf"{re.escape(step)}(?![\w.-])" for step in said))

    def told(reason: Reason) -> Reason:
        if reason.kind not in ("missing_steps", "gate_unknown"):
            return reason
        return reason.model_copy(update={"text": names.sub(lambda found: said[found[0]], reason.text)})

    return [claim.model_copy(update={"reasons": [told(r) for r in claim.reasons]}) for claim in claims]


def _plan(check: PlanCheck) -> RegisteredPlan:
    changes = ["the kept registration is unreadable or was edited"] if check.damaged else []
    changes += [line for lines in check.changes.values() for line in lines]
    return RegisteredPlan(sha256=check.sha256, registered=check.registered, changes=changes, added_seeds=list(check.added_seeds))


def _statistics(m: Material, rows: list[TaskRow], absent: list[Missing], added: Table) -> dict[str, Table]:
    """Every table that has rows, in the order of reading."""
    found: dict[str, Any] = {
        "undecided": undecided_table(m),
        "advice": advice_table(m),
        "practical_threshold": practical_table(m),
        "task_agreement": agreement_table(m),
        "surprises": surprises_table(m),
        "added_seeds": added,
        "gate": tables.gate_table(m),
        "multiplicity": tables.multiplicity_table(m),
        "quality_sensitivity": tables_sensitivity.quality_sensitivity_table(m),
        "drift_sensitivity": tables_sensitivity.drift_sensitivity_table(m),
        "power": tables.power_table(m),
        "planned_power": tables.planned_power_table(m),
        "mean_gap": tables.gap_table(m),
        "effect_sizes": tables.effect_table(m),
        "mcnemar": tables.mcnemar_table(m),
        "f1_randomisation": tables.f1_table(m),
        "anova": tables.anova_table(m),
        "post_hoc": tables_runs.tukey_table(m),
        "ablation": tables_methods.ablation_table(m, rows),
        "convergence": tables_methods.convergence_table(m),
        "correlations": tables_runs.correlation_table(m),
        "correlation_matrix": tables_runs.correlation_matrix(m),
        "frontier": tables_runs.frontier_table(m),
        "noise_floor": tables_runs.noise_table(m),
        **drift_tables(m),
        **serving_tables(m),
        "training_settings": tables_runs.settings_table(m),
        "merge": tables_runs.merge_table(m),
        "rank_utilisation": tables_runs.rank_table(m),
        "leakage": tables_runs.leakage_table(m),
        "runs": tables_runs.runs_table(m, absent),
    }
    return {name: entry for name, entry in found.items() if entry["rows"]}
