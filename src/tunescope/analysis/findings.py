"""Findings: what the study says, as data. The report renders these and nothing else decides anything."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["supported", "contradicted", "inconclusive"]
ReasonKind = Literal[
    "gate_failed", "nothing_learned", "gate_unknown", "missing_steps", "too_few_seeds", "too_few_examples", "metric_not_stored",
    "no_drift_scalar", "no_reference_drift", "no_variation", "no_serving", "too_few_launches", "cells_not_measured", "twins_differ",
]  # fmt: skip
"""Everything that can forbid a verdict; docs/report.md says what each means."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Reason(_Row):
    """Why a claim cannot be decided."""

    kind: ReasonKind
    """What programs go by; the text may be reworded."""
    text: str
    task: str | None = None
    """The task it lies in; None for serving and for the whole hypothesis."""


class Reservation(_Row):
    """Why a claim is not confirmatory, whatever its verdict."""

    kind: Literal["plan", "few_seeds"]
    """`plan`: the registered plan behind it changed after runs had finished, or cannot be shown to be older than they are. `few_seeds`: it
    rests on fewer seeds than a confirmatory claim takes.
    """
    text: str


class Claim(_Row):
    """One claim with everything a reviewer asks for. Estimates of shares are fractions."""

    id: str
    """e.g. `quality/sst2`, `drift/all`, `overhead`, `hypothesis`."""
    dimension: Literal["quality", "drift", "overhead", "hypothesis"]
    task: str | None
    statement: str
    """The claim in words, with its margin."""
    verdict: Verdict
    estimate: float | None
    estimate_name: str
    """e.g. `LoRA / full accuracy`, `1 - D_LoRA / D_full`, `time per token ratio - 1`."""
    weakest_task: str | None = None
    """The task whose estimate a claim on all tasks shows."""
    interval: tuple[float | None, float | None] | None
    interval_level: float
    margin: float | None
    p: float | None
    p_opposite: float | None
    p_adjusted: float | None
    """Holm over tasks, for per-task claims."""
    df: float | None
    attainable_p: float | None
    method: str
    """The procedure by name."""
    n_seeds: int | None
    n_examples: int | None
    n_launches: int | None
    reasons: list[Reason]
    """Why it cannot be decided, most telling first; such a claim is inconclusive whatever its p. Empty where nothing forbids a verdict."""
    notes: list[str]
    """What else to know about it; no note keeps it from being decided."""
    steps: list[str]
    """Step ids every number came from."""
    confirmatory: bool = True
    """False when there is a reservation."""
    reservations: list[Reservation] = []
    """Why it is not confirmatory."""

    def has(self, *kinds: ReasonKind) -> bool:
        """Whether a reason of one of these kinds forbids deciding it."""
        return any(reason.kind in kinds for reason in self.reasons)


class TaskRow(_Row):
    """One row of the master table: method x task."""

    task: str
    method: str
    n_seeds: int
    primary_metric: str
    quality_mean: float | None
    quality_sd: float | None
    quality_interval: tuple[float | None, float | None] | None
    other_metrics: dict[str, tuple[float, float | None]]
    """name -> (mean, sd) over seeds; sd None for a single seed."""
    drift_mean: float | None
    drift_sd: float | None
    drift_saturated: bool
    trainable_parameters: int | None
    trainable_share: float | None
    learning_rate: float | None
    batch_size: int | None
    steps: list[str]


class BaselineRow(_Row):
    """One baseline on one task; `published` rows are context, not measured here."""

    task: str
    system: str
    metric: str
    value: float | None
    """None where context gives only `expected`."""
    sd: float | None
    interval: tuple[float, float] | None
    expected: tuple[float, float] | None = None
    """The range a score like this is expected in."""
    split: str
    n: int | None
    source: str
    measured_here: bool
    steps: list[str]


class CostRow(_Row):
    """Training cost of one method on one task, medians over seeds."""

    task: str
    method: str
    wall_s: float | None
    peak_memory_bytes: float | None
    real_tokens_per_s: float | None
    mfu: float | None
    """Model FLOPs a second over the device's peak; None for a device without a known peak."""
    steps_to_best: float | None
    trainable_share: float | None
    actual_speedup: float | None
    theoretical_speedup: float | None
    shared_machine: bool
    """Whether another step ran on the same machine at the same time as one of these, which slows both."""
    steps: list[str]


class ServingRow(_Row):
    """One serving cell over launches."""

    arm: str
    batch_size: int
    prompt_length: int
    sampling: str
    adapters: int
    launches: int
    ms_per_token_median: float
    ms_per_token_mad: float | None
    """Median absolute deviation over launches; None for a single one."""
    tokens_per_s_median: float
    ttft_ms_median: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    latency_p99_ms: float | None
    requests: int
    ratio_to_baseline: float | None
    """Time per token over the registered baseline arm, same cell."""
    ratio_launches: int | None
    """Launches of both arms that the ratio pairs; below two it has no interval."""
    ratio_interval: tuple[float | None, float | None] | None
    note: str
    steps: list[str]


class Missing(_Row):
    """A planned step without a result."""

    step: str
    state: str
    why: str


class RedFlag(_Row):
    """Something a reader should look at; never changes a verdict."""

    step: str
    text: str


class Limitation(_Row):
    """What a reader may not conclude, as the data states it."""

    text: str
    steps: list[str]


class RegisteredPlan(_Row):
    """Whether the plan was fixed before the runs."""

    sha256: str
    """Of margins, metrics, layers, seeds and families as the study file has them now."""
    registered: str | None
    """When the plan was fixed; None when that is not known."""
    changes: list[str]
    added_seeds: list[int]
    """Seeds added after the plan was fixed; they enter exploratory rows only."""


class Findings(_Row):
    """Everything the report says."""

    study: str
    title: str
    generated: str
    complete: bool
    steps_done: int
    steps_planned: int
    missing: list[Missing]
    answer: list[str]
    """The answer in three sentences with numbers."""
    registered_plan: RegisteredPlan
    claims: list[Claim]
    table: list[TaskRow]
    baselines: list[BaselineRow]
    costs: list[CostRow]
    serving: list[ServingRow]
    statistics: dict[str, Any]
    """Descriptive and exploratory tables by name (mcnemar, permutation, anova, effect_sizes, power, correlations, noise_floor, merge ...):
    each {"title", "columns", "rows", "note", "steps"}."""
    disagreements: list[dict[str, Any]]
    """Examples on which methods disagree, from stored predictions: task, example_id, label, predictions by method."""
    red_flags: list[RedFlag]
    limitations: list[Limitation]
