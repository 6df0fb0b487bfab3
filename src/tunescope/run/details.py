"""Everything `tunescope show` says about one step."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunescope.program import command, program
from tunescope.tracking_services import offline_runs

from .files import files_below
from .session import Session
from .state import StepState

OUTPUT_LINES = 30


def details(session: Session, step_id: str, study: str, overrides: Sequence[str]) -> dict[str, Any]:
    """One step as JSON types: state, inputs, numbers, log, artefacts, command."""
    state = session.states()[step_id]
    folder = session.store.folder(step_id)
    result = session.store.result(step_id)[0]
    log = folder / "log.txt"
    return {
        "id": step_id,
        "status": state.status,
        "why": state.why,
        "changes": list(state.changes),
        "folder": str(folder),
        "phase": state.step.phase,
        "machine": state.step.machine,
        "needs": [*state.step.needs, *state.step.selects_from],
        "fingerprint": state.fingerprint,
        "inputs": (state.inputs or state.step.inputs).model_dump(mode="json"),
        "result": result.result if result else None,
        "files": [str(p.relative_to(folder)) for p in files_below(folder)],
        "log": log.read_text(errors="replace").splitlines() if log.exists() else [],
        "command": _command(state, folder, study, overrides),
        "sync": f"{program('wandb')} sync {shlex.join(map(str, waiting))}" if (waiting := offline_runs(folder)) else None,
    }


def _command(state: StepState, folder: Path, study: str, overrides: Sequence[str]) -> str:
    """The command that runs the step again; a finished one must lose its result first (its dependents stay when the content comes back)."""
    parts = ["run", study, "--only", state.step.id, *(["--retry-failed"] if state.status == "failed" else [])]
    parts += [part for item in overrides for part in ("--set", item)]
    forget = f"rm {shlex.quote(str(folder / 'result.json'))} && " if state.status == "done" else ""
    return forget + command(*parts)


def detail_lines(found: dict[str, Any]) -> list[str]:
    """The same for reading, without the log."""
    head = [f"{found['id']}: {found['status']}{'  ' + found['why'] if found['why'] else ''}", f"folder   {found['folder']}"]
    head += [f"phase    {found['phase']}, machine {found['machine'] or 'any'}", f"needs    {_short(found['needs']) or 'nothing'}"]
    sync = [f"send it  {found['sync']}"] if found["sync"] else []
    inputs = ["inputs:", *(f"  {line}" for line in _flat(found["inputs"]))]
    return [*head, *inputs, *_result_lines(found["result"]), f"run it   {found['command']}", *sync]


def _result_lines(result: dict[str, Any] | None) -> list[str]:
    if result is None:
        return []
    rows = []
    for group in ("metrics", "resources"):
        rows.append(f"{group}:")
        rows += [f"  {m['name']:<32}{_number(m['value']):>14} {m['unit']:<14}{m['split'] or ''}" for m in result[group]]
    outputs = [f"  {line}" for line in _flat(result["outputs"])]
    rows += ["outputs:", *outputs[:OUTPUT_LINES]]
    if len(outputs) > OUTPUT_LINES:
        rows.append(f"  … {len(outputs) - OUTPUT_LINES} more lines (--json shows all)")
    return [*rows, f"digest   {result['digest']}", *(f"flag     {note}" for note in result["notes"])]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


def _short(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _flat(value: Any, path: str = "") -> list[str]:
    """`a.b = c` lines; long values are cut."""
    if isinstance(value, dict) and value:
        return [line for key, inner in value.items() for line in _flat(inner, f"{path}.{key}" if path else key)]
    text = str(value)
    return [f"{path} = {text[:117] + '…' if len(text) > 118 else text}"]
