"""Keeping the registered plan: written when the first final run starts, never changed once a final run has a result."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tunescope.errors import PrerequisiteError
from tunescope.study.plan import Plan
from tunescope.study.power import Pilot, PowerRow, planned_power, power_lines, sizes_of_tests, upper_bounds
from tunescope.study.registration import FILE, check_plan, overhead_undecided, registered_plan, registration
from tunescope.study.schema import Study, TaskName

from .data_folder import DataFolder
from .files import read_json, write_json
from .store import Store

_FINAL = "train/*/*/final/*/result.json"
RECORDED = "registered_plan"
"""Key of a final run's provenance.json: SHA-256 of the plan that was registered when it finished."""


def register(study: Study, store: Store, step_id: str) -> None:
    """Fix the plan at the start of a final run, unless it is fixed: a plan may be rewritten only while no final run has ever finished."""
    with store.locked():
        kept = kept_registration(store)
        if _looked(store) or (kept is not None and kept.get("plan") == registered_plan(study)):
            return
        now = datetime.now(UTC).isoformat(timespec="seconds")
        write_json(store.root / FILE, registration(study, now, step_id))


def kept_registration(store: Store) -> dict[str, Any] | None:
    """registration.json as it is; None when there is none, {} when it cannot be read."""
    path = store.root / FILE
    return (read_json(path) or {}) if path.exists() else None


def refuse_mixed_plans(store: Store) -> None:
    """Final runs that finished under another registered plan than the one kept here do not belong to one study.

    Raises:
        PrerequisiteError: folders of stores with different plans were merged, or registration.json was exchanged.
    """
    plans = plans_of(store)
    if len(plans) < 2:
        return
    lines = [f"  {sha[:16]}: {where[0]}" + (f" and {len(where) - 1} more" if where[1:] else "") for sha, where in plans.items()]
    raise PrerequisiteError(
        "\n".join([f"{store.root}: what is here stands under {len(plans)} different registered plans", *lines])
        + f"\nkeep the stores apart; or put back the {FILE} that belongs to the runs; or remove the folders of the runs that finished "
        "under another plan and run them again"
    )


def plans_of(store: Store) -> dict[str, list[str]]:
    """SHA-256 of a registered plan -> what stands under it: the kept registration, then finished final runs that recorded one."""
    found: dict[str, list[str]] = {}
    kept = kept_registration(store) or {}
    if isinstance(kept.get("sha256"), str):
        found[kept["sha256"]] = [FILE]
    for path in sorted((store.root / "steps").glob(_FINAL)):
        sha = (read_json(path.parent / "provenance.json") or {}).get(RECORDED)
        if sha:
            found.setdefault(sha, []).append(path.parent.relative_to(store.root / "steps").as_posix())
    return found


def _looked(store: Store) -> bool:
    """Whether any final run, superseded ones too, has left a result that could have been looked at."""
    found = (place.glob(pattern) for place, pattern in ((store.root / "steps", _FINAL), (store.attic(), f"*/{_FINAL}")))
    return any(True for paths in found for _ in paths)


def design(plan: Plan, store: Store, data: DataFolder, pilot: Path | None) -> dict[str, Any]:
    """The registered plan and its power, as JSON types."""
    refuse_mixed_plans(store)
    check, known = check_plan(plan.study, kept_registration(store)), _test_sizes(plan, store, data)
    rows, refused = _power(plan, known, pilot)
    bounds = sorted(upper_bounds(plan.study, known))
    power = {"power": [asdict(row) for row in rows], "test_sizes_at_most": bounds, "pilot_not_used": refused}
    return {"registered_plan": asdict(check), "overhead_undecided": overhead_undecided(plan.study), **power}


def design_lines(plan: Plan, store: Store, data: DataFolder, pilot: Path | None) -> list[str]:
    """The registered plan and its power, in words."""
    refuse_mixed_plans(store)
    known = _test_sizes(plan, store, data)
    rows, refused = _power(plan, known, pilot)
    undecided = [f"warning: the overhead claim will not be decided: {why}" for why in overhead_undecided(plan.study)]
    lines = [
        *check_plan(plan.study, kept_registration(store)).lines(),
        *undecided,
        *power_lines(plan.study, rows, upper_bounds(plan.study, known)),
    ]
    return [*lines, *(f"  {task}: the pilot is not used: {why}" for task, why in refused.items())]


def _test_sizes(plan: Plan, store: Store, data: DataFolder) -> dict[TaskName, int]:
    """Test examples of the tasks that were prepared as the plan says, or whose data step has finished so."""
    found: dict[TaskName, int] = {}
    for task in plan.study.tasks:
        step, (result, _) = plan[f"data/{task}"], store.result(f"data/{task}")
        counted = result.metric("examples", "test") if result and result.inputs == step.inputs.model_dump(mode="json") else None
        if n := counted or data.test_examples(step):
            found[task] = int(n)
    return found


def _power(plan: Plan, known: Mapping[TaskName, int], pilot: Path | None) -> tuple[list[PowerRow], dict[TaskName, str]]:
    """Power at the known test sizes, else the official ones, and the tasks that a pilot says nothing about."""
    measured, refused = _pilot(plan.study, pilot) if pilot else ({}, {})
    return planned_power(plan.study, sizes_of_tests(plan.study, known), measured), refused


def _pilot(study: Study, folder: Path) -> tuple[dict[TaskName, Pilot], dict[TaskName, str]]:
    """Spreads measured in a finished pilot by this study's analysis, and why its other tasks are not used."""
    from tunescope.analysis.frames import collect
    from tunescope.analysis.pilot import measured
    from tunescope.study.load import load_study

    if not (folder / "study.yaml").is_file():
        raise PrerequisiteError(f"--pilot {folder}: no study.yaml there; name the folder of a pilot's runs, e.g. runs/pilot")
    pilot = load_study(str(folder / "study.yaml")).study
    found = measured(collect(folder, pilot), pilot, study)
    if not found.tasks:
        why = [f"  {task}: {reason}" for task, reason in found.refused.items()] or ["  it has no task of this study"]
        raise PrerequisiteError("\n".join([f"--pilot {folder}: it says nothing about this study's spreads", *why]))
    return found.tasks, found.refused
