"""The adapter types of the installed PEFT, by name."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from tunescope.errors import did_you_mean


@cache
def peft_types() -> tuple[str, ...]:
    """The types, read from PEFT's own list of them; importing PEFT itself takes seconds and brings torch with it.

    () when PEFT is not installed or keeps its list elsewhere: a wrong type is then refused by training.
    """
    package = importlib.util.find_spec("peft")
    names = Path(package.origin).parent / "utils" / "peft_types.py" if package and package.origin else None
    spec = importlib.util.spec_from_file_location("peft_types", names) if names and names.is_file() else None
    if spec is None or spec.loader is None:
        return ()
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tuple(kind.value for kind in module.PeftType)


def _known(given: str) -> str:
    types = peft_types()
    if types and given not in types:
        raise ValueError(f"the installed PEFT has no '{given}'{did_you_mean(given, types)}; it has {', '.join(sorted(types))}")
    return given


PeftType = Annotated[str, AfterValidator(_known)]
"""One of the types, judged by itself, so that it is told beside whatever else is wrong with its adapter."""
