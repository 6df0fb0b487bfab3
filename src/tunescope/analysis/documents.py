"""The JSON documents beside a report, as models, whose JSON Schemas are published.

Verdicts and the three result documents are built through them; the others (figures, step documents, what a report was built from) are
held to them by tests.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tunescope.study.schema import AnalysisSpec

from .findings import Claim, Findings, ServingRow, Verdict

SCHEMA = 2
"""2: claims have reasons and reservations by kind, and notes hold neither any more."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, serialize_by_alias=True)


class StatisticsTable(_Part):
    """One descriptive or exploratory table."""

    title: str
    columns: list[str]
    rows: list[list[Any]]
    """Values in the order of the columns; null where there is none."""
    note: str
    """What the table may and may not be used for."""
    steps: list[str]
    """Ids of the steps that its numbers came from."""


class _Head(_Part):
    version: Literal[2] = Field(alias="schema")
    """Version of the document's form."""
    study: str
    generated: str
    """ISO 8601."""
    complete: bool
    """False when planned steps have no result."""


class Score(_Part):
    """One metric of one baseline."""

    value: float
    sd: float | None
    """Over the seeds of the random baseline."""
    interval: tuple[float, float] | None
    """95 %, bootstrap."""
    split: str
    n: int | None


class Published(_Part):
    """A figure of another model, for context: not measured here."""

    system: str
    metric: str
    value: float | None
    """None where only a range is expected."""
    sd: float | None
    interval: tuple[float, float] | None
    expected: tuple[float, float] | None
    """The range a score like this is expected in."""
    split: str
    n: int | None
    source: str


class TaskBaselines(_Part):
    """Baselines of one task."""

    measured: dict[str, dict[str, Score]]
    """system -> metric -> score."""
    published: list[Published]
    mcnemar: list[dict[str, Any]]
    """Pairwise tests between systems, as the baseline step wrote them."""
    steps: list[str]


class BaselineResults(_Head):
    """results/baseline_results.json"""

    tasks: dict[str, TaskBaselines]


class MethodDrift(_Part):
    """Drift of one method on one task over seeds."""

    task: str
    method: str
    mean: float | None
    sd: float | None
    n_seeds: int
    saturated: bool


class RunDrift(_Part):
    """The registered drift scalar of one training run."""

    step_id: str
    task: str
    method: str
    role: Literal["final", "search"]
    seed: int
    value: float | None


class DriftResults(_Head):
    """results/drift_analysis_results.json"""

    claims: list[Claim]
    methods: list[MethodDrift]
    runs: list[RunDrift]
    tables: dict[str, StatisticsTable]
    tasks: dict[str, dict[str, Any] | None]
    """task -> drift_summary.json of its drift step."""


class Arm(_Part):
    """Start-up, memory, load and switching of one serving arm: medians over good launches."""

    arm: str
    launches: int
    failed: int
    cold_start_s: float | None
    engine_start_s: float | None
    kv_blocks: float | None
    weight_bytes: float | None
    max_loras: int | None
    load_s_median: float | None
    switching: list[Any]
    errors: list[str]


class DeploymentResults(_Head):
    """results/deployment_benchmark_results.json"""

    claims: list[Claim]
    formulas: dict[str, str]
    """How each figure is computed."""
    cells: list[ServingRow]
    arms: list[Arm]
    tables: dict[str, StatisticsTable]
    correctness: dict[str, Any] | None
    outputs: list[dict[str, Any]]
    """Outputs of the serve steps."""


class _Verdict(_Part):
    version: Literal[2] = Field(alias="schema")
    """Version of the document's form."""
    verdict: Verdict
    """On the whole hypothesis."""
    registered: AnalysisSpec
    """Margins, metrics, layers and cells of the registered analysis."""
    study_sha256: str
    seeds: list[int]


class FinalReport(Findings, _Verdict):
    """analysis/final_analysis_report.json: the verdict and the registered plan first, then everything the report says."""

    statistics: dict[str, StatisticsTable]


class Figure(_Part):
    """A drawn figure: files `<name>.svg`, `.pdf` and `.png` beside this document."""

    name: str
    title: str
    caption: str
    alt: str
    steps: list[str]


class Figures(_Part):
    """results/figures/figures.json"""

    figures: list[Figure]
    not_drawn: dict[str, str]
    """figure -> what is missing."""


class StepDocuments(_Part):
    """results/documents.json: what the parquet tables cannot hold."""

    planned: list[str]
    documents: dict[str, dict[str, Any]]
    """step id -> file name -> its content."""
    problems: list[tuple[str, str]]
    """(step id, what could not be read)."""
    registration: dict[str, Any] | None


class BuiltFrom(_Part):
    """results/built_from.json: tells whether the report is up to date."""

    digest: str
    """SHA-256 over every result, what is missing, the study, and the versions of the package and of these forms."""
    seconds: float


DOCUMENTS: dict[str, tuple[str, type[BaseModel]]] = {
    "baseline_results": ("results/baseline_results.json", BaselineResults),
    "drift_analysis_results": ("results/drift_analysis_results.json", DriftResults),
    "deployment_benchmark_results": ("results/deployment_benchmark_results.json", DeploymentResults),
    "final_analysis_report": ("analysis/final_analysis_report.json", FinalReport),
    "figures": ("results/figures/figures.json", Figures),
    "documents": ("results/documents.json", StepDocuments),
    "built_from": ("results/built_from.json", BuiltFrom),
}
"""Name -> (where a study keeps it, its form)."""


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (2020-12) of one document.

    Raises:
        KeyError: no such document.
    """
    _, form = DOCUMENTS[name]
    found = form.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
