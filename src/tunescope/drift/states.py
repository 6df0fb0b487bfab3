"""Pooled states of one probe, and their safetensors file."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from tunescope.drift.gram import Array, Gram, StatesError
from tunescope.errors import PrerequisiteError

POOLINGS = ("last_prompt_token", "mean")
CONVENTION = (
    "layer 0 = input of the first decoder layer; 1..L = decoder layer outputs before the final norm; "
    "mean over real tokens without position 0"
)


@dataclass
class ProbeStates:
    """What one probe of one model keeps: (n, d) fp32 arrays per (layer, pooling), examples in probe order.

    Between a probe and its table on the same GPU the arrays may be tensors there (`Probe.states(on_device=True)`).

    `extras` holds what is not pooled over all examples: `tokens.{k}` (m, d) token states spread over all examples,
    `log_probs` (n, vocabulary) after the prompt, `text_nll` (tokens,) of the held-out text,
    `attention.{k}` (m, heads, length) and `mlp.{k}` (m, width).
    """

    layers: dict[tuple[int, str], Array]
    probe_sha256: str
    task: str
    convention: str = CONVENTION
    source: str = "this run"
    """The run or file, named in errors."""
    extras: dict[str, Array] = field(default_factory=dict)
    _grams: dict[tuple[int, str], Gram] = field(default_factory=dict, repr=False)

    @property
    def n_layers(self) -> int:
        """Decoder layers, the embedding output not counted."""
        return max(layer for layer, _ in self.layers)

    @property
    def n(self) -> int:
        """Examples in the probe."""
        return next(iter(self.layers.values())).shape[0]

    def gram(self, layer: int, pooling: str) -> Gram:
        """The Gram object of one layer, built at the first call and kept."""
        key = (layer, pooling)
        if key not in self._grams:
            self._grams[key] = Gram(self.layers[key])
        return self._grams[key]

    def forget(self, layer: int, pooling: str) -> None:
        """Drop the kept Gram object of one layer."""
        self._grams.pop((layer, pooling), None)


def save_states(path: Path, states: ProbeStates, *, extras: bool = True) -> Path:
    """Write states as safetensors, atomically: `layer.{k}.{pooling}` (n, d) fp32, and the extras as `extra.{name}`."""
    tensors = {f"layer.{k}.{pooling}": np.ascontiguousarray(v, dtype=np.float32) for (k, pooling), v in sorted(states.layers.items())}
    if extras:
        tensors |= {f"extra.{name}": np.ascontiguousarray(v) for name, v in sorted(states.extras.items())}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    metadata = {"probe_sha256": states.probe_sha256, "convention": states.convention, "task": states.task}
    with partial.open("wb") as stream:
        stream.write(_ordered(save(tensors, metadata=metadata)))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)
    return path


def _ordered(data: bytes) -> bytes:
    """safetensors writes metadata in random order; in sorted order equal states give equal bytes, so a step's digest can be compared."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def load_states(path: Path, *, probe_sha256: str | None = None, extras: bool = True) -> ProbeStates:
    """Read states; with `probe_sha256`, refuse a file of another probe set.

    Raises PrerequisiteError for a missing or truncated file, StatesError for another probe or non-finite values.
    """
    if not path.is_file():
        raise PrerequisiteError(f"{path}: no such probe states; run the step that writes them again")
    try:
        with safe_open(path, framework="numpy") as stored:
            metadata = stored.metadata() or {}
            names = [name for name in stored.keys() if extras or name.startswith("layer.")]  # noqa: SIM118 (not a dict)
            tensors = {name: stored.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise PrerequisiteError(f"{path}: truncated or not a safetensors file ({error}); run its step again") from error
    states = _from_tensors(tensors, metadata, path)
    if probe_sha256 is not None:
        check_probe(states.probe_sha256, probe_sha256, str(path))
    return states


def _from_tensors(tensors: dict[str, Array], metadata: dict[str, str], path: Path) -> ProbeStates:
    layers: dict[tuple[int, str], Array] = {}
    for name, value in tensors.items():
        if name.startswith("layer."):
            _, layer, pooling = name.split(".")
            layers[int(layer), pooling] = value
            if not np.isfinite(value).all():
                raise StatesError(
                    f"{path}: layer {layer} ({pooling}) holds NaN or infinite states; that run diverged or its file is damaged"
                )
    missing = {"probe_sha256", "convention", "task"} - metadata.keys()
    if missing or not layers:
        raise PrerequisiteError(f"{path}: not a probe file (lacks {', '.join(sorted(missing)) or 'layers'}); run its step again")
    kept = {name.removeprefix("extra."): value for name, value in tensors.items() if name.startswith("extra.")}
    return ProbeStates(layers, metadata["probe_sha256"], metadata["task"], metadata["convention"], str(path), kept)


def check_probe(found: str, expected: str, where: str) -> None:
    """Raise StatesError when two probe hashes differ: such states are never compared."""
    if found != expected:
        raise StatesError(f"{where}: probe set {found[:12]} differs from {expected[:12]}; prepare the data again and rerun the older step")
