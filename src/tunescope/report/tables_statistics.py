"""Tables the analysis hands over as plain data: statistics of any shape, and examples on which the methods disagree."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from tunescope.study.arms import arm_name

from . import wording as w
from .tabular import Row, Table


def statistics_tables(statistics: Mapping[str, Any]) -> list[Table]:
    """Descriptive and exploratory tables as the analysis hands them over."""
    return [_statistic(name, entry) for name, entry in statistics.items() if isinstance(entry, Mapping) and entry.get("rows")]


def _statistic(name: str, entry: Mapping[str, Any]) -> Table:
    rows = list(entry["rows"])
    columns = [str(c) for c in entry.get("columns") or (list(rows[0]) if isinstance(rows[0], Mapping) else range(len(rows[0])))]
    values = [[row.get(c) for c in columns] if isinstance(row, Mapping) else list(row) for row in rows]
    shared = tuple(entry.get("steps") or ())
    lines = tuple(Row(tuple(value_text(c, v) for c, v in zip(columns, line, strict=True)), _own(shared, columns, line)) for line in values)
    words = frozenset(_heading(c) for k, c in enumerate(columns) if any(isinstance(line[k], str) for line in values))
    data = pd.DataFrame([[_plain(v) for v in line] for line in values], columns=columns)
    data["steps"] = ["; ".join(line.steps) for line in lines]
    title = str(entry.get("title") or _heading(name))
    return Table(f"statistics_{name}", title, tuple(_heading(c) for c in columns), lines, words, str(entry.get("note") or ""), data)


def _own(steps: tuple[str, ...], columns: Sequence[str], line: Sequence[Any]) -> tuple[str, ...]:
    """The table's steps that concern one row: those of its task, method, seed and setting where it names them (other steps have none).

    A row of one method against another concerns both.
    """
    values = dict(zip(columns, line, strict=True))
    named = {c: str(v) for c, v in values.items() if c in ("task", "method", "seed") and not (c == "method" and "against" in values)}
    if values.get("role") == "search" and None not in (rate := values.get("learning_rate"), size := values.get("batch_size")):
        named["setting"] = f"search-lr{rate:g}-bs{size}"
    elif values.get("role") == "final":
        named["setting"] = "final"
    found = tuple(s for s in steps if _concerns(s.split("/"), named) and _of_claim(s, str(values.get("claim", ""))))
    return found if "claim" in values else found or steps


def _of_claim(step: str, claim: str) -> bool:
    """Whether a step can stand behind a claim (`quality/sst2`, `overhead`); every step can behind one on all tasks, or none."""
    if claim == "overhead":
        return step.startswith("serve")
    _, _, task = claim.partition("/")
    return task in ("", "all") or step.split("/")[1:2] == [task]


def _concerns(parts: list[str], named: Mapping[str, str]) -> bool:
    train = parts[0] == "train" and len(parts) == 5
    has = {"task": parts[1] if len(parts) > 1 else None, "method": parts[2] if train else None, "seed": parts[4][5:] if train else None}
    has["setting"] = parts[3] if train else None
    return all(has[c] in (None, v) for c, v in named.items())


def _heading(column: str) -> str:
    text = w.metric_name(column)
    symbol = text.split(" ")[0] in ("p", "d", "r", "n", "df", "sd")
    return "I²" if text == "I2" else text if symbol or not text else text[0].upper() + text[1:]


def value_text(column: str, value: Any) -> str:
    """Any JSON value as a cell: p-values by column name, pairs as intervals, names as names."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        pair = len(value) == 2 and all(v is None or isinstance(v, int | float) for v in value)
        return w.interval(value) if pair else ", ".join(value_text(column, v) for v in value) or w.NONE
    if isinstance(value, Mapping):
        return "; ".join(f"{k}: {value_text(str(k), v)}" for k, v in value.items()) or w.NONE
    if w.missing(value):
        return w.NONE
    if not isinstance(value, int | float):
        return _words(column, str(value))
    if column in ("learning_rate", "seed"):
        return w.exact(value)
    is_p = column == "p" or column.startswith(("p ", "p_")) or column.endswith(("_p", " p"))
    return w.p_value(value) if is_p else w.count(value) if isinstance(value, int) and value < 10**7 else w.number(value)


def _words(column: str, text: str) -> str:
    """Tasks, claims, measures and scalars by their names, sentences with the page's signs."""
    if column.endswith("task"):
        return w.task_name(text)
    if column in ("measure", "metric", "condition", ""):
        return w.metric_name(text)
    if column == "arm":
        return arm_name(text)
    return w.claim_name(text) if column == "claim" else w.prose(text)


def _plain(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, list | tuple) else str(value) if isinstance(value, Mapping) else value


def disagreements_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Examples on which methods disagree. All text comes from data sets and models: it is not trusted anywhere downstream."""
    methods = list(dict.fromkeys(m for row in rows for m in _predicted(row)))
    lines = []
    for row in rows:
        head = (w.task_name(row.get("task")), w.shorten(str(row.get("example_id", "")), 60), _said(row.get("label")))
        lines.append(Row((*head, *(_verdict(row, m) for m in methods)), tuple(row.get("steps") or ())))
    columns = ("Task", "Example", "Label", *(f"{m} says" for m in methods))
    data = pd.DataFrame([{k: _plain(v) for k, v in row.items()} for row in rows])
    note = "Majority prediction over seeds with the share of seeds that gave it; ✓ right, ✕ wrong."
    return Table("disagreements", "Examples on which the methods disagree", columns, tuple(lines), frozenset(columns), note, data)


def _verdict(row: Mapping[str, Any], method: str) -> str:
    """What a method says, whether it is right, and how many of its seeds say so."""
    right, share = ((row.get(k) or {}).get(method) for k in ("right", "agreement"))
    mark = "" if right is None else " ✓" if right else " ✕"
    return _said(_predicted(row).get(method)) + mark + ("" if share is None else f" ({w.percent(share, 0)})")


def _predicted(row: Mapping[str, Any]) -> Mapping[str, Any]:
    found = row.get("predictions")
    return found if isinstance(found, Mapping) else {}


def _said(value: Any) -> str:
    if value == "":
        return "(no answer)"
    return w.shorten(value if isinstance(value, str) else value_text("", value), 120)
