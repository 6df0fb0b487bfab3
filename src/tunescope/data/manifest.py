"""`manifest.json`: what each prepared task is and the checksums of its files. Reads and hashes only; imports nothing heavy."""

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunescope.errors import PrerequisiteError
from tunescope.program import command

NAME = "manifest.json"
SCHEMA = 1
_CHUNK = 1 << 20


def read(data_dir: Path) -> dict[str, Any]:
    """The manifest's document; an empty one where there is none.

    Raises:
        PrerequisiteError: it is not JSON, or of another schema.
    """
    path = data_dir / NAME
    if not path.exists():
        return {"schema": SCHEMA, "tasks": {}}
    try:
        document = json.loads(path.read_bytes())
    except ValueError as error:
        raise PrerequisiteError(f"{path}: not valid JSON ({error}); delete it and prepare the data again") from None
    found = document.get("schema") if isinstance(document, dict) else None
    if found != SCHEMA or not isinstance(document.get("tasks"), dict):
        raise PrerequisiteError(f"{path}: expected a manifest of schema {SCHEMA}, found {found}; prepare the data again in a new folder")
    return document


def read_entry(data_dir: Path, task: str) -> dict[str, Any] | None:
    """One task's entry, None when the task was never prepared here."""
    return read(data_dir)["tasks"].get(task)


def write_entry(data_dir: Path, task: str, entry: Mapping[str, Any]) -> None:
    """Put one task's entry, leaving the others as they are. Atomic, and safe beside other processes that do the same."""
    with FileLock(data_dir / f".{NAME}.lock"):
        document = read(data_dir)
        document["tasks"][task] = dict(entry)
        write_json(data_dir / NAME, document)


def write_json(path: Path, document: Any) -> None:
    """Write JSON through a temporary name, so that a reader never meets half of it."""
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, sort_keys=True, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.chmod(name, 0o644)  # mkstemp makes it private, but folders are shared between machines
    os.replace(name, path)


def checksums(folder: Path, names_from: Path) -> dict[str, dict[str, Any]]:
    """MD5, SHA-256 and size of every file below a folder, by path relative to `names_from`."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(names_from).as_posix(): _digests(p) for p in paths}


def digest(entry: Mapping[str, Any]) -> str:
    """The data digest of a task: SHA-256 over the names and SHA-256 of its files."""
    files = {name: sums["sha256"] for name, sums in entry["files"].items()}
    return hashlib.sha256(json.dumps(files, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def verify(data_dir: Path, task: str) -> str:
    """Check every file of a task against the manifest and return the data digest. Files the manifest does not name are ignored.

    Raises:
        PrerequisiteError: nothing prepared, a file is missing or its bytes changed; names file, expected and found checksum.
    """
    entry = read_entry(data_dir, task)
    if entry is None:
        raise PrerequisiteError(f"{data_dir / NAME}: no data of task '{task}'; prepare it with `{command('data')}`")
    for name, expected in sorted(entry["files"].items()):
        path = data_dir / name
        if not path.is_file():
            raise PrerequisiteError(f"{path}: missing. {_remedy(data_dir, task)}")
        found = _sha256(path)
        if found != expected["sha256"]:
            raise PrerequisiteError(f"{path}: changed, expected sha256 {expected['sha256']}, found {found}. {_remedy(data_dir, task)}")
    return digest(entry)


def _remedy(data_dir: Path, task: str) -> str:
    return f"Delete {data_dir / task} and run `{command('data')}` again"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digests(path: Path) -> dict[str, Any]:
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            md5.update(chunk)
            sha256.update(chunk)
    return {"md5": md5.hexdigest(), "sha256": sha256.hexdigest(), "bytes": path.stat().st_size}
