"""Read a study file: YAML through OmegaConf, overrides, validation with every problem named at once."""

import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError
from yaml import YAMLError

from tunescope.errors import StudyError, did_you_mean

from .rules import broken_placement, broken_rules
from .schema import Execution, Study, StudyFile

_PACKAGED = Path(__file__).parents[1] / "studies"
_CHECKOUT = Path(__file__).parents[3] / "studies"


def builtin_studies() -> dict[str, Path]:
    """The shipped studies by name."""
    folder = _PACKAGED if _PACKAGED.is_dir() else _CHECKOUT
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_study(name_or_path: str) -> Path:
    """The file of a built-in study name or a path."""
    builtin = builtin_studies()
    if name_or_path in builtin:
        return builtin[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name_or_path:
        raise StudyError(f"no study file '{name_or_path}': give a path to a YAML file or one of the built-in studies {', '.join(builtin)}")
    beside = next((file for suffix in (".yaml", ".yml") if (file := Path(f"{name_or_path}{suffix}")).is_file()), None)
    if beside:
        raise StudyError(f"no study named '{name_or_path}': its file is given with its ending, {beside}")
    raise StudyError(f"no study named '{name_or_path}'{did_you_mean(name_or_path, builtin)}: built in are {', '.join(builtin)}")


def load_study(name_or_path: str, overrides: Sequence[str] = ()) -> StudyFile:
    """Load and validate a study.

    Args:
        name_or_path: a built-in name (`quickstart`) or a YAML file.
        overrides: `a.b=c` items; a path that starts with neither `study.` nor `execution.` is taken inside `study`.

    Raises:
        StudyError: lists every problem with its path in the file and the nearest valid name.
    """
    path = find_study(name_or_path)
    try:
        config = OmegaConf.load(path)
        items = [_qualified(item) for item in overrides]
        merged = OmegaConf.merge(config, OmegaConf.from_dotlist(items)) if items else config
        data = OmegaConf.to_container(merged, resolve=True)
    except (YAMLError, OmegaConfBaseException, OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a readable YAML study file: {' '.join(str(error).split())}") from error
    try:
        return StudyFile.model_validate(data)
    except ValidationError as error:
        raise StudyError([f"{path}: {line}" for line in (*_problems(error), *_further_problems(data, error))]) from error


def study_json_schema() -> dict[str, Any]:
    """The JSON Schema of a study file."""
    return StudyFile.model_json_schema()


def _qualified(item: str) -> str:
    key, sep, value = item.partition("=")
    if not sep or not key:
        raise StudyError(f"--set {item}: write it as path=value, e.g. --set training.max_epochs=1")
    if key.split(".")[0] not in ("study", "execution"):
        key = f"study.{key}"
    return f"{key}={value}"


def _problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors():
        parts = [str(part) for part in problem["loc"]]
        if parts and parts[-1].startswith("literal["):  # of a list that may also be one word: what is wrong with the list is told
            continue
        place = ".".join(part for part in parts if "[" not in part)  # "[key]", "tuple[...]" are pydantic's own words
        if problem["type"] == "extra_forbidden":
            known = _known_names(problem["loc"][:-1])
            yield f"{place}: unknown key{did_you_mean(str(problem['loc'][-1]), known)}; valid here: {', '.join(known)}"
        elif problem["type"] == "literal_error":
            given, expected = problem["input"], problem["ctx"]["expected"]
            yield f"{place}: '{given}' is not valid{did_you_mean(str(given), _quoted(expected))}; expected {expected}"
        elif problem["type"] == "missing":
            yield f"{place}: missing; it has no default"
        elif problem["type"] == "tuple_type":
            yield f"{place}: should be a list, e.g. [{problem['input']}]"
        elif problem["loc"] in _WHOLE and problem["type"] == "value_error":
            yield from (".".join(filter(None, (place, line))) for line in _said(problem))
        else:
            yield from (f"{place}: {line}" for line in _said(problem))


def _said(problem: Any) -> list[str]:
    return str(problem["msg"]).removeprefix("Value error, ").splitlines()


_WHOLE = ((), ("study",))
"""Where rules between sections are broken; each names its place inside."""


def _further_problems(data: Any, error: ValidationError) -> list[str]:
    """The broken rules between sections that validation did not reach, because some section is wrong in itself."""
    found = {problem["loc"]: problem["type"] for problem in error.errors()}
    if () in found or found.get(("study",), "value_error") != "value_error":  # every rule was reached, or there is no study to speak of
        return []
    sections = {
        name: TypeAdapter(field.rebuild_annotation()).validate_python(data["study"][name]) if name in data["study"] else field.get_default()
        for name, field in Study.model_fields.items()
        if not any(place[:2] == ("study", name) for place in found)
    }
    lines = [] if ("study",) in found else [f"study.{line}" for line in broken_rules(Study.model_construct(**sections), sections)]
    if "tasks" in sections and not any(place[0] == "execution" for place in found):
        lines += broken_placement(sections["tasks"], Execution.model_validate(data.get("execution", {})).placement)
    return lines


def _quoted(expected: str) -> list[str]:
    return expected.replace(" or ", ", ").replace("'", "").split(", ")


def _known_names(location: tuple[Any, ...]) -> list[str]:
    """Field names valid at a place in the file, following models, dict values, tuples and optionals."""
    kind: Any = StudyFile
    for part in location:
        kind = _model_in(kind)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(part)].annotation
        else:
            kind = typing.get_args(kind)[-1]
    kind = _model_in(kind)
    return list(kind.model_fields) if isinstance(kind, type) and issubclass(kind, BaseModel) else []


def _model_in(kind: Any) -> Any:
    """Drop `| None` and `Annotated` around a type."""
    while typing.get_origin(kind) in (typing.Union, types.UnionType, typing.Annotated):
        args = [a for a in typing.get_args(kind) if a is not type(None)]
        kind = args[0]
    return kind
