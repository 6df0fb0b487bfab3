"""Tidy tables read from finished steps. A step counts only when its result.json is there; what cannot be read is named, never fatal."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from tunescope.records import FinishedStep, read_step
from tunescope.study.plan import build_plan
from tunescope.study.registration import FILE as REGISTRATION
from tunescope.study.schema import Study

from .columns import COLUMNS
from .findings import Missing
from .overview import overview

MissingByStep = Mapping[str, tuple[str, str]]
"""step id -> (state, why)."""
_DOCUMENTS = ("drift_summary.json", "correlations.json", "correctness.json")


class Planned(Protocol):
    """A planned step, as far as completeness needs it (`study.plan.Step`)."""

    @property
    def id(self) -> str: ...


@dataclass(frozen=True, repr=False)
class Frames:
    """The store as tables. See COLUMNS; `launches` has one row per good launch and cell, `engines` one per launch, good or not.

    `series` is wide: further logged names (such as `grad_norm/layer_3`) are further columns.
    """

    steps: pd.DataFrame
    metrics: pd.DataFrame
    predictions: pd.DataFrame
    baselines: pd.DataFrame
    drift: pd.DataFrame
    series: pd.DataFrame
    launches: pd.DataFrame
    engines: pd.DataFrame
    noise: pd.DataFrame
    planned: tuple[str, ...] = ()
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    """step id -> JSON artefacts by file name: drift_summary, correlations, correctness (.json), launches, open_loop (.jsonl: lists)."""
    problems: list[tuple[str, str]] = field(default_factory=list)
    """(step id, what could not be read)."""
    registration: dict[str, Any] | None = None
    """registration.json of the store; None when there is none, {} when it cannot be read."""
    headline: tuple[str, ...] = ()
    """Study and verdicts of the report beside the tables, for `repr`."""

    def __repr__(self) -> str:
        return overview(self)

    def without(self, step_ids: Iterable[str]) -> "Frames":
        """The same tables less everything that came from these steps (stale results, for one)."""
        drop = set(step_ids)
        kept = {name: frame[~frame.step_id.isin(drop)] for name, frame in self.tables().items()}
        documents = {i: d for i, d in self.documents.items() if i not in drop}
        return replace(self, **kept, documents=documents)

    def tables(self) -> dict[str, pd.DataFrame]:
        """All tables by name."""
        return {name: getattr(self, name) for name in COLUMNS}

    @cached_property
    def values(self) -> dict[tuple[str, str], list[tuple[str | None, float]]]:
        """(step id, metric or resource) -> its (split, value) pairs."""
        found: dict[tuple[str, str], list[tuple[str | None, float]]] = {}
        m = self.metrics
        for step, name, split, value in zip(m.step_id, m.name, m.split, m.value, strict=True):
            found.setdefault((step, name), []).append((split if isinstance(split, str) else None, float(value)))
        return found

    @cached_property
    def scored(self) -> dict[str, pd.DataFrame]:
        """step id of a final run -> its predictions by example id."""
        groups = self.predictions.groupby("step_id", sort=False)
        return {str(step): rows.drop_duplicates("example_id").set_index("example_id") for step, rows in groups}

    @cached_property
    def final_runs(self) -> dict[tuple[str, str], dict[int, str]]:
        """(task, method) -> {seed: step id} of the finished final runs."""
        rows = self.steps[(self.steps.kind == "train") & (self.steps.role == "final")]
        found: dict[tuple[str, str], dict[int, str]] = {}
        for task, method, seed, step in zip(rows.task, rows.method, rows.seed, rows.step_id, strict=True):
            found.setdefault((task, method), {})[int(seed)] = step
        return found

    @cached_property
    def _outputs(self) -> dict[str, dict[str, Any]]:
        return dict(zip(self.steps.step_id, self.steps.outputs, strict=True))

    def outputs(self, step_id: str) -> dict[str, Any]:
        """The outputs of one finished step, {} when it is missing."""
        return self._outputs.get(step_id, {})

    def of_kind(self, kind: str, task: str | None = None) -> list[str]:
        """Ids of finished steps of a kind (and task)."""
        rows = self.steps[self.steps.kind == kind]
        return list(rows.step_id if task is None else rows[rows.task == task].step_id)

    def write(self, results_dir: Path) -> list[Path]:
        """Write every table as `<name>.parquet` (nested values as JSON text) and the documents as documents.json."""
        results_dir.mkdir(parents=True, exist_ok=True)
        paths = []
        for name, frame in self.tables().items():
            nested = [c for c, kind in COLUMNS[name].items() if kind == "object"]
            path = results_dir / f"{name}.parquet"
            frame.assign(**{c: [_text(v) for v in frame[c]] for c in nested}).to_parquet(path, index=False)
            paths.append(path)
        rest = {"planned": self.planned, "documents": self.documents, "problems": self.problems, "registration": self.registration}
        (results_dir / "documents.json").write_text(json.dumps(rest, indent=1))
        return paths


def collect(
    root: Path, study: Study, planned: Sequence[Planned] | None = None, missing: Sequence[Missing] | MissingByStep | None = None
) -> Frames:
    """Read the finished steps of a study's store.

    Args:
        root: the store, `<runs>/<study name>`; steps lie in `root/steps/<id>/`.
        study: the study; its plan says which steps belong to it when `planned` is not given.
        planned: the steps to read, in order (`study.plan.Step`); folders of other steps are ignored.
        missing: steps that have no valid result; a folder that such a step left (stale, say) is not read.
    """
    ids = tuple(step.id for step in (build_plan(study).steps if planned is None else planned))
    reader, absent = _Reader(), {row.step for row in as_missing(missing)}
    for step_id in ids:
        if step_id in absent:
            continue
        folder = root / "steps" / step_id
        if (folder / "result.json").is_file():
            reader.add(step_id, folder)
    return Frames(**reader.frames(), planned=ids, documents=reader.documents, problems=reader.problems, registration=_registration(root))


def _registration(root: Path) -> dict[str, Any] | None:
    """The registered plan kept with the runs; one that cannot be read is not the same as none."""
    if not (root / REGISTRATION).exists():
        return None
    try:
        value = json.loads((root / REGISTRATION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def as_missing(missing: Sequence[Missing] | MissingByStep | None) -> list[Missing]:
    """Missing steps as rows, from rows or from {step id: (state, why)}."""
    if isinstance(missing, Mapping):
        return [Missing(step=step, state=state, why=why) for step, (state, why) in missing.items()]
    return list(missing or [])


def load_results(results_dir: Path) -> Frames:
    """Read back what `Frames.write` wrote."""
    tables = {}
    for name, columns in COLUMNS.items():
        frame = pd.read_parquet(results_dir / f"{name}.parquet")
        for column in (c for c, kind in columns.items() if kind == "object"):
            frame[column] = pd.Series([_value(v) for v in frame[column]], index=frame.index, dtype="object")
        tables[name] = frame
    rest = json.loads((results_dir / "documents.json").read_text())
    problems = [(step, text) for step, text in rest["problems"]]
    return Frames(
        **tables, planned=tuple(rest["planned"]), documents=rest["documents"], problems=problems, registration=rest.get("registration")
    )


def _text(value: Any) -> str | None:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return None if value is None or value is pd.NA or (isinstance(value, float) and value != value) else json.dumps(value)


def _value(text: Any) -> Any:
    return json.loads(text) if isinstance(text, str) else None


class _Reader:
    """Gathers rows step by step; a file that cannot be read becomes a problem, and its step keeps what could be."""

    def __init__(self) -> None:
        self.rows: dict[str, list[pd.DataFrame]] = {name: [] for name in COLUMNS}
        self.documents: dict[str, dict[str, Any]] = {}
        self.problems: list[tuple[str, str]] = []

    def add(self, step_id: str, folder: Path) -> None:
        step = self._try(step_id, "result.json", lambda: read_step(folder))
        if step is None:
            return
        kind = str(step.inputs.get("kind") or step_id.split("/")[0])
        run = {"step_id": step_id, **{c: step.inputs.get(c) for c in ("task", "method", "role", "seed")}}
        self._add_records(step, kind, run)
        if kind == "train":
            self._table("drift", folder / "drift.parquet", run)
            self._series(folder / "metrics.jsonl", run)
            if run["role"] == "final":
                self._table("predictions", folder / "predictions.parquet", run)
        elif kind == "baseline":
            self._table("baselines", folder / "predictions.parquet", {"step_id": step_id, "task": run["task"]})
        elif kind == "base-probe":
            self._table("noise", folder / "noise.parquet", {"step_id": step_id, "task": run["task"]})
        elif kind == "serve":
            self._launches(step_id, folder / "launches.jsonl")
        for name in _DOCUMENTS:
            if (folder / name).is_file():
                self._document(step_id, folder / name)

    def frames(self) -> dict[str, pd.DataFrame]:
        return {name: _typed(pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(), name) for name, rows in self.rows.items()}

    def _try(self, step_id: str, name: str, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (OSError, ValueError, KeyError, TypeError) as error:  # JSON, parquet and arrow errors are ValueErrors or OSErrors
            self.problems.append((step_id, f"{name} cannot be read: {error}"))
            return None

    def _add_records(self, step: FinishedStep, kind: str, run: dict[str, Any]) -> None:
        result, head = step.result, json.loads((step.folder / "step.json").read_text())
        facts = {"kind": kind, "fingerprint": head.get("fingerprint"), "inputs": step.inputs}
        facts |= {"machine": _machine(step.folder), "started": result.get("started"), "finished": result.get("finished")}
        facts |= {"outputs": result.get("outputs") or {}, "notes": list(result.get("notes") or [])}
        self.rows["steps"].append(pd.DataFrame({key: [value] for key, value in {**run, **facts}.items()}))
        found = [{**run, "kind": kind, "source": s, **m} for s in ("metric", "resource") for m in result.get(f"{s}s") or []]
        if found:
            self.rows["metrics"].append(pd.DataFrame(found))

    def _table(self, name: str, path: Path, run: dict[str, Any]) -> None:
        if not path.is_file():
            self.problems.append((run["step_id"], f"{path.name} is missing"))
            return
        frame = self._try(run["step_id"], path.name, lambda: pd.read_parquet(path))
        if frame is not None and len(frame):
            self.rows[name].append(frame.assign(**run))

    def _series(self, path: Path, run: dict[str, Any]) -> None:
        if not path.is_file():
            return
        rows = [row for row in _json_lines(path) if "step" in row]
        if rows:
            self.rows["series"].append(pd.DataFrame(rows).assign(**run))

    def _document(self, step_id: str, path: Path) -> None:
        content = self._try(step_id, path.name, lambda: json.loads(path.read_text()))
        if isinstance(content, dict):
            self.documents.setdefault(step_id, {})[path.name] = content

    def _launches(self, step_id: str, path: Path) -> None:
        if not path.is_file():
            self.problems.append((step_id, f"{path.name} is missing"))
            return
        launches = list(_json_lines(path))
        opened = path.with_name("open_loop.jsonl")  # only where the study asks for it
        self.documents.setdefault(step_id, {})["launches.jsonl"] = launches
        self.documents[step_id]["open_loop.jsonl"] = list(_json_lines(opened)) if opened.is_file() else []
        engines = [{**{k: v for k, v in row.items() if k != "cells"}, "step_id": step_id} for row in launches]
        good = [row for row in launches if row.get("ok") and not row.get("compiled_during_inference")]
        cells = [
            {**_cell(c), "step_id": step_id, **{k: row.get(k) for k in ("arm", "launch", "order")}} for row in good for c in row["cells"]
        ]
        for name, rows in (("engines", engines), ("launches", cells)):
            if rows:
                self.rows[name].append(pd.DataFrame(rows))


def _machine(folder: Path) -> str | None:
    """Tells the machines of steps apart without their names, which no published table needs; None where provenance does not tell."""
    try:
        host = json.loads((folder / "provenance.json").read_text())["host"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return hashlib.sha256(str(host).encode()).hexdigest()[:8]


def _cell(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell with its quantile lists spread into columns."""
    flat = {k: v for k, v in cell.items() if k not in ("ttft_ms", "tpot_ms", "latency_ms")}
    for name in ("ttft_ms", "tpot_ms", "latency_ms"):
        values = cell.get(name) or [None] * 3
        flat |= {f"{name}_p{q}": v for q, v in zip((50, 95, 99), values, strict=False)}
    return flat


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; a torn last line (a killed writer) is skipped."""
    for line in path.read_text().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            yield value


def _typed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """All declared columns first, with their types; further columns keep theirs (only `series` has any)."""
    columns = COLUMNS[name]
    extra = [c for c in frame.columns if c not in columns] if name == "series" else []
    frame = frame.reindex(columns=[*columns, *extra])
    for column, kind in columns.items():
        if kind == "bool":
            frame[column] = frame[column].fillna(False)
        elif kind == "int64":
            frame[column] = pd.to_numeric(frame[column]).fillna(-1)
        elif kind == "float64":
            frame[column] = pd.to_numeric(frame[column])
    text = pd.StringDtype(na_value=float("nan"))
    return frame.astype({c: text if kind == "str" else kind for c, kind in columns.items()})
