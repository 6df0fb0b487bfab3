"""A server that has imported heavy modules once and forks processes that need them: seconds of imports saved for each.

Of the standard library's `multiprocessing`, with what it leaves to the caller: the environment the server starts in, and where it prints.
"""

import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path


def start_server(modules: Sequence[str], variables: Mapping[str, str], log: Path | None) -> None:
    """Start this process's fork server, or start it again when it died; does nothing while it runs.

    Args:
        modules: what it imports; one that is missing is skipped, and fails in the process that needs it.
        variables: the environment it starts in, which its processes inherit.
        log: where it prints while it imports.
    """
    multiprocessing.set_forkserver_preload(list(modules))
    with environment(variables), output_to(log):
        multiprocessing.forkserver.ensure_running()


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the duration of a block (what is started inside inherits them)."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, old in before.items():
            if old is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = old


@contextlib.contextmanager
def output_to(path: Path | None) -> Iterator[None]:
    """Point file descriptors 1 and 2 to a file while a process is started, so that its warnings do not tear the display."""
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for source, target in zip(saved, (1, 2), strict=True):
            os.dup2(source, target)
            os.close(source)
