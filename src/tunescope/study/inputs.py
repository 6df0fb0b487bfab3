"""Typed inputs of each step kind: exactly the part of the study that changes that step's numbers."""

from typing import Literal

from .schema import (
    AnalysisSpec,
    DataSpec,
    DriftSpec,
    Frozen,
    Kind,
    Limits,
    MethodSpec,
    ModelSpec,
    ServingSpec,
    TaskName,
    TaskSpec,
    TrainingSpec,
)


class DataInputs(Frozen):
    """Prepare one task's data. `probe_examples` ids are fixed here, beside the splits."""

    kind: Literal["data"] = "data"
    task: TaskName
    data: DataSpec
    limits: Limits
    probe_examples: int


class BaselineInputs(Frozen):
    """Majority, random and zero-shot baselines of one task."""

    kind: Literal["baseline"] = "baseline"
    task: TaskName
    model: ModelSpec
    max_length: int
    eval_batch: int
    random_seeds: int
    bootstrap_draws: int


class BaseProbeInputs(Frozen):
    """The untuned model's pooled states and the noise floor."""

    kind: Literal["base-probe"] = "base-probe"
    task: TaskName
    model: ModelSpec
    max_length: int
    drift: DriftSpec


class TrainInputs(Frozen):
    """One training run. `learning_rate` and `batch_size` are None in the plan until the search has chosen them."""

    kind: Literal["train"] = "train"
    task: TaskName
    model: ModelSpec
    method: str
    method_spec: MethodSpec
    role: Literal["search", "final"]
    seed: int
    learning_rate: float | None
    batch_size: int | None
    task_spec: TaskSpec
    training: TrainingSpec
    drift: DriftSpec


class DriftInputs(Frozen):
    """Analyse the drift records of all runs of one task."""

    kind: Literal["drift"] = "drift"
    task: TaskName
    drift: DriftSpec
    reference_method: str
    candidate_method: str
    saturated_drift: float


class ServeInputs(Frozen):
    """One host session of the serving benchmark over all arms."""

    kind: Literal["serve"] = "serve"
    model: ModelSpec
    serving: ServingSpec
    reference_method: str
    candidate_method: str


class CorrelateInputs(Frozen):
    """Relate the quality and drift scalars that training steps wrote."""

    kind: Literal["correlate"] = "correlate"
    analysis: AnalysisSpec


StepInputs = DataInputs | BaselineInputs | BaseProbeInputs | TrainInputs | DriftInputs | ServeInputs | CorrelateInputs
INPUTS: dict[Kind, type[Frozen]] = {
    "data": DataInputs,
    "baseline": BaselineInputs,
    "base-probe": BaseProbeInputs,
    "train": TrainInputs,
    "drift": DriftInputs,
    "serve": ServeInputs,
    "correlate": CorrelateInputs,
}
