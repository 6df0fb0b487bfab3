"""Similarity measures against brute-force float64, enumerated permutations, explicit leave-one-out, and their invariances."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunescope.drift import similarity as s
from tunescope.drift.gram import SMALL_PRODUCT, StatesError

CKAS = [s.linear_cka, s.debiased_cka]


def data(n=40, d=12, e=None, noise=0.5, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    e = e or d
    y = x @ rng.normal(size=(d, e)) / np.sqrt(d) + noise * rng.normal(size=(n, e))
    return x.astype(dtype), y.astype(dtype)


def rotation(d, seed=1):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(d, d)))[0]


def brute_plain(x, y):
    x, y = (v.astype(np.float64) - v.astype(np.float64).mean(0) for v in (x, y))
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic1(k, ell):
    """Song et al. 2012, equation for the unbiased HSIC, written as published."""
    n = len(k)
    k, ell = (m - np.diag(np.diag(m)) for m in (k, ell))
    one = np.ones(n)
    return (np.trace(k @ ell) + (one @ k @ one) * (one @ ell @ one) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (one @ k @ ell @ one)) / (
        n * (n - 3)
    )


def brute_debiased(x, y):
    x, y = (v.astype(np.float64) - v.astype(np.float64).mean(0) for v in (x, y))  # or float64 itself loses five digits at mean 3,000
    k, ell = x @ x.T, y @ y.T
    return hsic1(k, ell) / np.sqrt(hsic1(k, k) * hsic1(ell, ell))


@pytest.mark.parametrize(("n", "d", "e"), [(40, 12, 12), (12, 40, 40), (30, 7, 55), (5, 3, 3), (4, 6, 6)])
def test_both_estimators_equal_brute_force(n, d, e):
    x, y = data(n, d, e)
    assert s.linear_cka(x, y) == pytest.approx(brute_plain(x, y), abs=1e-12)
    assert s.debiased_cka(x, y) == pytest.approx(brute_debiased(x, y), abs=1e-11)


@pytest.mark.parametrize("form", CKAS)
def test_float32_gemm_keeps_float32_accuracy(form):
    x, y = data(300, 600, dtype=np.float32)
    assert x.shape[0] ** 2 * x.shape[1] > SMALL_PRODUCT
    assert s.gram(x).dtype is np.float32
    brute = {s.linear_cka: brute_plain, s.debiased_cka: brute_debiased}[form]
    assert form(x, y) == pytest.approx(brute(x, y), abs=2e-6)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(5, 24), d=st.integers(2, 30), seed=st.integers(0, 10**6))
def test_invariances_hold_for_any_shape(n, d, seed):
    x, y = data(n, d, seed=seed)
    order = np.random.default_rng(seed).permutation(n)
    for drift in (lambda a, b: s.cka_drift(a, b, debiased=False), s.cka_drift, s.procrustes):
        expected = drift(x, y)
        assert drift(x, y @ rotation(d)) == pytest.approx(expected, abs=1e-9)
        assert drift(x * 1e-6, y * 1e6) == pytest.approx(expected, abs=1e-9)
        assert drift(x + 3.0, y - 7.0) == pytest.approx(expected, abs=1e-9)
        assert drift(x[order], y[order]) == pytest.approx(expected, abs=1e-9)
        assert drift(y, x) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", [(40, 12), (300, 600)])
@pytest.mark.parametrize("debiased", [True, False])
def test_equal_states_drift_exactly_zero(shape, debiased):
    x, _ = data(*shape, dtype=np.float32)
    assert s.cka_drift(x, x.copy(), debiased=debiased) == 0.0
    assert s.procrustes(x, x.copy()) == 0.0


@pytest.mark.parametrize("debiased", [True, False])
def test_a_drift_of_1e_8_is_resolved_in_the_large_float32_path(debiased):
    x, _ = data(300, 600, dtype=np.float32)
    noise = np.random.default_rng(5).normal(size=x.shape)
    y = (x + 1.5e-4 * noise).astype(np.float32)
    brute = 1 - (brute_debiased(x, y) if debiased else brute_plain(x, y))
    assert 1e-9 < brute < 1e-7
    assert s.cka_drift(x, y, debiased=debiased) == pytest.approx(brute, rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_dimension_of_mean_3000_costs_nothing(dtype):
    x, y = data(300, 600, dtype=dtype)
    x[:, 3] += 3000
    y[:, 3] += 3000
    assert s.linear_cka(x, y) == pytest.approx(brute_plain(x, y), abs=2e-6)
    assert s.debiased_cka(x, y) == pytest.approx(brute_debiased(x, y), abs=2e-6)


def test_an_outlier_row_and_low_rank_agree_with_brute_force():
    x, y = data(300, 600, dtype=np.float32)
    x[7] *= 300
    assert s.linear_cka(x, y) == pytest.approx(brute_plain(x, y), abs=2e-6)
    assert s.debiased_cka(x, y) == pytest.approx(brute_debiased(x, y), abs=1e-5)
    low = np.outer(np.arange(20.0), np.ones(5)) + np.outer(np.arange(20.0) ** 2, np.eye(5)[0])
    _, other = data(20, 5)
    assert s.linear_cka(low, other) == pytest.approx(brute_plain(low, other), abs=1e-12)
    assert s.debiased_cka(low, other) == pytest.approx(brute_debiased(low, other), abs=1e-10)


def test_linear_cka_is_not_the_trace_normalised_variant():
    """With a product of traces below, CKA(X, X) would be the inverse participation ratio, not 1."""
    x, _ = data(30, 10)
    assert s.linear_cka(x, x) == 1.0


def test_debiased_values_may_be_negative_and_average_zero_for_unrelated_data():
    rng = np.random.default_rng(0)
    plain, debiased = [], []
    for _ in range(60):
        x, y = rng.normal(size=(40, 80)), rng.normal(size=(40, 80))
        plain.append(s.linear_cka(x, y))
        debiased.append(s.debiased_cka(x, y))
    assert min(debiased) < 0
    assert abs(np.mean(debiased)) < 3 * np.std(debiased) / np.sqrt(60)
    assert np.mean(plain) == pytest.approx(80 / (40 + 80), abs=0.03)  # d / (n + d)


@pytest.mark.parametrize(("n", "d"), [(4, 3), (5, 3), (6, 4), (6, 9)])
def test_chance_moments_equal_all_permutations(n, d):
    x, y = data(n, d, d + 1, seed=n)
    x[0] *= 5
    values = [s.linear_cka(x, y[list(order)]) for order in permutations(range(n))]
    mean, sd = s.cka_chance(x, y)
    assert mean == pytest.approx(np.mean(values), rel=1e-9)
    assert sd == pytest.approx(np.std(values), rel=1e-8)


def test_chance_moments_match_sampled_permutations_at_n_60():
    x, y = data(60, 20, dtype=np.float32)
    rng = np.random.default_rng(0)
    g = s.gram(x)
    values = [s.linear_cka(g, y[rng.permutation(60)]) for _ in range(800)]
    mean, sd = s.cka_chance(x, y)
    assert mean == pytest.approx(np.mean(values), abs=4 * sd / np.sqrt(800))
    assert sd == pytest.approx(np.std(values), rel=0.12)


@pytest.mark.parametrize(("n", "d"), [(5, 4), (12, 30), (25, 6)])
def test_standard_error_equals_explicit_leave_one_out(n, d):
    x, y = data(n, d, seed=3)
    left_out = np.array([s.debiased_cka(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(n)])
    expected = np.sqrt((n - 1) / n * np.sum((left_out - left_out.mean()) ** 2))
    assert s.cka_standard_error(x, y) == pytest.approx(expected, rel=1e-7)


def test_standard_error_is_accurate_near_one_and_zero_at_one():
    x, _ = data(60, 20)
    y = x + 1e-4 * np.random.default_rng(2).normal(size=x.shape)
    left_out = np.array([s.cka_drift(np.delete(x, i, 0), np.delete(y, i, 0)) for i in range(60)])
    expected = np.sqrt(59 / 60 * np.sum((left_out - left_out.mean()) ** 2))
    assert s.cka_standard_error(x, y) == pytest.approx(expected, rel=1e-6)
    assert s.cka_standard_error(x, x) == 0.0


def test_jackknife_error_matches_the_spread_over_fresh_samples():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(10, 10))
    draws, errors = [], []
    for _ in range(150):
        x = rng.normal(size=(80, 10))
        y = x @ mix + 2 * rng.normal(size=(80, 10))
        draws.append(s.debiased_cka(x, y))
        errors.append(s.cka_standard_error(x, y))
    assert np.mean(errors) == pytest.approx(np.std(draws), rel=0.2)


@pytest.mark.parametrize(("n", "d", "e"), [(30, 8, 8), (8, 30, 30), (20, 6, 40)])
def test_procrustes_equals_the_svd_in_feature_space(n, d, e):
    x, y = data(n, d, e)
    a, b = (v - v.mean(0) for v in (x, y))
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    expected = 2 - 2 * np.linalg.svd(a.T @ b, compute_uv=False).sum()
    assert s.procrustes(x, y) == pytest.approx(expected, abs=1e-9)
    if d == e:
        u, _, vt = np.linalg.svd(b.T @ a)
        assert s.procrustes(x, y) == pytest.approx(np.linalg.norm(a - b @ u @ vt) ** 2, abs=1e-9)


def test_cosines_against_their_definitions():
    x, y = data(30, 6, noise=0.3)
    x, y = x + 5, y + 5
    cosine = lambda a, b: np.mean(np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))  # noqa: E731
    m, sd = x.mean(0), x.std(0, ddof=1)
    assert s.cosine_similarity(x, y) == pytest.approx(cosine(x, y), abs=1e-12)
    assert s.cosine_similarity(x, y, "centred") == pytest.approx(cosine(x - m, y - m), abs=1e-12)
    assert s.cosine_similarity(x, y, "standardised") == pytest.approx(cosine((x - m) / sd, (y - m) / sd), abs=1e-12)


def test_raw_cosine_is_fooled_by_offset_dimensions_and_centred_is_not():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(200, 64)), rng.normal(size=(200, 64))
    for side in (x, y):
        side[:, :2] += 80
    assert s.cosine_similarity(x, y) > 0.99
    assert abs(s.cosine_similarity(x, y, "centred")) < 0.05


def test_displacement_and_mean_shift_in_closed_form():
    x, _ = data(30, 6)
    assert s.relative_displacement(x, 1.25 * x) == pytest.approx(0.25, rel=1e-12)
    shift = np.array([3.0, 4.0, 0, 0, 0, 0])
    rms = np.sqrt((x**2).sum() / 30)
    assert s.mean_shift(x, x + shift) == pytest.approx(5 / rms, rel=1e-12)
    assert s.cka_drift(x, x + shift) < 1e-20  # what CKA cannot see


def test_inputs_are_left_unchanged():
    x, y = data(20, 6)
    a, b = x.copy(), y.copy()
    for form in ("raw", "centred", "standardised"):
        s.cosine_similarity(x, y, form)
    for measure in (s.cka_drift, s.procrustes, s.relative_displacement, s.mean_shift, s.cka_standard_error, s.cka_chance):
        measure(x, y)
    assert (x == a).all()
    assert (y == b).all()


def test_a_cached_base_gram_gives_the_same_numbers():
    x, y = data(30, 50)
    g = s.gram(x)
    for measure in (s.linear_cka, s.debiased_cka, s.cka_standard_error, s.procrustes, s.cka_chance):
        assert measure(g, y) == measure(x, y)
    g.release()
    assert s.debiased_cka(g, y) == s.debiased_cka(x, y)


ALL = [s.linear_cka, s.debiased_cka, s.cka_standard_error, s.cka_chance, s.procrustes, s.cosine_similarity, s.mean_shift]


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_non_finite_states_raise_with_their_place(measure, value, dtype):
    x, y = data(20, 6, dtype=dtype)
    y[3, 2] = value
    with pytest.raises(StatesError, match=r"NaN or infinite.*example 3, dimension 2"):
        measure(x, y)


@pytest.mark.parametrize("measure", ALL)
def test_too_few_rows_and_unequal_rows_raise(measure):
    x, y = data(20, 6)
    with pytest.raises(StatesError, match="at least 4"):
        measure(x[:3], y[:3])
    with pytest.raises(StatesError, match="20 and 19"):
        measure(x, y[:19])


@pytest.mark.parametrize("measure", [s.linear_cka, s.debiased_cka, s.cka_standard_error, s.cka_chance, s.procrustes])
@pytest.mark.parametrize(("shape", "dtype"), [((20, 6), np.float64), ((300, 600), np.float32)])
def test_constant_features_raise(measure, shape, dtype):
    x, _ = data(*shape, dtype=dtype)
    constant = np.tile((np.random.default_rng(0).normal(size=shape[1]) * 1000 / 3).astype(dtype), (shape[0], 1))
    with pytest.raises(StatesError, match="constant"):
        measure(x, constant)


def test_equidistant_points_have_no_debiased_cka():
    with pytest.raises(StatesError, match="vanishes"):
        s.debiased_cka(np.eye(12), data(12, 5)[0])
    assert 0 < s.linear_cka(np.eye(12), data(12, 5)[0]) <= 1  # the plain one is defined


def test_row_wise_measures_refuse_unequal_widths_zero_rows_and_constant_dimensions():
    x, y = data(20, 6, 7)
    with pytest.raises(StatesError, match="equal widths"):
        s.cosine_similarity(x, y)
    zero = x.copy()
    zero[4] = 0
    with pytest.raises(StatesError, match="example 4"):
        s.cosine_similarity(x, zero)
    with pytest.raises(StatesError, match="example 4"):
        s.relative_displacement(zero, x)
    flat = x.copy()
    flat[:, 1] = 2
    with pytest.raises(StatesError, match="1 dimensions are constant"):
        s.cosine_similarity(flat, x, "standardised")


def test_huge_and_tiny_scales_neither_overflow_nor_vanish():
    x, y = data(300, 600, dtype=np.float32)
    expected = s.cka_drift(x, y)
    assert s.cka_drift(x * np.float32(1e-25), y * np.float32(1e25)) == pytest.approx(expected, rel=1e-5)
