"""Representational drift: similarity measures, the probe, weight updates, and the drift steps."""

from importlib import import_module
from typing import Any

_HOMES = {"drift_table": "table", "Probe": "probe", "ProbeStates": "states", "save_states": "states", "load_states": "states"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
