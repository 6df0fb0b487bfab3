"""What publish leaves in the store."""

import json
from pathlib import Path

import pandas as pd

from tunescope.report import provenance
from tunescope.report.publish import publish
from tunescope.study.load import load_study
from tunescope.study.schema import Execution

from .conftest import Published


def test_every_promised_file_is_there(published: Published) -> None:
    results = published.root / "results"
    names = {p.name for p in results.iterdir()}
    json_files = {"baseline_results.json", "drift_analysis_results.json", "deployment_benchmark_results.json"}
    assert {"report.html", "figures", "tables", "metrics.parquet", "predictions.parquet", "drift.parquet", *json_files} <= names
    assert all(json.loads((results / name).read_text()) for name in json_files)
    assert len(pd.read_parquet(results / "metrics.parquet")) == len(published.frames.metrics)
    final = json.loads((published.root / "analysis" / "final_analysis_report.json").read_text())
    assert [c["id"] for c in final["claims"]] == [c.id for c in published.findings.claims]


def test_publishing_again_replaces_and_leaves_nothing_behind(published: Published) -> None:
    p, results = published, published.root / "results"
    (results / "figures" / "old.svg").write_text("stale")
    (results / "tables" / "old").mkdir()
    (results / "notes.txt").write_text("a user's own file")
    before = {f.relative_to(results): f.read_bytes() for f in results.rglob("*") if f.is_file() and f.suffix != ".parquet"}
    assert publish(p.findings, p.frames, p.root, p.study, Execution()) == results / "report.html"
    after = {f.relative_to(results): f.read_bytes() for f in results.rglob("*") if f.is_file() and f.suffix != ".parquet"}
    assert set(before) - set(after) == {Path("figures/old.svg")} and not (results / "tables" / "old").exists()
    assert all(after[name] == before[name] for name in after), "the same findings give the same bytes"
    assert [x.name for x in p.root.iterdir() if x.name.startswith(".")] == []


def test_machines_are_grouped_and_unreadable_provenance_is_said(tmp_path: Path) -> None:
    for step, text in {"a": '{"cpu": "X", "cores": 2}', "b": '{"cpu": "X", "cores": 2}', "c": "{torn"}.items():
        (tmp_path / "steps" / step).mkdir(parents=True)
        (tmp_path / "steps" / step / "provenance.json").write_text(text)
    found = provenance.machines(tmp_path, ["a", "b", "c", "d"])
    assert [(f.rows[0], f.steps) for f in found] == [
        (("Processor", "X (2 cores)"), ("a", "b")),
        (("Provenance", "none recorded"), ("c", "d")),
    ]


def test_commands_name_a_study_that_tunescope_finds() -> None:
    file = load_study("quickstart")
    assert provenance.study_argument(file.study, file.execution) == "quickstart"
    changed = file.study.model_copy(update={"seeds": (1,)})
    assert provenance.study_argument(changed, file.execution) == "runs/quickstart/study.yaml"


def test_data_sources_fall_back_to_the_manifest(published: Published, tmp_path: Path) -> None:
    entry = {"source": "hub", "revision": "abc", "licence": "CC <BY>", "parts": {"train": 1000}, "made_here": True}
    (tmp_path / "manifest.json").write_text(json.dumps({"tasks": {"sst2": entry}}))
    frames = published.frames.without(["data/sst2", "data/squad_v2"])
    found = provenance.data_sources(frames, published.study, Execution(paths={"data": str(tmp_path)}))  # type: ignore[arg-type]
    assert [(s.task, s.source, s.licence, s.sizes) for s in found] == [("sst2", "hub", "CC <BY>", "train 1,000")]
    assert "not the published data" in found[0].remark
