"""Which function runs each kind of step. Strings, so that naming a step imports nothing."""

from collections.abc import Callable
from importlib import import_module

from tunescope.records import StepContext, StepResult
from tunescope.study.inputs import StepInputs
from tunescope.study.schema import Kind

FUNCTIONS: dict[Kind, str] = {
    "data": "tunescope.data.prepare:run_data",
    "baseline": "tunescope.train.baselines:run_baseline",
    "base-probe": "tunescope.drift.drift_analysis:run_base_probe",
    "train": "tunescope.train.finetune:run_train",
    "drift": "tunescope.drift.drift_analysis:run_drift",
    "serve": "tunescope.serve.deployment_bench:run_serve",
    "correlate": "tunescope.analysis.correlate:run_correlate",
}


def step_function(kind: Kind) -> Callable[[StepInputs, StepContext], StepResult]:
    """Import and return the function of a kind: (inputs, context) -> result."""
    module, name = FUNCTIONS[kind].split(":")
    return getattr(import_module(module), name)
