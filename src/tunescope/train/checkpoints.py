"""Checkpoints that prove themselves: each carries the SHA-256 of its files, and only an intact one is resumed from."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

SEAL = "seal.json"


@dataclass(frozen=True)
class Checkpoint:
    """An intact checkpoint: its folder, its step, whether training had ended there, and the precision that it was trained in."""

    folder: Path
    step: int
    finished: bool
    precision: str | None


def file_sha256(path: Path) -> str:
    """SHA-256 of one file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def seal(folder: Path, records: Path, *, step: int, best_step: int | None, finished: bool, precision: str) -> None:
    """Write a checkpoint's digest last and atomically: files of the checkpoint, and probe records taken so far."""
    files = {p.name: file_sha256(p) for p in sorted(folder.iterdir()) if p.is_file() and p.name != SEAL}
    probes = {p.name: file_sha256(p) for p in sorted(records.glob("step-*.parquet"))}
    head = {"step": step, "best_step": best_step, "finished": finished, "precision": precision}
    partial = folder / f"{SEAL}.partial"
    partial.write_text(json.dumps({**head, "files": files, "probes": probes}, indent=1))
    with partial.open("rb") as stream:
        os.fsync(stream.fileno())
    os.replace(partial, folder / SEAL)


def resumable(root: Path, records: Path, precision: str) -> tuple[Checkpoint | None, str]:
    """The checkpoint to go on from, all that it does not need dropped; and why an intact one was not taken, "" when none was refused.

    A run has one precision; `auto` may resolve to another one on this device.
    """
    found, refused = latest_intact(root, records), ""
    if found is not None and found.precision != precision:
        refused = f"started anew: the checkpoint at step {found.step} is of precision {found.precision}, not {precision}"
        found = None
    keep_only(root, records, found)
    return found, refused


def latest_intact(root: Path, records: Path) -> Checkpoint | None:
    """The newest checkpoint whose files, best checkpoint and probe records all match their digests; None starts afresh."""
    for folder in sorted(root.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]), reverse=True):
        content = _read_seal(folder, records)
        if content is None:
            continue
        best = content["best_step"]
        if best not in (None, content["step"]) and _read_seal(root / f"checkpoint-{best}", None) is None:
            continue
        return Checkpoint(folder, content["step"], content["finished"], content.get("precision"))
    return None


def _read_seal(folder: Path, records: Path | None) -> dict | None:
    try:
        content = json.loads((folder / SEAL).read_text())
        intact = all(file_sha256(folder / name) == digest for name, digest in content["files"].items())
        if records is not None:
            intact = intact and all(file_sha256(records / name) == digest for name, digest in content["probes"].items())
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if intact else None


def keep_only(root: Path, records: Path, checkpoint: Checkpoint | None) -> None:
    """Drop what a resumed run will write again: unsealed or later checkpoints, and later probe records."""
    last = checkpoint.step if checkpoint else -1
    for folder in root.glob("checkpoint-*"):
        if int(folder.name.rsplit("-", 1)[1]) > last:
            shutil.rmtree(folder)
    for path in records.glob("step-*.parquet*"):
        if int(path.name.split(".")[0].removeprefix("step-")) > last:
            path.unlink()
