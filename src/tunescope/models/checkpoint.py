"""What can be read of a base model on this disk without loading it: where it lies, and which modules it has. Imports no torch."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from tunescope.errors import did_you_mean
from tunescope.study.schema import AdapterSpec, ModelSpec

EMBEDDED = "sprout-2m"
"""The model that ships with the package."""
_HUB_ID = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
_EMBEDDED_FOLDER = Path(__file__).parent / "sprout_2m"
_EMBEDDING = re.compile(r"embed[^.]*$|\bw[tp]e$")
"""Modules whose matrix is a table to look up in; the files do not say so, but their names do."""


def local_folder(spec: ModelSpec) -> Path | None:
    """The folder of the embedded model or of one that is named by its folder; None for hub models, and where there is no such folder."""
    folder = _EMBEDDED_FOLDER if spec.name == EMBEDDED else Path(spec.name).expanduser()
    return folder if folder.is_dir() else None


def model_problem(spec: ModelSpec) -> str:
    """Why there can be no base model by this name, as far as this disk tells; "" for a whole folder and for any hub id."""
    if folder := local_folder(spec):
        return folder_problem(folder)
    if _HUB_ID.fullmatch(spec.name):
        return ""
    return (
        f"model.name '{spec.name}': no such folder{did_you_mean(spec.name, [EMBEDDED])}; "
        f"give '{EMBEDDED}', a local model folder, or a hub id 'owner/name'"
    )


def folder_problem(folder: Path) -> str:
    """What a model folder lacks; "" when it has a configuration and weights."""
    if not (folder / "config.json").is_file():
        return f"{folder}: no config.json, so this is no Hugging Face model folder"
    if not any(folder.glob("*.safetensors")):
        return f"{folder}: no .safetensors weights (pickled .bin weights are not read); convert the model first"
    return ""


def module_widths(folder: Path) -> dict[str, int | None]:
    """Modules that hold weights, by name, with the smaller side of a linear layer's matrix (else None), from the heads of the weight files.

    {} when a file cannot be read: loading it says why.
    """
    found: dict[str, int | None] = {}
    for path in folder.glob("*.safetensors"):
        try:
            with path.open("rb") as file:
                head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except (OSError, ValueError, OverflowError, MemoryError):
            return {}
        for name, tensor in head.items():
            if name != "__metadata__":
                module, _, kind = name.rpartition(".")
                linear = kind == "weight" and len(tensor["shape"]) == 2 and not _EMBEDDING.search(module)
                found[module] = min(tensor["shape"]) if linear else found.get(module)
    # A head tied to the embedding has no weights of its own in the file.
    return {"lm_head": None, **found} if found else {}


def target_problems(spec: AdapterSpec, widths: Mapping[str, int | None]) -> Iterator[str]:
    """Target names that match no module, and ranks above a layer's width.

    Args:
        widths: module name → smaller side of its matrix; None for modules that are no linear layer.
    """
    for target in () if spec.target_modules == "all-linear" else spec.target_modules:
        matched = {name: width for name, width in widths.items() if name == target or name.endswith(f".{target}")}
        if not matched:
            names = sorted({name.rsplit(".", 1)[-1] for name, width in widths.items() if width is not None})
            yield f"adapter.target_modules '{target}' matches no module{did_you_mean(target, names)}; linear modules: {', '.join(names)}"
        for name, width in matched.items():
            if spec.peft_type == "LORA" and width is not None and spec.r is not None and spec.r > width:
                yield f"adapter.r {spec.r} is above the width {width} of {name}; a rank at or above it is no low-rank update"
                break
