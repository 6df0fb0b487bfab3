"""The example notebook runs on a study's folder as a reader would run it."""

import json
from pathlib import Path

import pytest

from .conftest import Published

NOTEBOOK = Path(__file__).parents[3] / "docs" / "reading-results.ipynb"


def test_code_cells_run_in_order(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(published.root)
    monkeypatch.chdir(tmp_path)
    cells = ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    names: dict[str, object] = {}
    for code in cells:
        exec(compile(code, NOTEBOOK.name, "exec"), names)
    assert sum("tunescope.load_results(" in code for code in cells) == 1
    ratio = names["test"].ratio  # type: ignore[attr-defined]
    assert ratio == pytest.approx(next(c.estimate for c in published.findings.claims if c.id == "quality/sst2"))


def test_stored_outputs_are_small_and_without_errors() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    outputs = [o for c in notebook["cells"] for o in c.get("outputs", [])]
    assert len(outputs) >= 6 and {o["output_type"] for o in outputs} <= {"execute_result", "stream"}
    assert NOTEBOOK.stat().st_size < 30_000
