"""The LaTeX tables as LaTeX sees them; skipped where there is no pdflatex."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tunescope.report.latex import latex
from tunescope.report.tables import serving_table
from tunescope.report.tabular import Row, Table

from .conftest import Published

PDFLATEX = shutil.which("pdflatex")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PDFLATEX is None, reason="no pdflatex on the PATH: apt install texlive-latex-base texlive-latex-recommended"),
]
HEAD = r"""\documentclass{article}
\usepackage[T1]{fontenc}
\usepackage[a4paper,margin=2cm]{geometry}
\usepackage{booktabs,graphicx}
\begin{document}
"""
NASTY = r"""50 % of R&D_x {y} #1 ~ ^ \input{/etc/passwd} $ < > | " é ü ’ “q” – — … −1 ≤ x ≥ ± × · → Δ α η² ω ∞ ✓ ✕ 10⁻⁷ I² [a] *"""


def compiled(folder: Path, tables: list[str]) -> str:
    """The log of a document that holds nothing but these tables; fails with LaTeX's own words."""
    (folder / "all.tex").write_text(HEAD + "\n".join(rf"\input{{{t}}}\clearpage" for t in tables) + "\n\\end{document}\n", encoding="utf-8")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "all.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    log = (folder / "all.log").read_text(encoding="utf-8", errors="replace")
    assert done.returncode == 0, re.findall(r"^! .*(?:\n.*){4}", log, flags=re.M)
    return log


def test_every_table_of_a_report_compiles_and_fits_its_page(published: Published, tmp_path: Path) -> None:
    tables = sorted((published.root / "results" / "tables").glob("*.tex"))
    shutil.copytree(published.root / "results" / "tables", tmp_path / "tables")
    long = serving_table(published.findings.serving * 4)
    assert len(long.rows) > 45
    (tmp_path / "tables" / "long.tex").write_text(latex(long), encoding="utf-8")
    log = compiled(tmp_path, ["tables/long.tex", *(f"tables/{t.name}" for t in tables)])
    assert len(tables) > 30 and "Missing character" not in log and "undefined" not in log.lower()
    widest = max([float(x) for x in re.findall(r"Overfull \\hbox \(([0-9.]+)pt", log)] or [0.0])
    assert widest < 25, f"a table sticks out by {widest} pt"


def test_a_table_of_every_sign_that_data_can_hold_compiles(tmp_path: Path) -> None:
    for name, rows in (("short", 2), ("tall", 30)):
        table = Table(name, NASTY, ("a", NASTY), tuple(Row((NASTY, NASTY), ("train/x/y",)) for _ in range(rows)), frozenset(), NASTY)
        (tmp_path / f"{name}.tex").write_text(latex(table), encoding="utf-8")
    assert (tmp_path / "tall.tex").read_text().count(r"\begin{table}") == 2, "a long table comes in parts"
    assert "Missing character" not in compiled(tmp_path, ["short.tex", "tall.tex"])
