"""Effect sizes, paired tables, correlations and power against statsmodels, published examples and simulation."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.contingency_tables import mcnemar as reference_mcnemar
from statsmodels.stats.power import TTestPower

from tunescope.analysis.effects import (
    anova,
    cohens_dz,
    hedges_correction,
    paired_anova,
    pooled_correlation,
    tukey,
    within_correlation,
)
from tunescope.analysis.inference import (
    Components,
    components,
    detectable_margin,
    detectable_shift,
    examples_needed,
    mcnemar,
    power,
    seeds_needed,
    units_needed,
)


@pytest.mark.parametrize(("n10", "n01"), [(1, 7), (12, 5), (0, 3), (9, 9), (40, 41)])
def test_mcnemar_exact_is_statsmodels(n10, n01):
    assert mcnemar(n10, n01).p_exact == pytest.approx(reference_mcnemar([[0, n10], [n01, 0]], exact=True).pvalue)


def test_mcnemar_mid_p_of_a_published_example():
    found = mcnemar(1, 7)  # Fagerland, Lydersen & Laake (2013), airway hyper-responsiveness: exact 0.070, mid-p 0.039
    assert (round(found.p_exact, 3), round(found.p_mid, 3)) == (0.070, 0.039)
    assert found.odds_ratio == pytest.approx(1 / 7)
    low, high = stats.binomtest(1, 8).proportion_ci(method="exact")
    assert found.interval == pytest.approx((low / (1 - low), high / (1 - high)))


def test_mcnemar_without_discordant_pairs_or_a_bound():
    assert mcnemar(0, 0).p_exact == 1 and mcnemar(0, 0).odds_ratio is None
    assert mcnemar(4, 0).interval[1] is None and mcnemar(4, 0).odds_ratio is None


def test_hedges_correction():
    for m in (2, 4, 9, 40):
        exact = math.gamma(m / 2) / (math.sqrt(m / 2) * math.gamma((m - 1) / 2))
        assert hedges_correction(m) == pytest.approx(exact)
    assert hedges_correction(9) == pytest.approx(1 - 3 / (4 * 9 - 1), abs=1e-3)


def test_dz_limits_are_noncentral_t_quantiles():
    values = np.array([0.3, 0.5, 0.1, 0.4, 0.6])
    d, (low, high) = cohens_dz(values)
    j, t = hedges_correction(4), values.mean() / values.std(ddof=1) * math.sqrt(5)
    assert d == pytest.approx(j * t / math.sqrt(5))
    assert stats.nct.sf(t, 4, low * math.sqrt(5)) == pytest.approx(0.025, abs=1e-6)
    assert stats.nct.cdf(t, 4, high * math.sqrt(5)) == pytest.approx(0.025, abs=1e-6)
    assert cohens_dz(np.array([1.0, 2.0])) is None and cohens_dz(np.full(4, 0.2)) is None


def test_anova_against_hand_computed_sums_of_squares():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        [{"method": m, "task": t, "value": rng.normal(0.8 - 0.05 * m, 0.02)} for m in range(2) for t in range(3) for _ in range(4)]
    )
    rows = {r["effect"]: r for r in anova(frame)}
    grand, cells = frame.value.mean(), frame.groupby(["method", "task"]).value
    ss_method = 12 * ((frame.groupby("method").value.mean() - grand) ** 2).sum()
    ss_error = ((frame.value - cells.transform("mean")) ** 2).sum()
    mse = ss_error / 18
    assert rows["method"]["F"] == pytest.approx(ss_method / mse)
    assert rows["method"]["partial_eta2"] == pytest.approx(ss_method / (ss_method + ss_error))
    assert rows["method"]["partial_omega2"] == pytest.approx((ss_method - mse) / (ss_method + (24 - 1) * mse))
    assert anova(frame[frame.task == 0]) == [] and paired_anova(frame[frame.task == 0]) == []
    gaps = paired_anova(frame)
    groups = [g.value.to_numpy() for _, g in frame.groupby("task")]
    assert gaps[0]["p"] == pytest.approx(stats.f_oneway(*groups).pvalue)


def test_tukey_needs_three_methods_and_is_scipys():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame([{"method": m, "task": "t", "value": rng.normal(k, 1)} for k, m in enumerate("abc") for _ in range(6)])
    rows = tukey(frame)
    expected = stats.tukey_hsd(*[frame[frame.method == m].value.to_numpy() for m in "abc"])
    assert rows[0]["p_adjusted"] == pytest.approx(expected.pvalue[0, 1], abs=1e-6)
    assert rows[0]["difference"] == pytest.approx(expected.statistic[0, 1])
    assert tukey(frame[frame.method != "c"]) == []


def test_tukey_over_tasks_of_unequal_size_is_the_additive_models():
    """Four methods, three tasks, a task with fewer seeds: contrasts of statsmodels' fit against the studentised range."""
    rng, sizes = np.random.default_rng(1), {"x": 3, "y": 3, "z": 2}
    cells = [(m, k, t) for k, m in enumerate("abcd") for t, n in sizes.items() for _ in range(3 if m == "d" else n)]
    frame = pd.DataFrame([{"method": m, "task": t, "value": 0.05 * k + 0.3 * (t == "z") + rng.normal(0, 0.03)} for m, k, t in cells])
    fit = ols("value ~ C(method) + C(task)", frame).fit()
    rows = tukey(frame)
    assert len(rows) == 6
    for row in rows:
        contrast = np.array(
            [(p == f"C(method)[T.{row['method']}]") * 1.0 - (p == f"C(method)[T.{row['against']}]") for p in fit.params.index]
        )
        test = fit.t_test(contrast)
        half = stats.studentized_range.ppf(0.95, 4, fit.df_resid) / math.sqrt(2) * float(test.sd.item())
        assert row["difference"] == pytest.approx(float(test.effect.item()))
        assert (row["low"], row["high"]) == pytest.approx((row["difference"] - half, row["difference"] + half))
        p = stats.studentized_range.sf(abs(float(test.tvalue.item())) * math.sqrt(2), 4, fit.df_resid)
        assert row["p_adjusted"] == pytest.approx(p, abs=1e-9)


def test_tukey_compares_only_methods_that_tasks_connect():
    """a and b on two tasks, c and d on another: their additive model tells a from b and c from d, and nothing across."""
    rng = np.random.default_rng(3)
    cells = [(m, t) for m, tasks in {"a": "xy", "b": "xy", "c": "z", "d": "z"}.items() for t in tasks for _ in range(3)]
    frame = pd.DataFrame([{"method": m, "task": t, "value": 0.5 * (t == "z") + rng.normal(0, 0.03)} for m, t in cells])
    rows = {(row["method"], row["against"]): row for row in tukey(frame)}
    assert set(rows) == {("a", "b"), ("c", "d")}
    mean = frame.groupby("method").value.mean()
    assert rows["c", "d"]["difference"] == pytest.approx(mean["c"] - mean["d"])
    fits = [ols("value ~ C(method) + C(task)", frame[frame.task != "z"]).fit(), ols("value ~ C(method)", frame[frame.task == "z"]).fit()]
    error = sum(fit.ssr for fit in fits) / sum(fit.df_resid for fit in fits)
    half = stats.studentized_range.ppf(0.95, 4, 13) * math.sqrt(error / 3)
    assert rows["c", "d"]["high"] - rows["c", "d"]["difference"] == pytest.approx(half)


def test_within_task_correlation_is_the_ancova_one():
    rng = np.random.default_rng(2)
    groups = np.repeat(list("abcd"), 6)
    x = rng.random(24) + np.repeat(np.arange(4), 6)
    y = -1.0 * x + 2 * np.repeat(np.arange(4), 6) + 0.3 * rng.standard_normal(24)
    fit = ols("y ~ x + C(g)", data=pd.DataFrame({"x": x, "y": y, "g": groups})).fit()
    t = fit.tvalues["x"]
    found = within_correlation(x, y, list(groups))
    assert found.r == pytest.approx(np.sign(t) * math.sqrt(t**2 / (t**2 + fit.df_resid)))
    assert (found.df, found.p) == pytest.approx((fit.df_resid, fit.pvalues["x"]))
    pooled = pooled_correlation(x, y)
    assert (pooled.r, pooled.p) == pytest.approx(stats.pearsonr(x, y))
    assert found.r < 0 < pooled.r  # differences between tasks turn the pooled sign over


def test_correlations_of_too_little_are_none():
    assert within_correlation(np.array([1.0, 2]), np.array([1.0, 2]), ["a", "b"]) is None
    assert pooled_correlation(np.array([]), np.array([])) is None
    assert pooled_correlation(np.ones(5), np.arange(5.0)) is None


def test_equal_values_correlate_with_nothing_whatever_their_mean_rounds_to():
    rng = np.random.default_rng(0)
    for share in rng.integers(100, 1700, 50) / 1725:
        x, y = np.array([share] * 10 + [share / 3] * 10), rng.random(20)
        assert within_correlation(x, y, ["a"] * 10 + ["b"] * 10) is within_correlation(y, x, ["a"] * 10 + ["b"] * 10) is None
        assert pooled_correlation(x[:10], y[:10]) is pooled_correlation(y[:10], x[:10]) is None
    tiny = np.arange(5.0) * 1e-10
    assert pooled_correlation(tiny, tiny).r == pytest.approx(1)  # small is not constant


def test_components_come_back():
    rng = np.random.default_rng(3)
    values = 0.4 * rng.standard_normal((60, 1)) + 0.8 * rng.standard_normal((1, 400)) + 0.5 * rng.standard_normal((60, 400))
    found = components(values)
    assert (found.seeds, found.examples, found.residual) == pytest.approx((0.4, 0.8, 0.5), rel=0.2)


def test_detectable_margin_has_the_power_it_promises():
    sd = Components(0.01, 0.15, 0.2)
    margin = detectable_margin(sd, 0.8, 3, 300)
    assert power(sd, margin * 0.8, 3, 300) == pytest.approx(0.8, abs=1e-6)
    assert power(sd, 0.024, 5, 300) > power(sd, 0.024, 3, 300)
    assert power(sd, 0.0, 3, 300) == pytest.approx(0.05)
    assert detectable_margin(Components(1, 1, 1), 0.1, 3, 10) is None
    assert power(Components(0, 0, 0), 0.1, 3, 10) == 1 and 0 <= power(Components(1e-6, 1e-6, 1e-6), 0.5, 3, 100) <= 1


def test_needed_numbers_are_the_smallest_that_reach_80_per_cent():
    sd = Components(0.01, 0.15, 0.2)
    seeds, examples = seeds_needed(sd, 0.02, 500), examples_needed(sd, 0.02, 5)
    assert power(sd, 0.02, seeds, 500) >= 0.8 > power(sd, 0.02, seeds - 1, 500)
    assert power(sd, 0.02, 5, examples) >= 0.8 > power(sd, 0.02, 5, examples - 1)
    assert seeds_needed(sd, 0.001, 500) is None and examples_needed(sd, 0.001, 3) is None, "more of one alone is not enough"


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_needed_units_are_those_of_statsmodels(ratio):
    """TTestPower of statsmodels is the noncentral t as well, by another route."""
    n = units_needed(1.0, ratio)
    exact = TTestPower().solve_power(effect_size=ratio, alpha=0.05, power=0.8, alternative="larger")
    assert n == math.ceil(float(np.squeeze(exact)))
    shown = detectable_shift(2.0, n)
    assert TTestPower().power(shown / 2.0, n, 0.05, alternative="larger") == pytest.approx(0.8, abs=1e-5)
    assert units_needed(0.0, 0.1) == 2 and units_needed(1.0, -0.1) is None


def test_a_shift_that_no_test_of_two_seeds_detects_is_none_and_no_traceback():
    """It took the whole report with it: at an alpha of 0.001 two units need a shift of over 200 standard errors."""
    assert detectable_shift(2.0, 2, alpha=0.001) is None
    assert detectable_shift(2.0, 3, alpha=0.001) == pytest.approx(2.0 * detectable_shift(1.0, 3, alpha=0.001))


@pytest.mark.parametrize(
    "differences", [[0.5, 0.55, 0.6], [-0.14, 0.1, -0.35], [0.9, 1.1, 1.0], [-3.0, -3.1, -3.3], [0.1, 0.2, -0.25, 0.3]]
)
def test_limits_of_d_z_exist_and_invert_the_noncentral_t(differences):
    values = np.array(differences)
    n = len(values)
    d, limits = cohens_dz(values)
    t = values.mean() / values.std(ddof=1) * np.sqrt(n)
    assert None not in limits and limits[0] < d < limits[1]
    assert [stats.nct.cdf(t, n - 1, x * np.sqrt(n)) for x in limits] == pytest.approx([0.975, 0.025], abs=1e-6)
