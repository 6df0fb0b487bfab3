"""Keeping the registered plan: written when the first final run starts, never changed once a final run has a result."""

from datetime import UTC, datetime
from typing import Any

from tunescope.study.registration import FILE, registered_plan, registration
from tunescope.study.schema import Study

from .files import read_json, write_json
from .store import Store

_FINAL = "train/*/*/final/*/result.json"


def register(study: Study, store: Store, step_id: str) -> None:
    """Fix the plan at the start of a final run, unless it is fixed: a plan may be rewritten only while no final run has ever finished."""
    kept = kept_registration(store)
    if _looked(store) or (kept is not None and kept.get("plan") == registered_plan(study)):
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(store.root / FILE, registration(study, now, step_id))


def kept_registration(store: Store) -> dict[str, Any] | None:
    """registration.json as it is; None when there is none, {} when it cannot be read."""
    path = store.root / FILE
    return (read_json(path) or {}) if path.exists() else None


def _looked(store: Store) -> bool:
    """Whether any final run, superseded ones too, has left a result that could have been looked at."""
    found = (place.glob(pattern) for place, pattern in ((store.root / "steps", _FINAL), (store.attic(), f"*/{_FINAL}")))
    return any(True for paths in found for _ in paths)
