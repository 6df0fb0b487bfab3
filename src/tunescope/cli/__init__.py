"""The command line: argument shapes and printing only. Heavy imports live inside the verbs."""

import signal  # noqa: I001  (--help lists the verbs in the order in which they are imported below)
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from tunescope import __version__
from tunescope.errors import PrerequisiteError, TunescopeError
from tunescope.program import command, program

from . import studies, running, results  # noqa: F401
from .options import app


def _say_version(asked: bool) -> None:
    if asked:
        print(f"tunescope {__version__}")
        raise typer.Exit


@app.callback()
def every_verb(
    version: Annotated[bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Quality, drift and serving cost of fine-tuning."""


class _Interrupted(BaseException):
    """Ctrl-C or a polite kill. Its own class, because frameworks turn KeyboardInterrupt into other exit codes."""


TOGETHER_S = 0.5
"""Signals less than this apart count as one: a Ctrl-C and a supervisor's kill that come at once, or a key held down."""


def _interrupter() -> Callable[[int, Any], None]:
    """A handler that stops, each time: an exception raised inside a library's callback can be lost, and then only a second signal stops.

    A second one at once would break the ending of workers before that can shut signals out, and leave jobs of a cluster behind.
    """
    last = -math.inf

    def interrupt(number: int, frame: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > TOGETHER_S:
            last = now
            raise _Interrupted

    return interrupt


def _disk_refused(error: OSError) -> int:
    """A full or read-only disk is the user's to mend; any other operating system error is a bug and keeps its traceback."""
    from tunescope.console import error_lines
    from tunescope.run.files import unwritable

    refused = unwritable(error)
    if refused is None:
        raise error
    error_lines(refused)
    return PrerequisiteError.exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed steps, 2 usage, 3 prerequisite, 130 interrupted."""
    interrupt = _interrupter()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, interrupt)
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name=program())
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TunescopeError as error:
        from tunescope.console import error_lines

        error_lines(str(error))
        return error.exit_code
    except OSError as error:
        return _disk_refused(error)
    except _Interrupted:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        print(f"interrupted; `{command('run')}` goes on where this stopped", file=sys.stderr)
        return 130
    return 0
