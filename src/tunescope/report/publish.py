"""Writes everything a finished (or partial) study leaves for readers and machines."""

import os
import shutil
import tempfile
from pathlib import Path

from tunescope.analysis import payloads
from tunescope.analysis.documents import DOCUMENTS, json_schema
from tunescope.analysis.findings import Findings
from tunescope.analysis.frames import Frames
from tunescope.run.files import write_json
from tunescope.study.schema import Execution, Study

from .drawing import Material
from .figures import Drawn, draw_all
from .html import render
from .latex import write_tables
from .reproduce import all_tables

_OURS = ("figures", "tables", "schemas")
"""Folders of results/ that hold nothing but what is written here; what an earlier report left in them is removed."""


def publish(findings: Findings, frames: Frames, root: Path, study: Study, execution: Execution) -> Path:
    """Write results/ and analysis/final_analysis_report.json of a study's store.

    All files are written to a folder beside results/ and then moved in, the page last, so that a reader never meets half a file.

    Args:
        root: the store, `<runs>/<study name>`.

    Returns:
        Path of results/report.html.
    """
    results = root / "results"
    results.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".results-", dir=root) as name:
        fresh = Path(name)
        drawn = draw_all(Material(findings, frames, study), fresh / "figures")
        tables = all_tables(findings, study.analysis.candidate_method, list(frames.steps.step_id))
        _write(findings, frames, drawn, fresh)
        write_tables(tables, fresh / "tables")
        page = render(findings, frames, tables, drawn, root, study, execution)
        (fresh / "report.html").write_text(page, encoding="utf-8")
        _move_in(fresh, results)
    write_json(root / "analysis" / "final_analysis_report.json", payloads.final_report_json(findings, study))
    return results / "report.html"


def _write(findings: Findings, frames: Frames, drawn: Drawn, folder: Path) -> None:
    """Frames, payloads with their schemas, and what the figures show."""
    frames.write(folder)
    write_json(folder / "baseline_results.json", payloads.baseline_results(frames, findings), durable=False)
    write_json(folder / "drift_analysis_results.json", payloads.drift_results(frames, findings), durable=False)
    write_json(folder / "deployment_benchmark_results.json", payloads.deployment_results(frames, findings), durable=False)
    shown = [{"name": c.name, "title": c.title, "caption": c.caption, "alt": c.alt, "steps": list(c.steps)} for c in drawn.charts.values()]
    write_json(folder / "figures" / "figures.json", {"figures": shown, "not_drawn": drawn.missing}, durable=False)
    (folder / "schemas").mkdir()
    for name in DOCUMENTS:
        write_json(folder / "schemas" / f"{name}.schema.json", json_schema(name), durable=False)


def _move_in(fresh: Path, results: Path) -> None:
    """Move every file to its place, the page last, then remove what this report no longer has."""
    files = sorted((p for p in fresh.rglob("*") if p.is_file()), key=lambda p: p.name == "report.html")
    for path in files:
        place = results / path.relative_to(fresh)
        place.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, place)
    kept = {results / p.relative_to(fresh) for p in files}
    for folder in _OURS:
        for old in (results / folder).glob("*"):
            if old not in kept:
                shutil.rmtree(old) if old.is_dir() else old.unlink()
