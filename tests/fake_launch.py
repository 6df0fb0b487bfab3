"""Launches that a test forks: what each does stands in the environment of the fork server."""

import json
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from tunescope.serve.launch import die_with_parent, lead


def fork(row: str, log: str, alive: Connection) -> None:
    """Write a row, die or hang."""
    lead(log, alive)
    die_with_parent()
    what = os.environ["TUNESCOPE_TEST_FORK"]
    Path(f"{row}.pid").write_text(str(os.getpid()))
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "hangs":
        time.sleep(60)
    if what == "fails":
        raise MemoryError("out of memory")
    print("a word", flush=True)
    leads = os.getsid(0) == os.getpid()
    Path(row).write_text(json.dumps({"ok": True, "error": None, "said": what, "leads": leads}))
    sys.stdout.flush()
    os._exit(0)
