"""Read prepared examples back. Needs pyarrow alone: every step reads data, and most of them should not wait for `datasets` to import."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from tunescope.errors import StudyError

from . import manifest
from .splits import PARTS, PartName
from .tasks import Example, get_task


def load_examples(data_dir: Path, task: str, part: PartName) -> list[Example]:
    """The examples of one part, in the order of `parts.json`, after checking every file of the task against the manifest.

    Raises:
        StudyError: unknown task or part.
        PrerequisiteError: data not prepared, missing or changed.
    """
    formulation = get_task(task)
    if part not in PARTS:
        raise StudyError(f"no part named '{part}'; parts are {', '.join(get_args(PartName))}")
    manifest.verify(data_dir, task)
    parts = json.loads((data_dir / task / "parts.json").read_text(encoding="utf-8"))
    ids, groups = parts[part], parts["groups"]
    rows = read_rows(data_dir / task, ids)
    return [formulation.example(row | {"example_id": i, "group": groups.get(i)}) for i, row in zip(ids, rows, strict=True)]


def read_rows(folder: Path, ids: Iterable[str]) -> list[dict[str, Any]]:
    """Rows by id (`<split>/<row>`) of a DatasetDict that `save_to_disk` wrote."""
    import pyarrow as pa

    places = [(split, int(row)) for split, row in (i.split("/") for i in ids)]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for split in {split for split, _ in places}:
        wanted = sorted({row for s, row in places if s == split})
        rows = _table(folder / split).take(pa.array(wanted, type=pa.int64())).to_pylist()
        found.update({(split, number): row for number, row in zip(wanted, rows, strict=True)})
    return [dict(found[place]) for place in places]


def _table(folder: Path) -> Any:
    """One split as an Arrow table: the stream files that `state.json` lists."""
    import pyarrow as pa

    names = [f["filename"] for f in json.loads((folder / "state.json").read_text())["_data_files"]]
    tables = []
    for name in names:
        with pa.memory_map(str(folder / name)) as file:
            tables.append(pa.ipc.open_stream(file).read_all())
    return pa.concat_tables(tables)
