"""Where a number came from: machine, versions, commit, arguments, model and data revisions."""

import hashlib
import platform
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from tunescope import __version__
from tunescope.errors import PrerequisiteError
from tunescope.serve.machine import cpu_name

from .environment import gpu_lines
from .files import read_json, write_json
from .registration import RECORDED, kept_registration
from .sources import sources
from .store import StepRecord, Store


def machine() -> dict[str, Any]:
    """Operating system, CPU, memory and GPUs."""
    gpus = [
        dict(zip(("name", "memory", "driver"), line.split(", "), strict=False)) for line in gpu_lines("name,memory.total,driver_version")
    ]
    return {
        "host": socket.gethostname(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=True),
        "ram_bytes": psutil.virtual_memory().total,
        "gpus": gpus,
        "driver": gpus[0].get("driver") if gpus else None,
        "cuda": _cuda(),
    }


def _cuda() -> str | None:
    """CUDA version torch was built for; None for a CPU build, or where torch is not loaded (asking would load it)."""
    torch = sys.modules.get("torch")
    return torch.version.cuda if torch else None


def gpu_peak_bytes() -> int | None:
    """GPU memory this process has reserved at most; None where torch is not loaded or has touched no GPU."""
    torch = sys.modules.get("torch")
    return torch.cuda.max_memory_reserved() if torch and torch.cuda.is_initialized() else None


def packages(cache: Path | None = None) -> dict[str, str]:
    """Installed distributions and versions. Listing takes a few tenths of a second, so a study keeps the list per environment."""
    path = cache / f"packages-{_environment_key()}.json" if cache else None
    known = read_json(path) if path else None
    if known is not None:
        return known
    found = {str(d.metadata["Name"]).lower(): str(d.version) for d in metadata.distributions() if d.metadata["Name"]}
    found = dict(sorted(found.items()))
    if path:
        write_json(path, found)
    return found


def _environment_key() -> str:
    """Changes when packages are installed, upgraded or removed: site-packages is then touched."""
    folders = [Path(p) for p in sys.path if p.endswith("-packages") and Path(p).is_dir()]
    text = f"{sys.prefix} {sys.version} {[(str(f), f.stat().st_mtime_ns) for f in folders]} {socket.gethostname()}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def code() -> dict[str, Any]:
    """Version, and commit with a digest of uncommitted changes when run from a checkout."""
    root = Path(__file__).parents[3]
    commit = _git(root, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"version": __version__, "commit": None, "diff_sha256": None}
    diff = _git(root, "diff", "HEAD", "--", "src", "studies") or ""
    return {"version": __version__, "commit": commit, "diff_sha256": hashlib.sha256(diff.encode()).hexdigest() if diff else None}


def _git(folder: Path, *arguments: str) -> str | None:
    program = shutil.which("git")
    if program is None:
        return None
    try:
        done = subprocess.run([program, "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_provenance(store: Store, record: StepRecord) -> None:
    """Write a step's `provenance.json`."""
    value = {
        **machine(),
        "packages": packages(store.root / "environments"),
        **code(),
        "argv": sys.argv,
        "driver_argv": record.launch.arguments,
        "device": record.launch.device,
        "threads": record.launch.threads,
        "model": record.inputs.get("model"),
        "sources": _sources(store, record),
        "data": _data_revision(record),
        "upstream": record.upstream,
    }
    if record.inputs.get("role") == "final":
        value[RECORDED] = (kept_registration(store) or {}).get("sha256")
    write_json(store.folder(record.id) / "provenance.json", value)


def _sources(store: Store, record: StepRecord) -> dict[str, str] | None:
    """Digests of the base model and the template; a model folder that went away since the step read it must not cost the step."""
    try:
        return sources(record.inputs, store.root, store.root / "environments")
    except (PrerequisiteError, OSError):
        return None


def _data_revision(record: StepRecord) -> dict[str, Any] | None:
    """Source and revision of the step's task, from the data manifest."""
    manifest = read_json(Path(record.launch.data_dir) / "manifest.json") or {}
    entry = manifest.get("tasks", {}).get(record.inputs.get("task"))
    return {k: entry.get(k) for k in ("source", "revision", "made_here")} if entry else None
