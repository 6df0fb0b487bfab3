"""Tango, TOST, break-even and agreement against published examples, statsmodels and brute force."""

import math

import numpy as np
import pytest
from scipy import optimize, stats
from statsmodels.stats.meta_analysis import combine_effects
from statsmodels.stats.weightstats import ttost_paired

from tunescope.analysis import inference
from tunescope.analysis.inference import break_even, cochran_q, fit_line, mcnemar, tango, tost_paired


def test_everything_is_public():
    assert all(hasattr(inference, name) for name in inference.__all__)


def test_tango_of_its_published_example():
    """Tango (1998), soft contact lenses: 43 of 44 pairs right under both, 1 under the second only, margin 0.1: Z = 1.709, p = 0.044."""
    found = tango(0, 1, 44, null=-0.1)
    assert (round(found.z, 3), round(found.p, 3)) == (1.709, 0.044)
    assert found.interval == pytest.approx((-0.096, 0.037), abs=1e-3)


def test_tango_of_another_implementation():
    """PropCIs::scoreci.mp(25, 28, 618, 0.90) in R: -0.0148 to 0.0247 (second less first)."""
    low, high = tango(25, 28, 618).interval
    assert (round(-high, 4), round(-low, 4)) == (-0.0148, 0.0247)


@pytest.mark.parametrize(("n10", "n01", "n", "null"), [(12, 3, 60, 0.05), (4, 9, 40, -0.1), (0, 5, 30, -0.03)])
def test_tango_is_the_score_test_at_the_constrained_likelihood(n10, n01, n, null):
    def loss(q):
        p10 = q + null
        rest = 1 - q - p10
        terms = [(n10, p10), (n01, q), (n - n10 - n01, rest)]
        return -sum(k * math.log(max(p, 1e-300)) for k, p in terms if k)

    q = optimize.minimize_scalar(loss, bounds=(max(0, -null), (1 - null) / 2), method="bounded", options={"xatol": 1e-12}).x
    z = (n10 - n01 - n * null) / math.sqrt(n * (2 * q + null - null**2))
    assert tango(n10, n01, n, null=null).z == pytest.approx(z, rel=1e-4)


def test_tango_at_null_0_is_mcnemars_z_and_mirrors():
    assert tango(12, 5, 100).z == pytest.approx(7 / math.sqrt(17))
    one, other = tango(12, 5, 100).interval, tango(5, 12, 100).interval
    assert one == pytest.approx((-other[1], -other[0]))
    with pytest.raises(ValueError, match="do not fit"):
        tango(8, 8, 10)


def test_tost_is_statsmodels():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.02, 12), rng.normal(0.8, 0.02, 12)
    found = tost_paired(a, b, -0.03, 0.03)
    assert found.p == pytest.approx(ttost_paired(a, b, -0.03, 0.03)[0])
    inside = found.interval[0] > -0.03 and found.interval[1] < 0.03
    assert inside == (found.p < 0.05)


def test_mcnemar_says_what_it_can_attain():
    assert (mcnemar(3, 0).attainable_p, mcnemar(3, 0).p_exact) == pytest.approx((0.25, 0.25))
    assert mcnemar(6, 0).attainable_p == pytest.approx(2 / 64)


def test_break_even_inverts_the_test_of_the_line():
    rng = np.random.default_rng(1)
    x = np.repeat([1.0, 2.0, 4.0], 10)
    line = fit_line(x, 0.1 + 0.05 * x + rng.normal(0, 0.01, x.size))
    found = break_even(line, 0.3)
    assert found.bounded and found.low < 4 < found.high
    (va, c), (_, vb) = line.covariance
    for at in (found.low, found.high):  # at its own limits the line's height is just compatible with the limit
        t = (line.intercept + line.slope * at - 0.3) / math.sqrt(va + 2 * at * c + at * at * vb)
        assert abs(t) == pytest.approx(stats.t.ppf(0.95, line.df))
    flat = fit_line(x, rng.normal(0.1, 0.05, x.size))
    assert not break_even(flat, 0.3).bounded


def test_cochran_q_is_statsmodels():
    y, se = np.array([0.1, 0.2, -0.05, 0.3]), np.array([0.05, 0.1, 0.08, 0.06])
    found, expected = cochran_q(y, se), combine_effects(y, se**2)
    assert (found.q, found.i2, found.mean) == pytest.approx((expected.q, expected.i2, expected.mean_effect_fe))
    assert cochran_q([0.1], [0.1]) is None
