"""Sign-flip tests, bands and the paired comparison against closed forms and simulation."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from tunescope.drift.contrast import (
    EXACT_UP_TO,
    critical_layers,
    max_statistic,
    paired,
    sign_flip,
    sign_vectors,
    simultaneous_band,
    summary,
    thirds,
)


@pytest.mark.parametrize(("n", "p"), [(1, 1.0), (3, 0.25), (5, 0.0625)])
def test_attainable_p_by_number_of_seeds(n, p):
    test = sign_flip(-np.arange(1.0, n + 1))
    assert (test.p, test.attainable_p, test.exact) == (p, p, True)
    assert test.p_less == 1 / 2**n


def test_exact_p_counts_all_flips():
    d = np.array([3.0, -1.0, 2.0])
    sums = [a * 3 - b + c * 2 for a in (1, -1) for b in (1, -1) for c in (1, -1)]
    assert sign_flip(d).p == np.mean(np.abs(sums) >= 4)
    assert sign_flip(np.zeros(4)).p == 1.0


def test_many_seeds_are_sampled_with_plus_one():
    vectors, exact = sign_vectors(EXACT_UP_TO + 1)
    assert not exact
    assert (vectors[0] == 1).all()
    test = sign_flip(np.ones(20))
    assert test.p == pytest.approx(1 / 10_001, rel=1.1)
    assert test.attainable_p == 1 / 10_001


def test_max_statistic_keeps_the_family_wise_error():
    """Twelve correlated null layers, five seeds, level 0.0625: the smallest p over layers must fall there at most about that often."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(600):
        shared = rng.normal(size=(5, 1))
        hits += max_statistic(shared + rng.normal(size=(5, 12))).min() <= 0.0625
    assert hits / 600 < 0.0625 + 3 * np.sqrt(0.0625 * 0.9375 / 600)


def test_max_statistic_with_one_layer_is_the_single_test():
    rng = np.random.default_rng(1)
    for _ in range(20):
        d = rng.normal(size=(5, 1))
        assert max_statistic(d)[0] == pytest.approx(sign_flip(d[:, 0]).p)


def test_max_statistic_equals_a_loop_over_all_sign_vectors():
    """Written out: Student's t of every layer for every sign vector, and how often the largest |t| reaches each layer's own."""
    d = np.random.default_rng(4).normal(0.3, 1, size=(5, 3))

    def t(values):
        return abs(values.mean()) / (values.std(ddof=1) / np.sqrt(len(values)))

    largest = [max(t(np.array(signs) * d[:, k]) for k in range(3)) for signs in product((1, -1), repeat=5)]
    expected = [np.mean([top >= t(d[:, k]) - 1e-9 for top in largest]) for k in range(3)]
    assert max_statistic(d) == pytest.approx(expected)


def test_the_band_is_student_t_at_the_level_shared_by_all_layers():
    d = np.random.default_rng(5).normal(size=(4, 6))
    low, high = simultaneous_band(d, level=0.94)
    for k in range(6):
        assert (low[k], high[k]) == pytest.approx(stats.t.interval(0.99, 3, loc=d[:, k].mean(), scale=stats.sem(d[:, k])))


def test_early_late_and_critical_layers_by_hand():
    profile = np.array([1.0, 1, 1, 1, 1, 1, 9, 1])  # mean 2, sd 2.65
    early, late = thirds(profile)
    assert (list(early), list(late)) == ([1, 1], [9, 1])
    assert critical_layers(profile) == [7]
    assert critical_layers(np.ones(4)) == []
    assert [list(part) for part in thirds(np.array([3.0, 5.0]))] == [[3], [5]]


def test_max_statistic_survives_layers_without_difference():
    d = np.column_stack([np.zeros(3), -np.ones(3)])
    assert list(max_statistic(d)) == [1.0, 0.25]


def test_simultaneous_band_covers_all_layers_together():
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(1000):
        low, high = simultaneous_band(rng.normal(size=(4, 8)))
        covered += bool(((low <= 0) & (high >= 0)).all())
    assert 0.93 < covered / 1000 < 0.985
    assert np.isinf(simultaneous_band(np.ones((1, 3)))[0]).all()


def test_paired_uses_shared_seeds_only():
    result = paired({1: 0.2, 2: 0.3, 3: 0.4, 9: 9.0}, {1: 0.4, 2: 0.4, 3: 0.5, 8: 1.0})
    assert result["seeds"] == [1, 2, 3]
    assert result["differences"] == pytest.approx([-0.2, -0.1, -0.1])
    assert result["reductions"] == pytest.approx([0.5, 0.25, 0.2])
    assert result["reduction"]["mean"] == pytest.approx(0.95 / 3)
    assert result["log_ratio"]["mean"] == pytest.approx(np.mean(np.log([0.5, 0.75, 0.8])))
    assert result["sign_flip"]["p"] == 0.25
    assert paired({1: 0.2}, {2: 0.3}) is None


def test_ratios_are_absent_where_drift_is_not_positive():
    result = paired({1: -0.01, 2: 0.3}, {1: 0.4, 2: 0.4})
    assert result["reductions"] == [None, pytest.approx(0.25)]
    assert result["reduction"] is None
    assert result["log_ratio"] is None
    assert result["difference"]["n"] == 2


def test_summary_is_a_t_interval():
    values = np.array([1.0, 2.0, 4.0])
    low, high = stats.t.interval(0.9, 2, loc=values.mean(), scale=stats.sem(values))
    assert summary(values)["interval"] == pytest.approx([low, high])
    assert summary(values[:1])["interval"] is None
