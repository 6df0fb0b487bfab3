"""Limitations of serving, on a store with planted launches."""

from dataclasses import replace

import numpy as np
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis.flag_groups import code_of
from tunescope.analysis.frames import collect
from tunescope.analysis.limitations import limitations
from tunescope.analysis.overhead import overhead_claim
from tunescope.serve.machine import busy
from tunescope.study.schema import ServingSpec, TaskSpec


@pytest.fixture(scope="module")
def study():
    serving = ServingSpec(
        arms=("base", "merged", "adapters_2"), batch_sizes=(2, 4), prompt_lengths=(128,), sampling=("greedy",), prompts_per_cell=64
    )
    return small_study(tasks={"sst2": TaskSpec(max_length=512), "squad_v2": TaskSpec(max_length=768)}, serving=serving)


@pytest.fixture(scope="module")
def frames(study, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs") / "simulated"
    write_store(root, study, rng=np.random.default_rng(7), n_examples=20, overhead=0.1)
    return collect(root, study)


def said(frames, study):
    return [f.text for f in limitations(frames, study, [], [overhead_claim(frames, study)], [], [])]


def test_a_p99_is_told_by_the_requests_of_one_launch(frames, study):
    """Ten launches of 64 requests have 640, and each of their 99th percentiles still has no upper bound."""
    assert "Serving cells have 64 requests a launch or more: a 99th percentile has no upper bound below 299." in said(frames, study)


def test_launches_on_a_busy_machine_are_told_with_their_number(frames, study):
    assert not any("busy machine" in text for text in said(frames, study))
    rows = [dict(row) for row in frames.documents["serve"]["launches.jsonl"]]
    for n, row in enumerate(rows):
        row["machine"] = {when: {"load_average_1min": 20.0 if n < 4 else 2.0, "cores": 32} for when in ("before", "after")}
    loaded = replace(frames, documents={"serve": {**frames.documents["serve"], "launches.jsonl": rows}})
    told = f"4 of {len(rows)} launches ran on a busy machine (load up to 20.0 on 32 cores)"
    assert busy(rows) == told and code_of(told) == "machine-busy"
    assert f"{told}: part of what arms differ by may be that." in said(loaded, study)


def test_a_host_that_changes_its_speed_is_told(frames, study):
    rows = [dict(row) for row in frames.documents["serve"]["launches.jsonl"]]
    for n, row in enumerate(rows):
        row["machine"] = {
            when: {"load_average_1min": 1.0, "python_loop_ms": {"median": 3.5 + 3.5 * (n % 2)}} for when in ("before", "after")
        }
    uneasy = replace(frames, documents={"serve": {**frames.documents["serve"], "launches.jsonl": rows}})
    told = "The host took up to 2.0 times as long at some launches as at others (3.5 to 7.0 ms a Python loop, before and after launches)"
    assert code_of(told) == "machine-uneven" and f"{told}: part of what arms differ by may be that." in said(uneasy, study)


@pytest.mark.parametrize(("reach", "told"), [(None, "CUDA graphs reach 128 tokens a step, and prefills of up to "), (100_000, None)])
def test_prefills_outside_of_graphs_are_told(frames, study, reach, told):
    rows = [dict(row) | {"device": "cuda", "enforce_eager": False, "max_num_seqs": 64, "max_cudagraph_capture_size": reach}
            for row in frames.documents["serve"]["launches.jsonl"]]  # fmt: skip
    on_a_gpu = replace(frames, documents={"serve": {**frames.documents["serve"], "launches.jsonl": rows}})
    found = [text for text in said(on_a_gpu, study) if "CUDA graphs" in text]
    assert (found == []) if told is None else (len(found) == 1 and found[0].startswith(told))
    assert not any("CUDA graphs" in text for text in said(frames, study))
