"""A table: formatted cells for reading, full-precision values for machines, step ids on every row."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd
from pydantic import BaseModel

from . import wording as w


@dataclass(frozen=True)
class Row:
    """Formatted cells of one row and the steps its numbers came from."""

    cells: tuple[str, ...]
    steps: tuple[str, ...]
    mark: str = ""
    """`published` for context that was not measured here; a verdict for claims."""
    more: tuple[tuple[str, str], ...] = ()
    """(step, text) of everything that the row sums up, folded in on the page."""


@dataclass(frozen=True)
class Table:
    """One table. Columns named in `words` are text (left-aligned), the others numbers."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    words: frozenset[str]
    note: str = ""
    data: pd.DataFrame = field(default_factory=pd.DataFrame, compare=False)
    """The same rows at full precision, for CSV."""

    @property
    def steps(self) -> list[str]:
        return sorted({s for row in self.rows for s in row.steps})

    @cached_property
    def one_source(self) -> bool:
        """Whether all rows come from the same steps, which then stand in the caption."""
        return len({row.steps for row in self.rows}) == 1

    @cached_property
    def long(self) -> frozenset[str]:
        """Columns with sentences in them."""
        return frozenset(c for k, c in enumerate(self.columns) if any(len(row.cells[k]) > 26 for row in self.rows))


Format = tuple[str, Callable[[Any], str]]


def table_of(
    name: str, title: str, rows: Sequence[Any], formats: Sequence[Format], words: Iterable[str], note: str = "", mark: Any = None
) -> Table:
    """A table with one formatter per column, over rows that carry `steps`; columns empty in every row are dropped."""
    cells = [tuple(form(row) for _, form in formats) for row in rows]
    keep = [k for k, (head, _) in enumerate(formats) if head in words or any(line[k] != w.NONE for line in cells)]
    lines = tuple(
        Row(tuple(line[k] for k in keep), tuple(row.steps), mark(row) if mark else "") for line, row in zip(cells, rows, strict=True)
    )
    return Table(name, title, tuple(formats[k][0] for k in keep), lines, frozenset(words), note, flat(rows))


def flat(rows: Sequence[BaseModel]) -> pd.DataFrame:
    """Model rows as plain columns: intervals split in two, lists joined, mappings spread."""
    return pd.DataFrame([dict(_spread(row.model_dump())) for row in rows])


def _spread(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if key == "interval" or key.endswith("_interval"):
            low, high = value or (None, None)
            yield from ((f"{key}_low", low), (f"{key}_high", high))
        elif isinstance(value, Mapping):
            for name, pair in value.items():
                yield from ((f"{name}_mean", pair[0]), (f"{name}_sd", pair[1]))
        else:
            yield key, "; ".join(map(str, value)) if isinstance(value, list | tuple) else value
