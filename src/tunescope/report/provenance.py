"""Where the numbers came from: machines and versions of the finished steps, data sources, the base model. Read from the store."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.analysis.frames import Frames
from tunescope.study.schema import Execution, Study

from . import wording as w

PACKAGES = ("torch", "transformers", "peft", "datasets", "vllm", "numpy", "scipy", "statsmodels")


@dataclass(frozen=True)
class Facts:
    """Facts shared by the steps that carry them."""

    rows: tuple[tuple[str, str], ...]
    steps: tuple[str, ...]


def machines(root: Path, finished: Iterable[str]) -> list[Facts]:
    """Distinct sets of machine and versions, each with its steps; steps without a readable provenance.json are one set of their own."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for step in finished:
        groups.setdefault(_environment(root / "steps" / step / "provenance.json"), []).append(step)
    return [Facts(rows, tuple(sorted(steps))) for rows, steps in groups.items()]


def _environment(path: Path) -> tuple[tuple[str, str], ...]:
    try:
        p = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return (("Provenance", "none recorded"),)
    gpus = [g.get("name", "?") for g in p.get("gpus") or [] if isinstance(g, Mapping)]
    packages = p.get("packages") or {}
    versions = ", ".join(f"{name} {packages[name]}" for name in PACKAGES if packages.get(name))
    changed = " with uncommitted changes" if p.get("diff_sha256") else ""
    commit = f", commit {str(p['commit'])[:12]}{changed}" if p.get("commit") else ""
    facts = {
        "Processor": f"{p['cpu']} ({w.plural(int(p.get('cores') or 0), 'core')})" if p.get("cpu") else None,
        "Memory": w.size(p.get("ram_bytes")) if p.get("ram_bytes") else None,
        "GPUs": ", ".join(gpus) or ("none used" if p.get("device") == "cpu" else None),
        "CUDA, driver": ", ".join(str(p[k]) for k in ("cuda", "driver") if p.get(k)) or None,
        "Device, threads": ", ".join(str(p[k]) for k in ("device", "threads") if p.get(k)) or None,
        "System": p.get("os"),
        "Python": p.get("python"),
        "Packages": versions or None,
        "tunescope": f"{p['version']}{commit}" if p.get("version") else None,
    }
    return tuple((name, str(value)) for name, value in facts.items() if value)


@dataclass(frozen=True)
class Source:
    """One task's data: where it came from and what it is."""

    task: str
    source: str
    revision: str
    licence: str
    sizes: str
    remark: str
    steps: tuple[str, ...]


def data_sources(frames: Frames, study: Study, execution: Execution) -> list[Source]:
    """Sources and licences from the data steps, else from the prepared data's manifest."""
    manifest = _manifest(Path(execution.paths.data) / "manifest.json")
    found = []
    for task in study.tasks:
        steps = frames.of_kind("data", task)
        entry: dict[str, Any] = {**manifest.get(task, {}), **(frames.outputs(steps[0]) if steps else {})}
        if entry:
            found.append(_source(task, entry, steps))
    return found


def _source(task: str, entry: Mapping[str, Any], steps: list[str]) -> Source:
    sizes = entry.get("parts") or entry.get("rows") or {}
    remarks = ["made here by rules or templates, not the published data"] if entry.get("made_here") else []
    remarks += ["scores are not comparable with published ones"] if entry.get("comparable") is False else []
    return Source(
        task, str(entry.get("source") or "unknown"), str(entry.get("revision") or w.NONE), str(entry.get("licence") or "not recorded"),
        ", ".join(f"{name} {w.count(n)}" for name, n in sizes.items() if isinstance(n, int | float)), "; ".join(remarks), tuple(steps),
    )  # fmt: skip


def _manifest(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tasks = json.loads(path.read_text(encoding="utf-8")).get("tasks") or {}
    except (OSError, ValueError, AttributeError):
        return {}
    return {task: entry for task, entry in tasks.items() if isinstance(entry, dict)}


def model_steps(study: Study, frames: Frames) -> list[str]:
    """The steps that counted the model's parameters."""
    m = frames.metrics
    return list(m[(m.name == "total_parameters") & (m.method == study.analysis.reference_method)].step_id.unique())


def model_line(study: Study, frames: Frames) -> str:
    """The base model in one line."""
    name, revision = study.model.name, study.model.revision
    m = frames.metrics
    rows = m[(m.name == "total_parameters") & (m.method == study.analysis.reference_method)] if len(m) else m
    size = f", {w.count(float(rows.value.iloc[0]))} parameters" if len(rows) else ""
    if name == "sprout-2m":
        return f"sprout-2m, embedded in tunescope{size}; a small Llama-like model for trying the whole study, not for its scores"
    return f"{name}{f', revision {revision}' if revision else ''}{size}; see its own model card for training and terms of use"


def study_argument(study: Study, execution: Execution) -> str:
    """What to type for STUDY on the command line: the built-in name of an unchanged study, else the resolved copy in the store."""
    from tunescope.errors import TunescopeError
    from tunescope.study.load import builtin_studies, load_study

    try:
        shipped = load_study(study.name) if study.name in builtin_studies() else None
    except TunescopeError:
        shipped = None
    unchanged = shipped is not None and (shipped.study, shipped.execution) == (study, execution)
    return study.name if unchanged else f"{execution.paths.runs}/{study.name}/study.yaml"
