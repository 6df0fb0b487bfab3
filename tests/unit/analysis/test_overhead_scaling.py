import math

import numpy as np
import pytest
from scipy import stats

from launch_rows import cell, engines, row
from tunescope.analysis.crossed import fieller
from tunescope.analysis.overhead_scaling import OverheadModel, break_even, measured_together, overhead_model
from tunescope.analysis.regression import lack_of_fit


def test_an_exact_line_is_recovered():
    model = overhead_model(engines({1: 0.15, 2: 0.20, 4: 0.30}, launches=3), "merged")
    assert (model.intercept, model.slope) == pytest.approx((0.10, 0.05))
    assert model.theil_sen_slope == pytest.approx(0.05) and model.fitted_range == (1, 4)
    assert model.predict(3) == (pytest.approx(0.25), False) and model.predict(8) == (pytest.approx(0.50), True)


def test_limits_are_those_of_the_launches_own_lines():
    """Against numpy's fit of each launch by itself."""
    rows = engines({1: 0.1, 2: 0.2, 4: 0.3}, launches=5, noise=0.05)
    ms = {(r["arm"], r["launch"]): r["cells"][0]["ms_per_token"] for r in rows}
    y = [[ms[f"adapters_{n}", k] / ms["merged", k] - 1 for n in (1, 2, 4)] for k in range(5)]
    slopes, intercepts = np.array([np.polyfit([1, 2, 4], line, 1) for line in y]).T
    model, quantile = overhead_model(rows, "merged"), stats.t.ppf(0.95, 4)
    for found, limits, each in ((model.intercept, model.intercept_interval, intercepts), (model.slope, model.slope_interval, slopes)):
        half = quantile * each.std(ddof=1) / math.sqrt(5)
        assert found == pytest.approx(each.mean()) and limits == pytest.approx((each.mean() - half, each.mean() + half))
    assert np.array(model.covariance) == pytest.approx(np.cov(intercepts, slopes) / 5) and model.df == 4


def test_a_launch_that_lacks_an_arm_is_left_out():
    rows = [r for r in engines({1: 0.1, 2: 0.2}, launches=4, noise=0.05) if (r["arm"], r["launch"]) != ("adapters_2", 3)]
    assert overhead_model(rows, "merged").df == 2
    assert overhead_model([r for r in rows if r["launch"] in (0, 3)], "merged") is None, "one whole launch has no spread"


def test_an_arm_measured_in_other_launches_leaves_the_rest_to_be_fitted():
    together, apart = engines({1: 0.1, 4: 0.4}, launches=3, noise=0.02), engines({2: 0.2}, launches=10, noise=0.02)
    rows = together + [{**r, "launch": r["launch"] + 3} for r in apart]
    model, alone = overhead_model(rows, "merged"), overhead_model(together, "merged")
    assert (model.slope, model.covariance, model.fitted_range, model.df) == (alone.slope, alone.covariance, (1, 4), 2)
    assert model.apart == (2,) and "in other launches: 2 adapters" in model.apart_text()
    assert alone.apart == () and alone.apart_text() == ""


def test_of_as_many_arms_those_with_most_launches_are_fitted():
    lack = {("adapters_1", 2), ("adapters_1", 3), ("adapters_4", 0), ("adapters_4", 1)}
    rows = [r for r in engines({1: 0.1, 2: 0.2, 4: 0.4}, launches=5, noise=0.02) if (r["arm"], r["launch"]) not in lack]
    assert measured_together(rows, "merged") == {"adapters_2": 2, "adapters_4": 4}, "three launches as 1 and 2 have, and the wider range"
    rows = [r for r in rows if (r["arm"], r["launch"]) != ("adapters_4", 4)]
    assert measured_together(rows, "merged") == {"adapters_1": 1, "adapters_2": 2}
    assert measured_together(engines({1: 0.1, 2: 0.2}, launches=1), "merged") == {}


def test_lack_of_fit_is_the_analysis_of_variance_against_pure_error():
    x = np.repeat([1.0, 2.0, 4.0], 4)
    rng = np.random.default_rng(3)
    bent = np.where(x == 2, 0.5, 0.0) + rng.normal(0, 0.01, x.size)
    fitted = np.polyval(np.polyfit(x, bent, 1), x)
    groups = [bent[x == v] for v in (1, 2, 4)]
    pure = sum(((g - g.mean()) ** 2).sum() for g in groups)
    lack = sum(4 * (g.mean() - f) ** 2 for g, f in zip(groups, fitted[[0, 4, 8]], strict=True))
    assert lack_of_fit(x, bent, fitted) == pytest.approx(stats.f.sf(lack / 1 / (pure / 9), 1, 9))
    assert lack_of_fit(x, bent, fitted) < 1e-6
    assert lack_of_fit(np.array([1.0, 2.0, 4.0]), bent[:3], fitted[:3]) is None


def test_lack_of_fit_p_is_uniform_on_a_straight_line():
    rng, x = np.random.default_rng(7), np.repeat([1.0, 2.0, 4.0], 5)
    values = []
    for _ in range(300):
        y = 0.1 + 0.05 * x + rng.normal(0, 0.02, x.size)
        values.append(lack_of_fit(x, y, np.polyval(np.polyfit(x, y, 1), x)))
    assert stats.kstest(values, "uniform").pvalue > 0.001


def test_fieller_with_a_known_numerator_inverts_the_interval_of_the_denominator():
    low, high = fieller(top=6.0, bottom=2.0, v11=0.0, v12=0.0, v22=0.04, quantile=2.0)
    assert (low, high) == pytest.approx((6 / 2.4, 6 / 1.6))


def test_fieller_with_a_known_denominator_is_a_plain_interval():
    assert fieller(6.0, 2.0, 0.25, 0.0, 0.0, 2.0) == pytest.approx((2.5, 3.5))


def test_fieller_limits_solve_its_quadratic():
    num, den, v_num, v_den, cov, t = 3.0, 1.5, 0.2, 0.05, -0.04, 1.8
    for limit in fieller(num, den, v_num, cov, v_den, t):
        assert (num - limit * den) ** 2 == pytest.approx(t * t * (v_num - 2 * limit * cov + limit**2 * v_den))


def test_fieller_is_unbounded_when_the_denominator_is_not_clear_of_zero():
    assert fieller(1.0, 0.1, 0.1, 0.0, 0.01, 2.0) == (None, None)
    assert fieller(1.0, 0.0, 0.1, 0.0, 0.01, 2.0) == (None, None)


def test_break_even_is_where_the_line_meets_the_limit():
    found = break_even(overhead_model(engines({1: 0.15, 2: 0.20, 4: 0.30}, noise=0.004, launches=10), "merged"), 0.30)
    assert found.status == "bounded" and found.adapters == pytest.approx(4.0, abs=0.3)
    assert found.low < found.adapters < found.high


def test_break_even_outside_the_measured_range_says_so():
    found = break_even(overhead_model(engines({1: 0.11, 2: 0.12, 4: 0.14}, noise=0.0005), "merged"), 0.30)
    assert found.status == "extrapolated" and found.adapters == pytest.approx(20, rel=0.2)
    assert "(extrapolated beyond the measured 1 to 4)" in found.text and "beyond the 4 measured" in found.text


def line(intercept, slope, error, fitted_range=(1, 4)):
    """A model with a known intercept and this standard error of the slope: limits are (limit - intercept) / (slope -+ t error)."""
    covariance = ((0.0, 0.0), (0.0, error**2))
    none = (0.0, 0.0)
    return OverheadModel(intercept, slope, covariance, none, none, slope, none, None, 0.90, 9, fitted_range, (), ())


@pytest.mark.parametrize(("fitted_range", "fewest"), [((1, 4), 1), ((2, 8), 2)])
def test_above_the_limit_at_the_fewest_adapters_is_no_number_of_adapters(fitted_range, fewest):
    found = break_even(line(0.5, 0.1, 0.01, fitted_range), 0.30)  # the line meets 30 % at -2 adapters
    assert (found.status, found.adapters, found.low, found.high) == ("already above", None, None, None)
    assert f"(N = {fewest}: {50 + 10 * fewest}% by the fitted line)" in found.text
    assert found.text.endswith(f"reaches 30%: fewer than {fewest}.") and "-" not in found.text


def test_limits_that_reach_into_or_beyond_the_measured_range_leave_above_uncertain():
    within = break_even(line(0.2, 0.11, 0.02), 0.30)  # meets 30 % at 0.91
    assert (within.status, within.low, within.high) == ("already above", None, pytest.approx(0.1 / (0.11 - 0.02 * stats.t.ppf(0.95, 9))))
    assert within.text.endswith("fewer than 1 to 1.4, so this is not certain.")
    beyond = break_even(line(0.2, 0.11, 0.0595), 0.30)
    assert beyond.status == "already above" and beyond.high > 100 and ", beyond the 4 measured, so this is not certain" in beyond.text


def test_a_limit_below_the_fewest_adapters_is_worded():
    found = break_even(line(0.15, 0.1, 0.04), 0.30)
    assert found.status == "bounded" and found.adapters == pytest.approx(1.5) and found.low is None
    assert "at 1.5 adapters, 90% limits fewer than 1 to 5.6, beyond the 4 measured." in found.text


def test_a_flat_overhead_has_no_break_even():
    found = break_even(overhead_model(engines({1: 0.5, 2: 0.5, 4: 0.5}, noise=0.05), "merged"), 0.30)
    assert found.status == "unbounded" and found.adapters is None and "covers 0" in found.text
    assert "53% with 1" in found.text and "with 4, the fewest and the most measured" in found.text


def test_a_falling_overhead_is_called_out():
    model = overhead_model(engines({1: 0.6, 2: 0.5, 4: 0.3}, noise=0.001), "merged")
    found = break_even(model, 0.1)
    assert (found.status, found.adapters, found.high) == ("falling", None, None) and "falls as adapters are added" in found.text


def test_unbounded_exactly_when_the_interval_of_the_slope_covers_zero():
    for seed in range(20):
        model = overhead_model(engines({1: 0.30, 2: 0.31, 4: 0.33}, launches=4, noise=0.03, seed=seed), "merged")
        covers = model.slope_interval[0] <= 0 <= model.slope_interval[1]
        assert (break_even(model, 0.5).status == "unbounded") is covers


def test_the_model_uses_cells_that_hold_all_adapters():
    rows = engines({2: 0.2, 4: 0.4}, launches=2, batch=4)
    for r in rows:
        r["cells"].append(cell(50.0 if r["arm"] == "adapters_4" else 2.0, batch=1))
    model = overhead_model(rows, "merged")
    assert model.cells == ((4, 128, "greedy"),) and model.slope == pytest.approx(0.1)


def test_one_number_of_adapters_makes_no_model():
    assert overhead_model(engines({2: 0.2}), "merged") is None
    assert overhead_model([], "merged") is None


def test_arms_with_spare_slots_or_unwrapped_layers_are_no_points():
    rows = engines({1: 0.15, 2: 0.20, 4: 0.30}, launches=3, noise=0.01)
    others = [row(arm, k, [cell(9.0, batch=4)]) for arm in ("adapters_2_of_8", "adapters_2_narrow", "lora_idle") for k in range(3)]
    assert overhead_model(rows + others, "merged") == overhead_model(rows, "merged")
