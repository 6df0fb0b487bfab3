"""The registered tests against independent implementations, closed forms and simulated null hypotheses."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats
from sklearn.metrics import f1_score
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from tunescope.analysis.drift import seed_test
from tunescope.analysis.inference import (
    any_of,
    bonferroni,
    cluster_totals,
    composite,
    composite_opposite,
    crossed_t,
    f1_pseudo_values,
    fieller,
    holm,
    intersection_union,
    relative_noninferiority,
    relative_test,
    t_test,
)


def layout(rng, seeds=4, examples=30, sd=(0.5, 1.0, 0.7), mean=0.2):
    """A crossed layout with known standard deviations of seeds, examples and the rest."""
    parts = rng.standard_normal((seeds, 1)) * sd[0] + rng.standard_normal((1, examples)) * sd[1]
    return mean + parts + rng.standard_normal((seeds, examples)) * sd[2]


def reference_crossed(values):
    """The formula of statistics.md on mean squares from statsmodels."""
    s, n = values.shape
    frame = pd.DataFrame([{"s": i, "e": j, "y": values[i, j]} for i in range(s) for j in range(n)])
    table = anova_lm(ols("y ~ C(s) + C(e)", data=frame).fit(), typ=1)
    ms = table["sum_sq"] / table["df"]
    total = ms["C(s)"] + ms["C(e)"] - ms["Residual"]
    df = total**2 / (ms["C(s)"] ** 2 / (s - 1) + ms["C(e)"] ** 2 / (n - 1) + ms["Residual"] ** 2 / ((s - 1) * (n - 1)))
    return values.mean(), math.sqrt(total / (s * n)), df


def test_crossed_t_is_the_formula_on_statsmodels_mean_squares():
    values = layout(np.random.default_rng(0))
    mean, se, df = reference_crossed(values)
    found = crossed_t(values)
    assert (found.estimate, found.se, found.df) == pytest.approx((mean, se, df), rel=1e-10)
    assert found.p == pytest.approx(stats.t.sf(mean / se, df), rel=1e-10)
    assert found.p + found.p_opposite == pytest.approx(1)
    low, high = found.interval(0.90)
    assert (low, high) == pytest.approx((mean - stats.t.ppf(0.95, df) * se, mean + stats.t.ppf(0.95, df) * se))


def test_crossed_t_drops_a_seed_term_estimated_below_zero():
    values = layout(np.random.default_rng(1), sd=(0.0, 1.0, 1.0))
    values = values - values.mean(axis=1, keepdims=True) + 0.3  # equal seed means: MS_s is 0
    s, n = values.shape
    found = crossed_t(values)
    ms_e = s * values.mean(axis=0).var(ddof=1)
    rest = values - values.mean(axis=0)
    ms_r = (rest**2).sum() / ((s - 1) * (n - 1))
    assert found.df == n - 1
    assert found.se == pytest.approx(math.sqrt(max(ms_e, ms_r) / (s * n)))
    assert "seed term dropped" in found.note


def test_few_columns_fall_back_to_the_t_over_seeds():
    rng = np.random.default_rng(2)
    values = 1 + rng.standard_normal((3, 1)) + 0.5 * rng.standard_normal((3, 5))
    values -= values.mean(axis=0) - values.mean()  # equal block means: MS_e is 0
    found = crossed_t(values, "less", few_columns=True)
    plain = stats.ttest_1samp(values.mean(axis=1), 0, alternative="less")
    assert (found.df, found.p) == pytest.approx((2, plain.pvalue))
    assert "block term dropped" in found.note


def test_no_variation_gives_no_p_and_no_nan():
    found = crossed_t(np.full((3, 10), 0.03))
    assert (found.p, found.p_opposite, found.interval()) == (None, None, (None, None))
    assert t_test(np.full(5, 0.2)).p is None
    ratio = relative_noninferiority(np.ones((3, 10)), np.ones((3, 10)))
    assert ratio.ratio == 1 and ratio.interval == (None, None)


@pytest.mark.parametrize("bad", [np.ones((1, 5)), np.ones((3, 1)), np.ones(4), np.array([[1.0, np.nan], [1, 2]])])
def test_crossed_t_refuses_what_it_cannot_test(bad):
    with pytest.raises(ValueError, match="crossed test"):
        crossed_t(bad)


def test_t_test_is_scipys():
    values = np.random.default_rng(3).normal(0.1, 1, 12)
    assert t_test(values, "less").p == pytest.approx(stats.ttest_1samp(values, 0, alternative="less").pvalue)


def test_fieller_solves_its_own_equation():
    top, bottom, v11, v12, v22, q = 0.80, 0.85, 4e-4, 2e-4, 5e-4, 2.1
    gap = lambda r: (top - r * bottom) ** 2 - q**2 * (v11 - 2 * r * v12 + r**2 * v22)  # noqa: E731
    expected = optimize.brentq(gap, 0.5, top / bottom), optimize.brentq(gap, top / bottom, 1.5)
    assert fieller(top, bottom, v11, v12, v22, q) == pytest.approx(expected, rel=1e-9)
    assert fieller(1.0, 0.01, 1e-2, 0, 1e-2, q) == (None, None)


@pytest.mark.parametrize("quantile", [1e100, 1e200, math.inf, math.nan])
def test_fieller_has_no_limits_at_a_quantile_beyond_all_numbers(quantile):
    """Satterthwaite's degrees of freedom can come near 0, where the t quantile overflows."""
    assert fieller(0.18, 0.3, 1e-9, 1e-10, 1e-9, quantile) == (None, None)
    assert quantile == 1e100 or fieller(0.18, 0.3, 1e-9, 0.0, 0.0, quantile) == (None, None)


def test_the_fieller_limit_excludes_the_margin_exactly_when_the_test_rejects():
    rng, outcomes = np.random.default_rng(4), set()
    for _ in range(300):
        reference = layout(rng, 3, 40, (0.02, 0.3, 0.2), 0.8)
        candidate = 0.4 * reference + 0.6 * layout(rng, 3, 40, (0.02, 0.3, 0.2), 0.83)
        found = relative_noninferiority(candidate, reference, 0.97)
        if found.interval[0] is not None:
            outcomes.add(found.contrast.p <= 0.05)
            assert (found.interval[0] >= 0.97) == (found.contrast.p <= 0.05)
            assert found.interval[0] < found.ratio < found.interval[1]
            assert (found.interval[1] <= 0.97) == (found.contrast.p_opposite <= 0.05)
    assert outcomes == {True, False}


@given(st.floats(0.1, 50), st.integers(0, 1000))
def test_ratio_tests_do_not_depend_on_the_unit(scale, seed):
    rng = np.random.default_rng(seed)
    a, b = layout(rng, 3, 12, mean=3.0), layout(rng, 3, 12, mean=3.0)
    one, other = relative_test(a, b, margin=0.9), relative_test(scale * a, scale * b, margin=0.9)
    assert one.ratio == pytest.approx(other.ratio)
    assert one.contrast.p == pytest.approx(other.contrast.p, rel=1e-6)


def test_seed_test_has_the_paired_t_and_fieller_limits():
    a, b = np.array([0.20, 0.24, 0.19, 0.22]), np.array([0.31, 0.33, 0.30, 0.36])
    found = seed_test(a, b, 0.8)
    assert found.contrast.p == pytest.approx(stats.ttest_1samp(a - 0.8 * b, 0, alternative="less").pvalue)
    limit = found.interval[1]  # at its own limit the two-sided 10 % test just rejects
    assert stats.ttest_1samp(a - limit * b, 0).pvalue == pytest.approx(0.10, rel=1e-6)


def test_cluster_totals_keep_single_examples_and_means():
    values = np.random.default_rng(5).random((3, 12))
    np.testing.assert_allclose(cluster_totals(values, [f"g{9 - i}{i}" for i in range(12)]), values)
    groups = ["b"] * 5 + ["a"] * 3 + ["c"] * 4
    totals = cluster_totals(values, groups)
    assert totals.shape == (3, 3)
    np.testing.assert_allclose(totals.mean(axis=1), values.mean(axis=1))


def test_cluster_totals_give_the_linearised_cluster_variance():
    rng = np.random.default_rng(6)
    groups = np.repeat(np.arange(20), rng.integers(1, 8, 20))
    y = rng.random(len(groups)) + 0.3 * groups / 20
    residual_totals = np.array([(y - y.mean())[groups == g].sum() for g in range(20)])
    expected = 20 / 19 * (residual_totals**2).sum() / len(y) ** 2  # Taylor linearisation of a ratio mean over 20 clusters
    w = cluster_totals(y[None, :], groups.astype(str).tolist())[0]
    assert w.var(ddof=1) / 20 == pytest.approx(expected)


def test_f1_pseudo_values_are_the_jackknife_of_sklearns_f1():
    rng = np.random.default_rng(7)
    gold, predicted = rng.random(25) < 0.6, rng.random((2, 25)) < 0.5
    for row, found in zip(predicted, f1_pseudo_values(gold, predicted), strict=True):
        whole = f1_score(gold, row)
        without = [f1_score(np.delete(gold, i), np.delete(row, i)) for i in range(25)]
        np.testing.assert_allclose(found, 25 * whole - 24 * np.array(without))
    assert (f1_pseudo_values(np.zeros(4, bool), np.zeros(4, bool)) == 0).all()


def test_families():
    p = [0.01, 0.04, 0.03, None]
    assert holm(p) == pytest.approx([0.04, 0.09, 0.09, None])
    assert bonferroni(p) == pytest.approx([0.04, 0.16, 0.12, None])
    assert intersection_union(p) == 1 and intersection_union(p[:3]) == 0.04
    assert any_of(p) == pytest.approx(0.04)
    assert holm([]) == [] and intersection_union([]) is None and any_of([]) is None


def test_composite_is_quality_and_either_cost():
    assert composite(0.01, 0.02, 0.9) == pytest.approx(0.04)
    assert composite(0.2, 0.001, 0.001) == 0.2
    assert composite(0.01, 0.9, 0.8) == 1.0
    assert composite_opposite(0.01, 0.9, 0.9) == pytest.approx(0.02)  # quality is contradicted
    assert composite_opposite(0.9, 0.01, 0.02) == pytest.approx(0.04)  # both costs are
    assert composite_opposite(0.9, 0.01, 0.9) == 1.0  # one cost alone is not enough


@pytest.mark.slow
@pytest.mark.parametrize("sd", [(0.02, 0.3, 0.25), (0.0, 0.1, 0.35), (0.05, 0.2, 0.2)])
@pytest.mark.parametrize(("seeds", "examples"), [(3, 60), (5, 200)])
def test_quality_test_holds_its_level_at_the_margin(sd, seeds, examples):
    rng, rejected, draws = np.random.default_rng(8), 0, 2000
    for _ in range(draws):
        contrast = layout(rng, seeds, examples, sd, mean=0.0)
        rejected += crossed_t(contrast).p <= 0.05
    assert 0.025 <= rejected / draws <= 0.075


@pytest.mark.slow
@pytest.mark.parametrize("sd", [(1, 0, 1), (1, 0.5, 0.1), (0.3, 0, 1), (1, 1, 1)])
def test_drift_test_over_blocks_never_exceeds_its_level(sd):
    rng, draws = np.random.default_rng(9), 2000
    rejected = sum(crossed_t(layout(rng, 3, 5, sd, 0.0), "less", few_columns=True).p <= 0.05 for _ in range(draws))
    assert rejected / draws <= 0.065


@pytest.mark.parametrize("n_examples", [5, 32, 120, 500])
@pytest.mark.parametrize("value", [0.97, -1 / 3, 0.03 * 0.7])
def test_equal_mean_squares_drop_the_seed_term_whatever_the_rounding(n_examples, value):
    """One differing cell makes all three mean squares equal; the rule drops the seed term at equality, also after rounding."""
    for shift in (0.0, 0.03, 0.1):
        contrast = np.full((3, n_examples), shift)
        contrast[1, n_examples // 2] += value
        found = crossed_t(contrast)
        assert found.df == n_examples - 1 and "seed term dropped" in found.note
