"""vLLM and what a launch needs beside it, imported once: by the launch itself, or by the server that it is forked from."""

import gc
import os
import time

_start = time.monotonic()
gc.disable()  # collecting while modules pile up is a fifth of the import time

from .launch import drop_variables  # noqa: E402

drop_variables()
from .engine import VllmEngine  # noqa: E402 - imports vLLM: 8 to 15 s on two slow cores

gc.enable()

SECONDS = time.monotonic() - _start
_PROCESS = os.getpid()

__all__ = ["SECONDS", "VllmEngine", "before_fork"]


def before_fork() -> float:
    """Seconds of imports that were spent before this process was forked; 0 when it imported vLLM itself."""
    return SECONDS if os.getpid() != _PROCESS else 0.0
