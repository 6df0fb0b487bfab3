"""How long the report of a large study takes."""

import time
from pathlib import Path

import numpy as np
import pytest

import simulated_store
from simulated_store import small_study, write_store
from tunescope.analysis.frames import collect
from tunescope.analysis.statistical_analysis import analyse
from tunescope.report.publish import publish
from tunescope.study.plan import build_plan
from tunescope.study.schema import Execution, TrainingSpec

from .conftest import NOW

PROMISED = 20.0
"""Seconds for 200 steps on a free core; processor time is counted, twice as much allowed, because test machines are busy and differ."""


@pytest.mark.slow
def test_the_report_of_200_steps_takes_less_than_promised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_store, "LAYERS", 22)  # as TinyLlama
    seeds = (42, *range(1, 15))
    study = small_study(seeds=seeds, training=TrainingSpec(batch_sizes=(4, 8, 16, 32), max_steps=60, eval_every=20))
    assert len(build_plan(study).steps) >= 200
    write_store(tmp_path, study, rng=np.random.default_rng(7), seeds=seeds, n_examples=1000)
    start = time.process_time()
    frames = collect(tmp_path, study)
    assert publish(analyse(frames, study, now=NOW), frames, tmp_path, study, Execution()).is_file()
    assert time.process_time() - start < 2 * PROMISED
