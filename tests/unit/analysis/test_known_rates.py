"""Over many simulated studies planted effects give the planted verdicts at the right rates, and null studies find nothing."""

from collections import Counter

import numpy as np
import pytest

from simulated_store import small_study, write_store
from tunescope.analysis.drift import drift_claims
from tunescope.analysis.frames import collect
from tunescope.analysis.overhead import overhead_claim
from tunescope.analysis.quality import quality_claims, task_quality
from tunescope.study.schema import AdapterSpec, MethodSpec, ServingSpec, TaskSpec

SEEDS = (42, 1337, 2024, 3407, 5489)
STUDY = small_study(
    tasks={"mrpc": TaskSpec(max_length=512)},
    methods={
        "full": MethodSpec(warmup_ratio=0.1, learning_rates=(1e-3,)),
        "lora": MethodSpec(warmup_ratio=0.06, learning_rates=(3e-3,), adapter=AdapterSpec()),
    },
    seeds=SEEDS,
    serving=ServingSpec(
        task="mrpc", arms=("base", "merged", "adapters_2"), two_adapters=("mrpc", "mrpc"), batch_sizes=(2, 4, 8, 16), prompt_lengths=(256,),
        sampling=("greedy",), prompts_per_cell=12,
    ),
)  # fmt: skip
STUDIES = 40


def rates(tmp_path, **planted):
    """Share of each verdict on quality, drift and overhead."""
    counts = {name: Counter() for name in ("quality", "drift", "overhead")}
    for k in range(STUDIES):
        root = tmp_path / str(k)
        write_store(root, STUDY, seeds=SEEDS, rng=np.random.default_rng([k, 99]), **planted)
        frames = collect(root, STUDY)
        found = [task_quality(frames, STUDY, "mrpc")]
        decisions = quality_claims(found, STUDY)[1], drift_claims(frames, STUDY, found)[1], overhead_claim(frames, STUDY)
        for name, decision in zip(counts, decisions, strict=True):
            counts[name][decision.claim.verdict] += 1
    return {name: {v: n / STUDIES for v, n in c.items()} for name, c in counts.items()}


@pytest.mark.slow
def test_equal_methods_and_cheap_adapters_are_supported(tmp_path):
    found = rates(tmp_path, quality_gap=0.0, drift_ratio=0.65, overhead=0.10, n_examples=800)
    assert min(c.get("supported", 0) for c in found.values()) >= 0.8
    assert max(c.get("contradicted", 0) for c in found.values()) <= 0.05


@pytest.mark.slow
def test_planted_harm_is_contradicted(tmp_path):
    found = rates(tmp_path, quality_gap=0.05, drift_ratio=0.90, overhead=0.50, n_examples=800)
    assert max(c.get("supported", 0) for c in found.values()) == 0
    assert found["overhead"]["contradicted"] >= 0.8 and found["quality"].get("contradicted", 0) >= 0.5
    assert found["drift"].get("contradicted", 0) >= 0.5


@pytest.mark.slow
def test_two_per_cent_is_never_contradicted_more_than_alpha_allows(tmp_path):
    found = rates(tmp_path, quality_gap=0.02, drift_ratio=0.65, overhead=0.10, n_examples=800)["quality"]
    assert found.get("contradicted", 0) <= 0.05 and found.get("supported", 0) >= 0.1


@pytest.mark.slow
def test_at_the_margins_few_studies_find_anything(tmp_path):
    found = rates(tmp_path, quality_gap=0.03, drift_ratio=0.80, overhead=0.30, n_examples=800)
    for name, counts in found.items():  # at most 7 of 40 happens by chance once in 700 studies at a true rate of 5 %
        assert counts.get("supported", 0) <= 7 / STUDIES, name
        assert counts.get("contradicted", 0) <= 7 / STUDIES, name


@pytest.mark.slow
def test_a_study_without_any_difference_finds_no_drift_benefit(tmp_path):
    found = rates(tmp_path, quality_gap=0.0, drift_ratio=1.0, overhead=0.0, n_examples=800)
    assert found["drift"].get("supported", 0) == 0 and found["quality"].get("contradicted", 0) == 0
