"""tunescope: quality, drift and serving cost of fine-tuning."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from os import PathLike

    from tunescope.analysis.frames import Frames

__version__ = "0.1.0"


def load_results(path: "str | PathLike[str]") -> "Frames":
    """The published tables of a study as named pandas frames: `load_results("runs/quickstart").metrics`.

    Args:
        path: the study's folder, `<runs>/<study>`, or its `results` folder, after `tunescope report`.

    Raises:
        PrerequisiteError: no published tables there.
    """
    import json
    from dataclasses import replace
    from pathlib import Path

    from tunescope.analysis.frames import load_results as read
    from tunescope.analysis.overview import headline
    from tunescope.errors import PrerequisiteError
    from tunescope.program import command

    found = [p for p in (Path(path), Path(path) / "results") if (p / "metrics.parquet").is_file() and (p / "documents.json").is_file()]
    if not found:
        runs = Path("runs") / path  # of a study's name, as the command line takes it
        hint = f" (did you mean '{runs}'?)" if runs.is_dir() and runs != Path(path) else ""
        remedy = f"run `{command('report', 'STUDY')}` first"
        raise PrerequisiteError(f"no published results in {path} or {Path(path) / 'results'}{hint}: {remedy}")
    report = found[0].resolve().parent / "analysis" / "final_analysis_report.json"
    return replace(read(found[0]), headline=headline(json.loads(report.read_text(encoding="utf-8"))) if report.is_file() else ())
