"""The findings as tables: claims, master table, baselines, costs, serving, and what the analysis adds."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from tunescope.analysis.findings import BaselineRow, Claim, CostRow, Findings, ServingRow, TaskRow
from tunescope.analysis.verdicts import comparable, said
from tunescope.study.arms import arm_name

from . import wording as w
from .tables_statistics import disagreements_table, statistics_tables
from .tabular import Format, Row, Table, table_of


def build_tables(findings: Findings, candidate: str = "lora") -> dict[str, Table]:
    """Every table of the report by name; a table without rows is left out."""
    overhead = next((c for c in findings.claims if c.dimension == "overhead"), None)
    found = [
        claims_table(findings.claims), master_table(findings.table, overhead, candidate), baselines_table(findings.baselines),
        costs_table(findings.costs), serving_table(findings.serving), *statistics_tables(findings.statistics),
        disagreements_table(findings.disagreements),
    ]  # fmt: skip
    return {table.name: table for table in found if table.rows}


def claims_table(claims: Sequence[Claim]) -> Table:
    """Every claim with estimate, interval, margin, p and verdict; no numbers where a failed gate leaves nothing to compare."""
    empty = {c.id for c in claims if not comparable(c, claims)}

    def unless_empty(form: Callable[[Claim], str]) -> Callable[[Claim], str]:
        return lambda c: w.NONE if c.id in empty else form(c)

    formats: list[Format] = [
        ("Claim", lambda c: c.dimension if c.dimension in ("hypothesis", "overhead") else f"{c.dimension}, {w.task_name(c.task)}"),
        ("Verdict", lambda c: c.verdict),
        ("Estimate", lambda c: w.not_comparable(c) if c.id in empty else w.percent(c.estimate)),
        ("Interval", unless_empty(lambda c: w.percent_interval(c.interval))),
        (
            "Margin",
            lambda c: w.NONE if c.margin is None else f"{'≤' if c.dimension == 'overhead' else '≥'}{w.SPACE}{w.margin_percent(c.margin)}",
        ),
        ("p", unless_empty(lambda c: w.p_value(c.p))),
        ("p (Holm)", unless_empty(lambda c: w.p_value(c.p_adjusted))),
        ("p opposite", unless_empty(lambda c: w.p_value(c.p_opposite))),
        ("Attainable p", unless_empty(lambda c: w.p_value(c.attainable_p))),
        ("df", unless_empty(lambda c: w.number(c.df))),
        ("Seeds", lambda c: w.count(c.n_seeds)),
        ("Examples", lambda c: w.count(c.n_examples)),
        ("Launches", lambda c: w.count(c.n_launches)),
    ]
    levels = sorted({f"{c.interval_level:.0%}".replace("%", f"{w.SPACE}%") for c in claims if c.interval})
    note = f"Intervals: {' or '.join(levels)}. " if levels else ""
    note += "p: one-sided against the margin; p (Holm): adjusted over tasks; p opposite: the one-sided test in the other"
    note += " direction, before its correction over tasks, which a task's verdict rests on too (Corrections for several tasks)."
    if empty:
        note += " Gate failed, nothing learned: there is nothing to compare, and the numbers stand in the CSV alone."
    found = table_of("claims", "Claims and verdicts", claims, formats, ("Claim", "Verdict"), note, mark=lambda c: c.verdict)
    kinds = {
        "reasons": ["; ".join(dict.fromkeys(r.kind for r in c.reasons)) for c in claims],
        "reservations": ["; ".join(r.kind for r in c.reservations) for c in claims],
    }
    return replace(found, data=found.data.assign(notes=["; ".join(said(c)) for c in claims], **kinds))


def master_table(rows: Sequence[TaskRow], overhead: Claim | None, candidate: str) -> Table:
    """Method x task: quality, drift, parameters, the selected setting; the study's one serving overhead in a row of its own."""
    rows = [r for r in rows if r.n_seeds]
    formats: list[Format] = [
        ("Task", lambda r: w.task_name(r.task)),
        ("Method", lambda r: r.method),
        ("Seeds", lambda r: w.count(r.n_seeds)),
        ("Metric", lambda r: w.metric_name(r.primary_metric)),
        ("Quality", lambda r: w.percent_plus_minus(r.quality_mean, r.quality_sd)),
        ("Interval", lambda r: w.percent_interval(r.quality_interval)),
        ("Other metrics", _other_metrics),
        ("Drift", lambda r: w.plus_minus(r.drift_mean, r.drift_sd) + (" (saturated)" if r.drift_saturated else "")),
        ("Trainable", lambda r: w.count(r.trainable_parameters)),
        ("Share", lambda r: w.percent(r.trainable_share, 0 if r.trainable_share == 1 else None)),
        ("Rate, batch", lambda r: w.NONE if r.learning_rate is None else f"{w.exact(r.learning_rate)}, {w.count(r.batch_size)}"),
    ]
    note = "Quality and drift: mean ± standard deviation over seeds. Interval: 90 %, over seeds and examples. Drift: 1 − debiased CKA."
    found = table_of(
        "master", "Quality, drift and cost by task and method", rows, formats, ("Task", "Method", "Metric", "Other metrics"), note
    )
    return found if overhead is None or overhead.estimate is None or not rows else _with_overhead(found, overhead, candidate)


def _with_overhead(table: Table, claim: Claim, candidate: str) -> Table:
    """The table with a column for the overhead and a last row that has it, in the CSV too: it is one figure, not one per task."""
    columns = (*table.columns, "Overhead")
    told = {"Task": w.task_name(None), "Method": candidate, "Overhead": w.percent(claim.estimate, sign=True)}
    last = Row(tuple(told.get(c, w.NONE) for c in columns), tuple(claim.steps))
    values = {"task": "all", "method": candidate, "overhead": claim.estimate, "steps": "; ".join(claim.steps)}
    return replace(
        table,
        columns=columns,
        rows=(*(replace(row, cells=(*row.cells, w.NONE)) for row in table.rows), last),
        note=f"{table.note} Overhead: {claim.estimate_name}, one figure for the study.",
        data=pd.concat([table.data.astype(object), pd.DataFrame([values], dtype=object)], ignore_index=True),
    )


def _other_metrics(row: TaskRow) -> str:
    shares = {k: v for k, v in row.other_metrics.items() if 0 <= v[0] <= 1 and "threshold" not in k}
    return ", ".join(f"{w.metric_name(k)} {w.percent(v[0])}" for k, v in [*shares.items()][:4]) or w.NONE


def baselines_table(rows: Sequence[BaselineRow]) -> Table:
    """Baselines measured here first within each task, published references after them. Thresholds are no scores and stay in the JSON."""
    rows = [r for r in rows if "threshold" not in r.metric]
    formats: list[Format] = [
        ("Task", lambda r: w.task_name(r.task)),
        ("System", lambda r: r.system),
        ("Metric", lambda r: w.metric_name(r.metric)),
        ("Value", _baseline_value),
        ("95 % interval", lambda r: w.percent_interval(r.interval)),
        ("Split", lambda r: r.split),
        ("n", lambda r: w.count(r.n)),
        ("Origin", lambda r: "measured here" if r.measured_here else f"not measured here: {r.source}"),
    ]
    note = "Rows marked “not measured here” are context: other models, on the published data sets and the splits named."
    return table_of(
        "baselines",
        "Baselines",
        rows,
        formats,
        ("Task", "System", "Metric", "Split", "Origin"),
        note,
        lambda r: "" if r.measured_here else "published",
    )


def _baseline_value(row: BaselineRow) -> str:
    if row.expected is not None:
        return f"{w.percent(row.expected[0], 0)} to {w.percent(row.expected[1], 0)}"
    return w.percent_plus_minus(row.value, row.sd) if row.sd is not None else w.percent(row.value)


def costs_table(rows: Sequence[CostRow]) -> Table:
    """Training cost by task and method."""
    formats: list[Format] = [
        ("Task", lambda r: w.task_name(r.task)),
        ("Method", lambda r: r.method),
        ("Wall time", lambda r: w.duration(r.wall_s)),
        ("Peak memory", lambda r: w.size(r.peak_memory_bytes)),
        ("Real tokens/s", lambda r: w.number(r.real_tokens_per_s)),
        ("MFU", lambda r: w.percent(r.mfu)),
        ("Steps to best", lambda r: w.number(r.steps_to_best)),
        ("Trainable share", lambda r: w.percent(r.trainable_share, 0 if r.trainable_share == 1 else None)),
        ("Speed-up", lambda r: w.NONE if r.actual_speedup is None else f"{w.decimals(r.actual_speedup, 2)}×"),
        ("In theory", lambda r: w.NONE if r.theoretical_speedup is None else f"{w.decimals(r.theoretical_speedup, 2)}×"),
    ]
    note = "Medians over seeds. Speed-up: real tokens a second of training over the reference method's; in theory: from operations a token."
    rows = [r for r in rows if r.steps]
    if any(r.mfu is not None for r in rows):
        note += " MFU: model FLOPs a second over the device's peak, of this run alone when several share a device."
    shared = [r for r in rows if r.shared_machine]
    if shared:
        named = "All" if len(shared) == len(rows) else ", ".join(f"{w.task_name(r.task)} {r.method}" for r in shared)
        note += f" {named}: other steps ran on the machine at the same time, so times and speed-ups are of shared cores or a shared GPU."
    return table_of("costs", "Training cost", rows, formats, ("Task", "Method"), note)


def serving_table(rows: Sequence[ServingRow]) -> Table:
    """Every serving cell over launches; remarks that hold for all of them stand under the table."""
    shared = [n for n in _notes(rows[0]) if all(n in _notes(r) for r in rows)] if rows else []
    formats: list[Format] = [
        ("Arm", lambda r: arm_name(r.arm)),
        ("Batch", lambda r: w.count(r.batch_size)),
        ("Prompt", lambda r: w.count(r.prompt_length)),
        ("Sampling", lambda r: r.sampling),
        ("Adapters", lambda r: w.count(r.adapters)),
        ("Launches", lambda r: w.count(r.launches)),
        ("ms per token", lambda r: w.plus_minus(r.ms_per_token_median, r.ms_per_token_mad, 2)),
        ("Tokens/s", lambda r: w.number(r.tokens_per_s_median)),
        ("First token (ms)", lambda r: w.number(r.ttft_ms_median)),
        ("p50 (ms)", lambda r: w.number(r.latency_p50_ms)),
        ("p95 (ms)", lambda r: w.number(r.latency_p95_ms)),
        ("p99 (ms)", lambda r: w.number(r.latency_p99_ms)),
        ("Requests", lambda r: w.count(r.requests)),
        ("Over baseline", lambda r: w.NONE if r.ratio_to_baseline is None else w.percent(r.ratio_to_baseline - 1, 1, sign=True)),
        ("Interval", lambda r: w.percent_interval(_less_one(r.ratio_interval))),
        ("Pairs", lambda r: w.count(r.ratio_launches)),
        ("Note", lambda r: "; ".join(n for n in _notes(r) if n not in shared) or w.NONE),
    ]
    note = "Medians over launches (± median absolute deviation). p50 to p99: request latency. Over baseline: extra time per token."
    note += " Pairs: launches that both arms have, over which ratio and interval are."
    note += f" All cells: {'; '.join(shared)}." if shared else ""
    return table_of("serving", "Serving cells", rows, formats, ("Arm", "Sampling"), note)


def _notes(row: ServingRow) -> list[str]:
    return [note for note in row.note.split("; ") if note]


def _less_one(limits: Any) -> Any:
    return None if limits is None else tuple(None if x is None else x - 1 for x in limits)
