"""Tables as LaTeX (booktabs) and CSV. pandas' Styler does the escaping."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from .tabular import Table

_NAMES = ("times", "ge", "le", "pm", "cdot", "to", "Delta", "alpha", "eta", "omega", "infty")
_SIGNS = str.maketrans(
    {
        **{sign: f"${sign}$" for sign in "<>|"},
        **{sign: rf"$\{name}$" for sign, name in zip("×≥≤±·→Δαηω∞", _NAMES, strict=True)},
        **{sign: rf"\textsuperscript{{{k}}}" for k, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        "−": "$-$", "–": "--", "—": "---", "…": r"\dots{}", "“": "``", "”": "''", "\u00a0": "~", "⁻": r"\textsuperscript{--}",
        "✓": "(right)", "✕": "(wrong)",
    }
)  # fmt: skip


def escape(texts: Sequence[str]) -> list[str]:
    """Texts that LaTeX prints as they stand: special characters escaped, common signs as LaTeX writes them."""
    if not texts:
        return []
    column = pd.DataFrame({"text": [" ".join(text.split()) for text in texts]})
    escaped = column.style.format(escape="latex").hide(axis="index").hide(axis="columns").to_string(delimiter="")
    # a cell that starts with [ or * would be taken as an argument of the line break before it
    return ["{}" * line.startswith(("[", "*")) + line.translate(_SIGNS) for line in escaped.split("\n")[: len(texts)]]


def latex(table: Table) -> str:
    """Table environments with booktabs rules, no wider than the text and no longer than a page: a long table comes in parts.

    The steps of each row stand in a comment beside it.
    """
    loader = PackageLoader("tunescope.report", "templates")
    environment = Environment(
        loader=loader, undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        block_start_string="<%", block_end_string="%>", variable_start_string="<<", variable_end_string=">>", comment_start_string="<#",
        comment_end_string="#>",
    )  # fmt: skip
    title, note, *heads = escape([table.title, table.note, *table.columns])
    cells = iter(escape([cell for row in table.rows for cell in row.cells]))
    rows = [([next(cells) for _ in row.cells], " ".join(row.steps)) for row in table.rows]
    align = "".join(_align(table, k) for k in range(len(table.columns)))
    most = 25 if "p{" in align else 45
    parts = [rows[k : k + most] for k in range(0, len(rows), most)]
    return environment.get_template("table.tex.j2").render(title=title, note=note, label=table.name, align=align, heads=heads, parts=parts)


def _align(table: Table, k: int) -> str:
    """Numbers to the right, words to the left, sentences in a column that breaks lines."""
    if max(len(row.cells[k]) for row in table.rows) > 60:
        return r"p{0.45\linewidth}"
    return "l" if table.columns[k] in table.words else "r"


def write_tables(tables: Mapping[str, Table], folder: Path) -> list[Path]:
    """Write every table as `<name>.tex` and `<name>.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, table in tables.items():
        (folder / f"{name}.tex").write_text(latex(table), encoding="utf-8")
        table.data.to_csv(folder / f"{name}.csv", index=False)
        paths += [folder / f"{name}.tex", folder / f"{name}.csv"]
    return paths
