"""docs/study-file.md describes every key of the schema, with its default."""

import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from tunescope.study.schema import Frozen, StudyFile

PAGE = (Path(__file__).parents[3] / "docs" / "study-file.md").read_text(encoding="utf-8")
TABLES = {
    place: {k: (default, text) for k, default, text in re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", body, flags=re.M)}
    for place, body in re.findall(r"^### `([^`]+)`\n(.*?)(?=^### |\Z)", PAGE, flags=re.M | re.S)
}


def models(kind: Any, place: str = "") -> dict[str, type[BaseModel]]:
    """Every model of a study file by its place; keys that are data are called <task> and <method>."""
    found: dict[str, type[BaseModel]] = {}
    if isinstance(kind, type) and issubclass(kind, Frozen):
        if place:
            found[place] = kind
        for name, field in kind.model_fields.items():
            inner = name if place in ("", "study") else f"{place}.{name}"
            found |= models(field.annotation, inner)
    elif typing.get_origin(kind) is dict:
        key = {"tasks": "<task>", "methods": "<method>"}.get(place, "<key>")
        found |= models(typing.get_args(kind)[1], f"{place}.{key}")
    elif typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        for each in typing.get_args(kind):
            found |= models(each, place)
    return found


MODELS = models(StudyFile)


def shown(field: Any) -> str:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if field.is_required() or isinstance(default, BaseModel):
        return "required" if field.is_required() else "below"
    plain = list(default) if isinstance(default, tuple) else default
    text = yaml.safe_dump(plain, default_flow_style=True, width=1000, sort_keys=False).removesuffix("\n").removesuffix("\n...").strip()
    return f"`{text}`"


def test_the_page_has_a_table_for_every_part_of_the_file():
    assert set(TABLES) == set(MODELS)
    assert {"study", "training", "methods.<method>.adapter", "serving.open_loop", "execution.slurm"} <= set(MODELS)


@pytest.mark.parametrize("place", MODELS)
def test_every_key_is_described_with_its_default(place):
    fields = MODELS[place].model_fields
    assert {name: default for name, (default, _) in TABLES[place].items()} == {name: shown(field) for name, field in fields.items()}
