"""The adapter types of the installed PEFT, by name."""

import importlib.util
from functools import cache
from pathlib import Path


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
