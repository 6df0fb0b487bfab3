"""One simulated study, analysed and published once; tests read it or render changed findings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis.findings import Findings
from tunescope.analysis.frames import Frames, collect
from tunescope.analysis.statistical_analysis import analyse
from tunescope.report.drawing import Material
from tunescope.report.figures import Drawn, draw_all
from tunescope.report.html import render
from tunescope.report.publish import publish
from tunescope.report.reproduce import all_tables
from tunescope.study.schema import AnalysisSpec, Execution, ServingSpec, Study, TaskSpec

NOW = "2025-01-02T03:04:05+00:00"


@dataclass(frozen=True)
class Published:
    """A published study."""

    root: Path
    study: Study
    frames: Frames
    findings: Findings
    page: str

    def with_findings(self, **changes: object) -> "Published":
        return replace(self, findings=self.findings.model_copy(update=changes))


def simulate(root: Path, **planted: object) -> tuple[Study, Frames, Findings]:
    """A small store with two tasks, analysed with few draws."""
    study = small_study(
        tasks={"sst2": TaskSpec(max_length=512), "squad_v2": TaskSpec(max_length=768)},
        serving=ServingSpec(
            arms=("base", "full", "merged", "lora_idle", "adapters_2", "adapters_4", "switching"),
            batch_sizes=(1, 2, 4),
            prompt_lengths=(128,),
            sampling=("greedy",),
        ),
        analysis=AnalysisSpec(overhead_batch_sizes=(2, 4), overhead_prompt_length=128, bootstrap_draws=50, permutation_draws=99),
    )
    write_store(root, study, rng=np.random.default_rng(7), n_examples=60, **planted)  # type: ignore[arg-type]
    frames = collect(root, study)
    return study, frames, analyse(frames, study, now=NOW)


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    root = tmp_path_factory.mktemp("runs") / "simulated"
    study, frames, findings = simulate(root)
    path = publish(findings, frames, root, study, Execution())
    return Published(root, study, frames, findings, path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def drawn(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw_all(Material(published.findings, published.frames, published.study), tmp_path_factory.mktemp("figures"))


@pytest.fixture(scope="session")
def render_page(drawn: Drawn) -> Callable[[Published], str]:
    """The page of a (changed) study, with the figures of the unchanged one."""

    def page(p: Published) -> str:
        return render(p.findings, p.frames, all_tables(p.findings, "lora"), drawn, p.root, p.study, Execution())

    return page
