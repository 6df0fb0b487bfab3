"""The JSON documents of a study, as plain dictionaries in the forms of `documents`: finite numbers, null for what is missing."""

from typing import Any

import numpy as np
from pydantic import BaseModel

from tunescope.study.identity import fingerprint
from tunescope.study.schema import Study

from .documents import SCHEMA, BaselineResults, DeploymentResults, DriftResults, FinalReport
from .findings import Findings
from .frames import Frames
from .tables import plain


def _formed(form: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON, checked against a document's form."""
    return form.model_validate(plain(values)).model_dump(mode="json", by_alias=True)


def final_report_json(findings: Findings, study: Study) -> dict[str, Any]:
    """`analysis/final_analysis_report.json`: the verdict and the registered plan first, then everything the report says."""
    whole = next((c for c in findings.claims if c.id == "hypothesis"), None)
    head = {
        "schema": SCHEMA,
        "verdict": whole.verdict if whole else "inconclusive",
        "registered": study.analysis.model_dump(mode="json"),
        "study_sha256": fingerprint(study),
        "seeds": list(study.seeds),
    }
    return _formed(FinalReport, head | findings.model_dump(mode="json"))


def _head(findings: Findings) -> dict[str, Any]:
    return {"schema": SCHEMA, "study": findings.study, "generated": findings.generated, "complete": findings.complete}


def baseline_results(frames: Frames, findings: Findings) -> dict[str, Any]:
    """`results/baseline_results.json`: every baseline metric with interval, McNemar tests between systems, published context."""
    tasks: dict[str, Any] = {}
    for row in findings.baselines:
        entry = tasks.setdefault(row.task, {"measured": {}, "published": [], "mcnemar": [], "steps": row.steps})
        values = row.model_dump(mode="json", exclude={"task", "measured_here", "steps"})
        if row.measured_here:
            entry["measured"].setdefault(row.system, {})[row.metric] = {k: values[k] for k in ("value", "sd", "interval", "split", "n")}
        else:
            entry["published"].append(values)
    for task, entry in tasks.items():
        entry["mcnemar"] = [t for step in frames.of_kind("baseline", task) for t in frames.outputs(step).get("mcnemar") or []]
    return _formed(BaselineResults, _head(findings) | {"tasks": tasks})


def drift_results(frames: Frames, findings: Findings) -> dict[str, Any]:
    """`results/drift_analysis_results.json`: claims, per-method means, every run's scalar, tables, and each task's drift summary."""
    names = ("drift_sensitivity", "noise_floor", "correlations", "frontier")
    summaries = {}
    for step in frames.of_kind("drift"):
        task = frames.steps[frames.steps.step_id == step].task.iloc[0]
        summaries[str(task)] = frames.documents.get(step, {}).get("drift_summary.json")
    methods = [
        {"task": r.task, "method": r.method, "mean": r.drift_mean, "sd": r.drift_sd, "n_seeds": r.n_seeds, "saturated": r.drift_saturated}
        for r in findings.table
    ]
    body = {
        "claims": [c.model_dump(mode="json") for c in findings.claims if c.dimension == "drift"],
        "methods": methods,
        "runs": _runs(frames, "drift"),
        "tables": {name: findings.statistics[name] for name in names if name in findings.statistics},
        "tasks": summaries,
    }
    return _formed(DriftResults, _head(findings) | body)


def _runs(frames: Frames, name: str) -> list[dict[str, Any]]:
    rows = frames.metrics[(frames.metrics.kind == "train") & (frames.metrics.name == name) & (frames.metrics.split == "probe")]
    columns = ("step_id", "task", "method", "role", "seed", "value")
    return [{c: plain(v) for c, v in zip(columns, row, strict=True)} for row in rows[list(columns)].itertuples(index=False)]


def deployment_results(frames: Frames, findings: Findings) -> dict[str, Any]:
    """`results/deployment_benchmark_results.json`: the claim, every cell, start-up and memory per arm, switching, checks."""
    documents = [frames.documents.get(step, {}) for step in frames.of_kind("serve")]
    names = (
        "tie_check", "overhead", "prefill_decoding", "overhead_scaling", "overhead_surface", "merged_or_adapters", "serving_memory",
        "switching", "open_loop",
    )  # fmt: skip
    body = {
        "claims": [c.model_dump(mode="json") for c in findings.claims if c.dimension == "overhead"],
        "formulas": {
            "ms_per_token": "time of a batch / output tokens of one request, prefill included",
            "ttft_ms": "first token - queued",
            "tpot_ms": "(end to end - TTFT) / (tokens - 1)",
            "itl_ms": "gap between two tokens of one answer (open loop only)",
            "overhead": "ms_per_token of an arm / of the baseline arm - 1, geometric mean over launches",
        },
        "cells": [r.model_dump(mode="json") for r in findings.serving],
        "arms": _arms(frames),
        "tables": {name: findings.statistics[name] for name in names if name in findings.statistics},
        "correctness": next((d["correctness.json"] for d in documents if "correctness.json" in d), None),
        "outputs": [frames.outputs(step) for step in frames.of_kind("serve")],
    }
    return _formed(DeploymentResults, _head(findings) | body)


def _arms(frames: Frames) -> list[dict[str, Any]]:
    """Start-up, memory, load and switching per arm: medians over good launches, and how many failed."""
    found = []
    for arm, rows in frames.engines.groupby("arm", sort=False):
        good = rows[rows.ok.astype(bool)]
        names = ("cold_start_s", "engine_start_s", "kv_blocks", "weight_bytes")
        loads = [float(v) for values in good.load_s if isinstance(values, list) for v in values]
        entry = {"arm": arm, "launches": len(good), "failed": len(rows) - len(good), **{n: plain(float(good[n].median())) for n in names}}
        entry |= {"max_loras": plain(rows.max_loras.iloc[0]), "load_s_median": float(np.median(loads)) if loads else None}
        entry["switching"] = [s for s in good.switching if isinstance(s, list) and s]
        entry["errors"] = sorted({str(e) for e in rows.error.dropna()})
        found.append(entry)
    return found
