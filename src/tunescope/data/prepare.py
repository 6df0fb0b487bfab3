"""Prepare one task: read its source, draw its parts, count duplicates, write data and manifest. The `data` step and `tunescope data`."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock

from tunescope.records import Metric, StepContext, StepResult
from tunescope.study.inputs import DataInputs
from tunescope.study.schema import DataSpec, Limits, TaskName

from . import manifest
from .leakage import leakage
from .sources import REPOSITORIES, Raw, Source, open_source
from .splits import PARTS, Parts, make_parts
from .tasks import Task, get_task

Entry = dict[str, Any]


def prepare(
    task: TaskName, spec: DataSpec, limits: Limits, probe_examples: int, out_dir: Path, files_dir: Path | None = None
) -> Entry:  # fmt: skip
    """Prepare one task below `out_dir` and return its manifest entry.

    Idempotent: where the same request on the same source was prepared before, its files are verified and nothing is written. Equal requests
    give equal bytes in any folder. Safe beside other processes that prepare the same folder.

    Raises:
        StudyError: unknown task.
        PrerequisiteError: the source is missing, damaged or malformed, or prepared files were changed.
    """
    get_task(task)
    out_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(out_dir / f".{task}.lock"):
        source = open_source(task, spec, out_dir, files_dir)
        request = _request(task, spec, limits, probe_examples, source)
        known = manifest.read_entry(out_dir, task)
        if known is not None and known["request"] == request and (out_dir / task).exists():
            manifest.verify(out_dir, task)
            return known
        raw = source.read()
        parts = make_parts(task, raw, spec, limits, probe_examples)
        entry = _describe(task, request, source, raw, parts)
        entry["files"] = _write(out_dir, task, raw, parts)
        manifest.write_entry(out_dir, task, entry)
        return entry


def run_data(inputs: DataInputs, ctx: StepContext) -> StepResult:
    """The `data` step: prepare the task in the context's data folder and keep a copy of its manifest entry."""
    ctx.progress(0, 1, f"preparing {inputs.task}")
    entry = prepare(inputs.task, inputs.data, inputs.limits, inputs.probe_examples, ctx.data_dir, ctx.files_dir)
    manifest.write_json(ctx.folder / "manifest_entry.json", entry)
    ctx.progress(1, 1, f"{inputs.task} ready")
    named = ("source", "revision", "made_here", "comparable", "licence", "rows", "parts", "label_balance", "leakage", "probe_sha256")
    return StepResult(
        # In one order: an entry read back has its keys sorted, and metrics are a list, so their order enters the digest.
        metrics=[Metric(name="examples", value=(n := entry["parts"][part]), unit="examples", split=part, n=n) for part in PARTS],
        outputs={"data_sha256": manifest.digest(entry), **{name: entry[name] for name in named}},
        content=["manifest_entry.json"],
        notes=[*entry["notes"], *_duplicate_notes(entry["leakage"])],
    )


def _request(task: TaskName, spec: DataSpec, limits: Limits, probe_examples: int, source: Source) -> Entry:
    """All that decides the prepared bytes; equal requests need no new preparation."""
    return {
        "source": spec.source, "revision": source.revision, "origin": source.origin, "split_seed": spec.split_seed,
        "selection_share": spec.selection_share, "limits": limits.model_dump(mode="json"), "probe_examples": probe_examples,
    }  # fmt: skip


def _describe(task: TaskName, request: Entry, source: Source, raw: Raw, parts: Parts) -> Entry:
    """The manifest entry, without the checksums of files."""
    formulation = get_task(task)
    rows = {name: [_row(raw, i) for i in ids] for name, ids in parts.ids.items()}
    from_hub = request["source"] == "hub"
    return {
        "source": request["source"], "repository": REPOSITORIES[task][0] if from_hub else None, "revision": source.revision,
        "licence": source.licence, "made_here": source.made_here, "comparable": parts.comparable, "notes": parts.notes,
        "test_split": parts.test_split, "request": request,
        "rows": {split: len(all_rows) for split, all_rows in raw.splits.items()},
        "parts": {name: len(ids) for name, ids in parts.ids.items()},
        "label_balance": {name: _balance(formulation, rows[name]) for name in PARTS},
        "length_words": {name: _lengths(formulation, rows[name]) for name in PARTS},
        "leakage": leakage(task, {name: rows[name] for name in ("train", "selection", "test")}),
        "parts_sha256": _sha256(parts.document()),
        "probe_sha256": _sha256([[i, formulation.example(row).prompt] for i, row in zip(parts.ids["probe"], rows["probe"], strict=True)]),
    }  # fmt: skip


def _row(raw: Raw, example_id: str) -> Mapping[str, Any]:
    split, number = example_id.split("/")
    return raw.splits[split][int(number)]


def _balance(task: Task, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of each label among the labelled rows (answerable or not, for QA)."""
    if task.kind == "qa":
        names = ["answerable" if row["answers"]["text"] else "unanswerable" for row in rows]
    else:
        names = [task.labels[row["label"]] for row in rows if row["label"] >= 0]
    counts = Counter(names)
    return {name: counts[name] / len(names) for name in sorted(counts)}


def _lengths(task: Task, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Words (between spaces) of the input texts. Tokens depend on the model: training counts what it truncates."""
    words = [sum(len(row[column].split()) for column in task.text_columns) for row in rows]
    return {"median": median(words), "max": max(words)} if words else {}


def _sha256(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()


def _duplicate_notes(found: Mapping[str, Mapping[str, int]]) -> list[str]:
    pairs = ((pair.split("-"), counts["normalised"]) for pair, counts in found.items() if pair.startswith("train-"))
    return [f"{n} {second} inputs also occur in {first} (normalised); kept" for (first, second), n in pairs if n]


def _write(out_dir: Path, task: TaskName, raw: Raw, parts: Parts) -> dict[str, dict[str, Any]]:
    """Write the task's folder beside the old one, then change places."""
    new, old, final = out_dir / f".{task}.partial", out_dir / f".{task}.old", out_dir / task
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    _save(task, raw, new)
    manifest.write_json(new / "parts.json", parts.document())
    if final.exists():
        os.replace(final, old)
    os.replace(new, final)
    shutil.rmtree(old, ignore_errors=True)
    return manifest.checksums(final, out_dir)


def _save(task: TaskName, raw: Raw, folder: Path) -> None:
    """`DatasetDict.save_to_disk` with equal bytes for equal rows: no download records, and a fingerprint made from the rows."""
    import pyarrow as pa
    from datasets import Dataset, DatasetDict, DatasetInfo, NamedSplit
    from datasets.table import InMemoryTable
    from datasets.utils.logging import disable_progress_bar, enable_progress_bar

    features = _features(task)
    splits = {}
    for name, rows in raw.splits.items():
        table = pa.Table.from_pylist(rows, schema=features.arrow_schema)
        info = DatasetInfo(features=features)
        splits[name] = Dataset(InMemoryTable(table), info, NamedSplit(name), fingerprint=_sha256(rows)[:16])
    disable_progress_bar()
    try:
        DatasetDict(splits).save_to_disk(str(folder), num_shards=dict.fromkeys(splits, 1))
    finally:
        enable_progress_bar()


def _features(task: TaskName) -> Any:
    """The hub's columns and types."""
    from datasets import ClassLabel, Features, List, Value

    formulation = get_task(task)
    text = Value("string")
    if formulation.kind == "qa":
        answers = {"text": List(text), "answer_start": List(Value("int32"))}
        return Features({"id": text, "title": text, "context": text, "question": text, "answers": answers})
    columns = dict.fromkeys(formulation.text_columns, text)
    return Features({**columns, "label": ClassLabel(names=list(formulation.labels)), "idx": Value("int32")})
