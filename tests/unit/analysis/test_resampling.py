"""Permutation and bootstrap procedures against enumeration and scipy."""

from itertools import product

import numpy as np
import pytest
from scipy import stats

from tunescope.analysis.inference import f1_from_counts
from tunescope.analysis.resampling import approximate_randomisation, bca_interval, clopper_pearson, multi_bootstrap, sign_flip


def test_sign_flip_is_scipys_exact_permutation_test():
    values = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.05])
    expected = stats.permutation_test(
        (values,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", alternative="greater", vectorized=True
    )
    found = sign_flip(values)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.exact and found.attainable_p == 1 / 64


@pytest.mark.parametrize(("n", "one", "two"), [(3, 0.125, 0.25), (5, 0.03125, 0.0625)])
def test_three_and_five_seeds_attain_what_the_plan_says(n, one, two):
    values = np.linspace(1, 2, n)
    assert (sign_flip(values).p, sign_flip(values, two_sided=True).p) == (one, two)
    assert (sign_flip(values).attainable_p, sign_flip(values, two_sided=True).attainable_p) == (one, two)
    assert sign_flip(values).decides(0.05) == (n == 5)


def test_sign_flip_beyond_sixteen_units_needs_a_generator():
    values = np.random.default_rng(0).normal(0.2, 1, 30)
    with pytest.raises(ValueError, match="pass a generator"):
        sign_flip(values)
    found = sign_flip(values, rng=np.random.default_rng(1), draws=19_999)
    assert found.p == pytest.approx(stats.ttest_1samp(values, 0, alternative="greater").pvalue, abs=0.02)


def test_approximate_randomisation_approaches_the_exhaustive_test():
    rng = np.random.default_rng(2)
    a, b = rng.random(9).round(2), rng.random(9).round(2)
    swaps = np.array(list(product([0, 1], repeat=9)))
    differences = (a - b) @ (1 - 2 * swaps).T / 9
    exact = np.mean(np.abs(differences) >= abs((a - b).mean()) - 1e-12)
    found = approximate_randomisation(a, b, draws=40_000, rng=np.random.default_rng(3))
    assert found.p == pytest.approx(exact, abs=0.012)
    assert found.statistic == pytest.approx((a - b).mean())


def test_approximate_randomisation_of_corpus_f1_against_enumeration():
    gold = np.array([1, 1, 1, 0, 0, 1, 0, 1], bool)
    one, two = np.array([1, 1, 0, 0, 1, 1, 0, 1], bool), np.array([0, 1, 1, 1, 1, 0, 0, 1], bool)
    counts = [np.stack([p & gold, p.astype(int) + gold], axis=1).astype(float) for p in (one, two)]
    score = lambda sums: f1_from_counts(sums[:, 0], sums[:, 1])  # noqa: E731
    gaps = []
    for swap in product([0, 1], repeat=8):
        keep = np.array(swap)[:, None]
        first, second = counts[0] * (1 - keep) + counts[1] * keep, counts[1] * (1 - keep) + counts[0] * keep
        gaps.append(score(first.sum(0, keepdims=True))[0] - score(second.sum(0, keepdims=True))[0])
    exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
    found = approximate_randomisation(*counts, score=score, draws=20_000, rng=np.random.default_rng(4))
    assert found.statistic == pytest.approx(gaps[0])
    assert found.p == pytest.approx(exact, abs=0.015)


def test_equal_systems_give_p_one_and_cannot_decide():
    a = np.ones(20)
    found = approximate_randomisation(a, a, rng=np.random.default_rng(5))
    assert found.p == 1 and found.attainable_p == 1 and not found.decides(0.05)


def test_clopper_pearson_is_statsmodels():
    from statsmodels.stats.proportion import proportion_confint

    for k, n in ((0, 10), (3, 10), (10, 10), (50, 400)):
        assert clopper_pearson(k, n) == pytest.approx(proportion_confint(k, n, method="beta"))


def test_bca_is_safe_on_constants_and_covers():
    rng = np.random.default_rng(6)
    assert bca_interval(np.ones(30), rng=rng) == pytest.approx(clopper_pearson(30, 30))
    assert bca_interval(np.full(30, 0.4), rng=rng) == (0.4, 0.4)
    values = np.r_[np.zeros(40), np.ones(60)]
    low, high = bca_interval(values, rng=rng)
    assert low == pytest.approx(0.5, abs=0.04) and high == pytest.approx(0.69, abs=0.04)


def test_multi_bootstrap_centres_on_the_ratio_and_is_reproducible():
    rng = np.random.default_rng(7)
    reference = 0.8 + 0.1 * rng.standard_normal((5, 200))
    candidate = 0.95 * reference + 0.02 * rng.standard_normal((5, 200))
    (low, high), p = multi_bootstrap(candidate, reference, margin=0.9, rng=np.random.default_rng(8), draws=2000)
    again = multi_bootstrap(candidate, reference, margin=0.9, rng=np.random.default_rng(8), draws=2000)
    assert ((low, high), p) == again
    assert low < 0.95 < high and high - low < 0.01 and p == pytest.approx(1 / 2001)
    assert multi_bootstrap(candidate, 0 * reference, margin=0.9, rng=rng, draws=10) == ((None, None), 1.0)
