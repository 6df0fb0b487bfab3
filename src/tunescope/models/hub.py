"""A base model on the hub: downloaded at one commit, or known to be out of reach. Imports no torch."""

import json
import os
import re
from pathlib import Path

from tunescope.errors import PrerequisiteError
from tunescope.study.schema import ModelSpec

from .checkpoint import folder_problem

FILES = ("*.json", "*.safetensors", "*.model", "*.txt")
_CARD = "README.md"
"""Downloaded for its licence; changes no number, so it is none of `model_files`."""
COMMIT = re.compile(r"[0-9a-f]{40}")
ANSWER_S = 10.0
"""How long the hub may take to say whether it has a model."""


def download(spec: ModelSpec, runs_dir: Path | None) -> Path:
    """Download a model, or take it from the local cache, and lock its commit.

    Raises:
        PrerequisiteError: it is not in the cache and cannot be downloaded, or another commit is locked.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    commit = _locked_commit(spec, runs_dir)
    try:
        path = Path(snapshot_download(spec.name, revision=commit, allow_patterns=[*FILES, _CARD]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise PrerequisiteError(_out_of_reach(spec, commit, error)) from error
    if COMMIT.fullmatch(path.name):
        _write_lock(spec, runs_dir, path.name)
    return path


def reach_problem(spec: ModelSpec, runs_dir: Path | None) -> str:
    """Why a hub model is neither whole in the local cache nor named by the hub; "" when it is. Downloads nothing."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    commit = _locked_commit(spec, runs_dir)
    try:
        if not folder_problem(Path(snapshot_download(spec.name, revision=commit, local_files_only=True))):
            return ""
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        HfApi().model_info(spec.name, revision=commit, timeout=ANSWER_S)
    except Exception as error:  # offline, gated, unknown: the client raises many types
        return _out_of_reach(spec, commit, error)
    return ""


def _out_of_reach(spec: ModelSpec, commit: str | None, error: Exception) -> str:
    return (
        f"model.name '{spec.name}' (revision {commit or 'default'}): cannot be downloaded and is not in the local cache "
        f"({type(error).__name__}); download it once on a machine with a network, or give a local folder"
    )


def _lock_key(spec: ModelSpec) -> str:
    return f"{spec.name}@{spec.revision or 'default'}"


def _locked_commit(spec: ModelSpec, runs_dir: Path | None) -> str | None:
    if spec.revision and COMMIT.fullmatch(spec.revision):
        return spec.revision
    lock = runs_dir / "model-lock.json" if runs_dir else None
    if lock is None or not lock.is_file():
        return spec.revision
    return json.loads(lock.read_text()).get(_lock_key(spec), spec.revision)


def _write_lock(spec: ModelSpec, runs_dir: Path | None, commit: str) -> None:
    """Remember a commit, keeping what other processes wrote meanwhile."""
    if runs_dir is None:
        return
    from filelock import FileLock

    runs_dir.mkdir(parents=True, exist_ok=True)
    path = runs_dir / "model-lock.json"
    with FileLock(f"{path}.lock"):
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known.setdefault(_lock_key(spec), commit) != commit:
            raise PrerequisiteError(f"{path}: {_lock_key(spec)} is locked to {known[_lock_key(spec)]}, but {commit} was downloaded")
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(known, indent=1, sort_keys=True))
        os.replace(partial, path)
