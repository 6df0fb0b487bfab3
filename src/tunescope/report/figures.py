"""All figures of the report: drawn from Findings and Frames, saved as PDF, SVG and PNG. What cannot be drawn is named."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import figures_adapters, figures_drift, figures_quality, figures_runs, figures_serving
from .drawing import Chart, Material, NoData, save, style

FIGURES: dict[str, Callable[[Material], Chart]] = {
    "claims": figures_quality.claims,
    "performance": figures_quality.performance,
    "training_curves": figures_quality.training_curves,
    "tradeoffs": figures_quality.tradeoffs,
    "drift_evolution": figures_drift.evolution,
    "drift_heatmap": figures_drift.heatmap,
    "layer_profiles": figures_drift.layer_profiles,
    "layer_differences": figures_drift.layer_differences,
    "frontier": figures_runs.frontier,
    "drift_quality": figures_runs.drift_quality,
    "correlations": figures_runs.correlations,
    "overhead": figures_serving.overhead,
    "overhead_adapters": figures_adapters.overhead_adapters,
    "serving_scaling": figures_serving.scaling,
    "latency_throughput": figures_serving.latency_throughput,
    "serving_memory": figures_adapters.memory,
    "switching": figures_adapters.switching,
}
"""File name -> drawing function, in the order of the report."""


@dataclass(frozen=True)
class Drawn:
    """What was drawn, and why the rest was not."""

    charts: dict[str, Chart]
    missing: dict[str, str]


def draw_all(material: Material, folder: Path) -> Drawn:
    """Draw and save every figure that has data into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    charts, missing = {}, {}
    with style():
        for name, draw in FIGURES.items():
            try:
                charts[name] = save(draw(material), folder)
            except NoData as reason:
                missing[name] = str(reason)
    return Drawn(charts, missing)
