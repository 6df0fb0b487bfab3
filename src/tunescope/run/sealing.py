"""What `result.json` holds, sealed so that a later change shows, and why a written one cannot be used."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunescope.records import StepResult
from tunescope.study.identity import fingerprint

from .files import files_below, sha256_file

FORMAT = 1
"""Of `step.json` and `result.json`; part of every fingerprint."""
_KEYS = {"fingerprint", "digest", "metrics", "resources", "outputs", "content", "files", "notes"}
_BOOKKEEPING = {
    "step.json",
    "result.json",
    "error.json",
    "provenance.json",
    "log.txt",
    "lease.json",
    "lease.lock",
    "metrics.jsonl",
}
_TRANSIENT = ("wandb", "checkpoint", ".")
"""Prefixes of top-level names that may vanish from a finished folder (see `Store.clean`)."""


def sealed(folder: Path, step_id: str, step_fingerprint: str, result: StepResult, *, started: float, wall_s: float) -> dict[str, Any]:
    """`result.json` of a step that has just finished in its folder.

    Args:
        started: Unix time.
        wall_s: seconds that the step took, by a clock that cannot jump.
    """
    metrics = [m.model_dump(mode="json") for m in result.metrics]
    content = {path: sha256_file(folder / path) for path in sorted(set(result.content))}
    value = {
        "format": FORMAT, "id": step_id, "fingerprint": step_fingerprint, "digest": _digest(metrics, result.outputs, content),
        "metrics": metrics, "resources": [m.model_dump(mode="json") for m in result.resources], "outputs": result.outputs,
        "content": content, "files": dict(_files(folder)), "notes": result.notes, "started": started, "finished": time.time(),
        "wall_s": wall_s, "step_sha256": sha256_file(folder / "step.json"),
    }  # fmt: skip
    return {**value, "seal": fingerprint(value)}


def unusable(folder: Path, value: dict[str, Any]) -> str:
    """Why a parsed `result.json` cannot be used; "" when it can."""
    lacking = _KEYS - value.keys()
    if lacking:
        return f"result.json lacks {', '.join(sorted(lacking))}"
    if not _unchanged(value):
        return "result.json was changed after it was written (its digest does not match)"
    if "step_sha256" in value and sha256_file(folder / "step.json") != value["step_sha256"]:
        return "step.json was changed after the step ran (its SHA-256 differs)"
    for path, size in value["files"].items():
        try:
            found = (folder / path).stat().st_size
        except OSError:
            return f"{path} is missing"
        if found != size:
            return f"{path} has {found} bytes, {size} were recorded"
    return ""


def changed(folder: Path, content: Mapping[str, str], *, records: bool = False) -> str:
    """Which deterministic artefact is not the bytes it was; "" when all are.

    Args:
        records: look at those beside `result.json` only, which the analysis reads: not at weights and states, which are large.
    """
    for path, digest in content.items():
        if not (records and "/" in path) and sha256_file(folder / path) != digest:
            return f"{path} is not what the step wrote (its SHA-256 differs)"
    return ""


def _unchanged(value: dict[str, Any]) -> bool:
    """Whether nothing in a result changed since it was written, be it one bit of a timing; results from before the seal have a digest."""
    try:
        if "seal" in value or "step_sha256" in value:
            return fingerprint({k: v for k, v in value.items() if k != "seal"}) == value.get("seal")
        return _digest(value["metrics"], value["outputs"], value["content"]) == value["digest"]
    except ValueError:  # a number became infinite
        return False


def _digest(metrics: list[dict[str, Any]], outputs: Mapping[str, Any], content: Mapping[str, str]) -> str:
    """SHA-256 of a result's numbers, facts and deterministic artefacts; never of its timings."""
    return fingerprint({"metrics": metrics, "outputs": outputs, "content": content})


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of every lasting artefact of a step folder."""
    for path in files_below(folder):
        relative = path.relative_to(folder)
        if relative.parts[0] not in _BOOKKEEPING and not relative.parts[0].startswith(_TRANSIENT):
            yield str(relative), path.stat().st_size
