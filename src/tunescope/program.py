"""How this program is typed here: what messages print as the next command runs as it stands, also where no PATH leads to it."""

import shlex
import shutil
import sys
from pathlib import Path


def command(*arguments: str) -> str:
    """A command line of this program, e.g. `tunescope plan my.yaml`, or `.venv/bin/tunescope plan my.yaml` where no venv is active."""
    return f"{program()} {shlex.join(arguments)}"


def program(name: str = "tunescope") -> str:
    """The word that starts this program, or another one (`wandb`) of the same environment.

    Not `sys.argv[0]`: that is a script of experiments/, or `__main__.py`, as often as the command itself.
    """
    beside, found = Path(sys.executable).with_name(name), shutil.which(name)
    if beside.is_file():
        return name if found and Path(found).samefile(beside) else _from_here(beside)
    if found or name != "tunescope":
        return name
    return f"{_from_here(Path(sys.executable))} -m tunescope"


def _from_here(path: Path) -> str:
    here = Path.cwd()
    inside = path.relative_to(here) if path.is_relative_to(here) else path
    return shlex.quote(str(inside if len(inside.parts) > 1 else path))  # a bare name would be looked for on the PATH
