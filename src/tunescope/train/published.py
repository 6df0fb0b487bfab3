"""Published scores, and what the plan expects of an untuned model, shown beside the baselines as context. None was measured here."""

from dataclasses import asdict, dataclass
from typing import Any

from tunescope.study.schema import TaskName


@dataclass(frozen=True)
class Published:
    """One published score (a fraction) with the split it was measured on."""

    task: TaskName
    system: str
    metric: str
    value: float | None
    """None where only a range is expected."""
    split: str
    source: str
    note: str = ""
    expected: tuple[float, float] | None = None


_ROBERTA = "Liu et al. 2019, RoBERTa, arXiv:1907.11692; base model: results table of fairseq's examples/roberta"
_BERT = "Devlin et al. 2019, BERT, arXiv:1810.04805, table 1"
_ALBERT = "Lan et al. 2020, ALBERT, arXiv:1909.11942, table 2"
_UNTUNED, _PLAN = "an untuned model of about 1B parameters", "expectation of the study's plan, no measurement"
PUBLISHED = (
    Published("mrpc", "RoBERTa-base", "accuracy", 0.902, "dev", _ROBERTA, "the 408 dev rows, not the 1,725 test rows"),
    Published("sst2", "RoBERTa-base", "accuracy", 0.948, "dev", _ROBERTA),
    Published("sst2", "BERT-base", "accuracy", 0.935, "test", _BERT, "labels on the GLUE server only, so not the dev rows"),
    Published("rte", "BERT-base", "accuracy", 0.664, "test", _BERT, "GLUE server; dev scores up to about 0.70 are reported"),
    Published("squad_v2", "ALBERT-base", "f1", 0.800, "dev", _ALBERT, "the 89.7 sometimes quoted belongs to a larger ALBERT"),
    Published("squad_v2", "ALBERT-base", "exact_match", 0.771, "dev", _ALBERT),
    Published("sst2", _UNTUNED, "accuracy", None, "test", _PLAN, expected=(0.80, 0.85)),
    Published("mrpc", _UNTUNED, "accuracy", None, "test", _PLAN, expected=(0.60, 0.70)),
    Published("rte", _UNTUNED, "accuracy", None, "test", _PLAN, expected=(0.55, 0.65)),
    Published("squad_v2", _UNTUNED, "exact_match", None, "test", _PLAN, "below always abstaining", expected=(0.20, 0.30)),
)  # fmt: skip


def published_for(task: TaskName) -> list[dict[str, Any]]:
    """The published rows of one task, each marked as not measured here."""
    return [{**asdict(row), "measured_here": False} for row in PUBLISHED if row.task == task]
