"""Fingerprints: SHA-256 of canonical JSON, and readable differences between two sets of inputs."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel


def canonical(value: Any) -> Any:
    """Reduce a value to plain JSON types with one spelling; refuse anything that has none (NaN, sets, objects)."""
    if value is None or isinstance(value, (str, int)):  # a tuple: a union would cost three times as much, and `status` reads thousands
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, BaseModel):
        return canonical(value.model_dump(mode="json"))
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise ValueError(f"keys must be strings: {list(value)}")
        return {k: canonical(value[k]) for k in sorted(value)}
    raise ValueError(f"a {type(value).__name__} has no canonical form")


def fingerprint(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    text = json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(old: Any, new: Any) -> list[str]:
    """Field-by-field changes, as `path old → new` lines."""
    before, after = dict(_leaves(canonical(old))), dict(_leaves(canonical(new)))
    absent = "(absent)"
    return [
        f"{path} {_show(before.get(path, absent))} → {_show(after.get(path, absent))}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path, absent) != after.get(path, absent)
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else key)
    else:
        yield path, value


def _show(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "…" if len(text) == 64 else text
