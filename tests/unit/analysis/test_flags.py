"""Flags that only show when the results of a study lie side by side."""

import numpy as np
import pytest

from launch_rows import engines
from simulated_store import small_study, write_store
from tunescope.analysis.flags import red_flags
from tunescope.analysis.frames import collect
from tunescope.analysis.scores import seeds_of
from tunescope.analysis.statistical_analysis import analyse
from tunescope.study.schema import TASK_NAMES, AnalysisSpec

STUDY = small_study()


@pytest.fixture
def frames(tmp_path):
    write_store(tmp_path, STUDY, rng=np.random.default_rng(5))
    return collect(tmp_path, STUDY)


def unlike(frames):
    return [flag.text for flag in red_flags(frames, STUDY, []) if "final runs differ" in flag.text]


@pytest.mark.parametrize(("name", "other"), [("precision", "bf16"), ("optimizer", "adamw_8bit"), ("batch_size", 64)])
def test_runs_of_one_task_that_were_computed_differently_are_flagged(frames, name, other):
    assert unlike(frames) == []
    task = next(iter(STUDY.tasks))
    frames.outputs(next(iter(seeds_of(frames, task, "lora").values())))[name] = other
    assert len(unlike(frames)) == 1 and unlike(frames)[0].startswith(f"{TASK_NAMES[task]}: final runs differ in {name} (")


def test_the_settings_of_the_final_runs_are_a_table(frames):
    table = analyse(frames, STUDY, None, now="2026-01-01T00:00:00+00:00").statistics["training_settings"]
    assert len(table["rows"]) == len(STUDY.tasks) * len(STUDY.methods)
    assert list(table["rows"][0][2:4]) == ["fp32", "adamw"]


def test_less_overhead_with_more_adapters_is_flagged_for_any_numbers(frames):
    study = STUDY.model_copy(update={"analysis": AnalysisSpec(overhead_batch_sizes=(4,), overhead_prompt_length=128)})
    (step,) = frames.of_kind("serve")
    frames.documents[step]["launches.jsonl"] = engines({8: 0.2, 3: 0.5, 4: 0.6}, noise=0.001)
    falls = [flag for flag in red_flags(frames, study, []) if "overhead falls" in flag.text]
    assert [(flag.step, flag.text) for flag in falls] == [(step, "overhead falls from adapters_4 (1.60) to adapters_8 (1.20)")]
