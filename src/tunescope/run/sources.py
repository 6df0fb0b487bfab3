"""What a step reads besides its data: the base model's files, its tokenizer, and the prompt template, by SHA-256."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunescope.study.identity import fingerprint
from tunescope.study.schema import ModelSpec

from .files import read_json, sha256_file, write_json


def sources(inputs: Mapping[str, Any], root: Path, cache: Path | None = None) -> dict[str, str]:
    """SHA-256 of everything a step rests on that no data manifest covers.

    Args:
        inputs: a step's inputs, as JSON types.
        root: the study's store, where the lock of model revisions lies.
        cache: folder for digests of model files that did not change since; None hashes every byte.

    Returns:
        `model/<file>` and `template/<task>` -> SHA-256; empty for a step without a model.

    Raises:
        PrerequisiteError: the model is not there.
    """
    if not inputs.get("model"):
        return {}
    from tunescope.data.tasks import template
    from tunescope.models.loading import model_files, resolve_model

    files = model_files(resolve_model(ModelSpec.model_validate(inputs["model"]), root))
    found = {f"model/{name}": digest for name, digest in _digests(files, cache).items()}
    if inputs.get("task"):
        found[f"template/{inputs['task']}"] = fingerprint(template(inputs["task"]))
    return found


def _digests(files: Sequence[Path], cache: Path | None) -> dict[str, str]:
    """Hashing gigabytes takes seconds that each step would pay; the key changes with any file's place, size or time."""
    stats = [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in files]
    kept = cache / f"model-{hashlib.sha256(str(stats).encode()).hexdigest()[:12]}.json" if cache else None
    known = read_json(kept) if kept else None
    if known is not None:
        return known
    found = {path.name: sha256_file(path) for path in files}
    if kept:
        write_json(kept, found)
    return found
