"""Statistics and report from whatever is finished: always recomputed, unless the last report was built from the very same results."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tunescope import __version__
from tunescope.study.identity import canonical, fingerprint
from tunescope.study.plan import Plan, Step
from tunescope.study.schema import StudyFile

from .files import read_json, sha256_file, write_json, write_text
from .registration import kept_registration, refuse_mixed_plans
from .sealing import changed
from .state import States
from .store import Store

if TYPE_CHECKING:
    from tunescope.analysis.findings import Findings
    from tunescope.analysis.frames import Frames


def built_from(study_file: StudyFile, store: Store, states: States) -> str:
    """Digest of what a report depends on: results (timings too), what is missing or damaged and why, study, registered plan, versions."""
    from tunescope.analysis.documents import SCHEMA

    results = {i: sha256_file(store.folder(i) / "result.json") for i, s in states.items() if s.finished}
    missing = {i: [state, why] for i, state, why in _unread(states)}
    study, plan, versions = canonical(study_file.study), kept_registration(store), [__version__, SCHEMA]
    return fingerprint({"results": results, "missing": missing, "study": study, "registration": plan, "versions": versions})


def _unread(states: States) -> Iterator[tuple[str, str, str]]:
    """Steps that no report reads, with their state and why: those not finished, and those whose records are not what they wrote."""
    for i, state in states.items():
        if not state.finished:
            yield i, state.status, state.why
        elif why := changed(state.finished.folder, state.finished.result["content"], records=True):
            yield i, "damaged", f"{why}; remove its result.json and run it again"


def current_report(study_file: StudyFile, store: Store, states: States) -> Path | None:
    """The report, when it was built from the results as they are now."""
    path, mark = store.root / "results" / "report.html", read_json(store.root / "results" / "built_from.json")
    return path if path.exists() and mark and mark.get("digest") == built_from(study_file, store, states) else None


def find(study_file: StudyFile, plan: Plan, store: Store, states: States, now: str) -> tuple["Frames", "Findings"]:
    """Read every finished step and compute the statistics.

    Args:
        now: the time that the findings carry.

    Raises:
        PrerequisiteError: the finished runs stand under different registered plans.
    """
    from tunescope.analysis.findings import Missing
    from tunescope.analysis.frames import collect
    from tunescope.analysis.statistical_analysis import analyse

    refuse_mixed_plans(store)
    missing = [Missing(step=i, state=state, why=why) for i, state, why in _unread(states)]
    frames = collect(store.root, study_file.study, planned=plan.steps, missing=missing)
    return frames, analyse(frames, study_file.study, missing, now=now)


def build_report(study_file: StudyFile, plan: Plan, store: Store, states: States) -> Path:
    """Compute statistics and write results, figures and the report.

    Returns:
        Path of report.html.
    """
    from tunescope.report.publish import publish

    started = time.time()
    mark = built_from(study_file, store, states)
    frames, findings = find(study_file, plan, store, states, now=datetime.now(UTC).isoformat(timespec="seconds"))
    path = publish(findings, frames, store.root, study_file.study, study_file.execution)
    _track(study_file, findings, path.parent)
    write_json(store.root / "results" / "built_from.json", {"digest": mark, "seconds": time.time() - started})
    return path


def one_table(study_file: StudyFile, plan: Plan, store: Store, states: States, name: str) -> str:
    """One table of the report, computed from the results as they are now, as CSV; writes nothing."""
    from tunescope.report.reproduce import table_csv

    _, findings = find(study_file, plan, store, states, now=datetime.now(UTC).isoformat(timespec="seconds"))
    return table_csv(findings, study_file.study.analysis.candidate_method, name)


def _track(study_file: StudyFile, findings: "Findings", results: Path) -> None:
    """Log figures, the main tables and the claims to W&B; the files are the record."""
    import pandas as pd

    from tunescope.tracking import open_tracker

    name, tracking = study_file.study.name, study_file.execution.tracking
    with open_tracker(
        results, tracking=tracking, project=tracking.phase2_project, group=name, job_type="report", name="report", config={"study": name}
    ) as tracker:
        for figure in sorted((results / "figures").glob("*.png")):
            tracker.image(f"figures/{figure.stem}", figure)
        for table in ("claims", "master", "baselines", "costs"):
            file = results / "tables" / f"{table}.csv"
            if file.is_file() and file.stat().st_size > 1:
                tracker.table(f"tables/{table}", pd.read_csv(file, dtype=str))
        tracker.summary({f"verdict/{claim.id}": claim.verdict for claim in findings.claims})


def write_study(study_file: StudyFile, plan: Plan, store: Store) -> None:
    """Keep the resolved study and its plan beside the results (written only when they change)."""
    text = yaml.safe_dump(study_file.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    rows = plan_rows(plan.steps)
    if not _same_text(store.root / "study.yaml", text):
        write_text(store.root / "study.yaml", text)
    if read_json(store.root / "plan.json") != {"steps": rows}:
        write_json(store.root / "plan.json", {"steps": rows})


def plan_rows(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps of a plan as JSON rows."""
    return [
        {
            "id": s.id, "kind": s.kind, "phase": s.phase, "machine": s.machine, "task": s.task, "method": s.method,
            "role": s.role, "seed": s.seed,
            "needs": list(s.needs), "selects_from": list(s.selects_from),
        }
        for s in steps
    ]  # fmt: skip


def _same_text(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text
