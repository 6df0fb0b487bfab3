"""Weight measures against dense references and closed forms."""

import numpy as np
import pytest

from tunescope.drift.gram import StatesError
from tunescope.drift.weights import (
    effective_rank,
    intruder_dimensions,
    intruders,
    left_vectors,
    lora_update,
    relative_update_norm,
    stable_rank,
)

RNG = np.random.default_rng(0)


def test_lora_update_equals_the_dense_product():
    a, b = RNG.normal(size=(4, 30)), RNG.normal(size=(50, 4))
    dense = 2.0 * b @ a
    values = np.linalg.svd(dense, compute_uv=False)[:4]
    update = lora_update(a, b, 2.0)
    assert np.allclose(update.singular_values, values)
    assert update.norm == pytest.approx(np.linalg.norm(dense))
    assert update.stable_rank == pytest.approx(stable_rank(dense))
    assert update.effective_rank == pytest.approx(effective_rank(dense), rel=1e-6)
    assert update.utilisation == pytest.approx(update.effective_rank / 4)


def test_lora_rank_larger_than_a_side_still_works():
    a, b = RNG.normal(size=(8, 5)), RNG.normal(size=(6, 8))
    values = np.linalg.svd(b @ a, compute_uv=False)
    assert np.allclose(sorted(lora_update(a, b, 1.0).singular_values)[-5:], sorted(values)[-5:])


def test_lora_update_uses_all_or_one_direction():
    orthogonal = lora_update(np.eye(3, 10), np.eye(12, 3), 1.5)
    assert orthogonal.utilisation == pytest.approx(1.0)
    single = lora_update(np.ones((3, 10)), np.ones((12, 3)), 1.0)
    assert single.effective_rank == pytest.approx(1.0, abs=1e-6)


def test_a_zero_update_has_no_rank_but_no_error():
    update = lora_update(RNG.normal(size=(4, 30)), np.zeros((50, 4)), 2.0)
    assert (update.norm, update.stable_rank, update.utilisation) == (0.0, None, None)


def test_lora_errors():
    with pytest.raises(StatesError, match="rank 3 but B has rank 4"):
        lora_update(np.ones((3, 5)), np.ones((6, 4)), 1.0)
    with pytest.raises(StatesError, match="NaN"):
        lora_update(np.full((3, 5), np.nan), np.ones((6, 3)), 1.0)


def test_ranks_in_closed_form():
    assert stable_rank(np.diag([2.0, 1.0, 1.0])) == pytest.approx(1.5)
    assert effective_rank(np.eye(5)) == pytest.approx(5)
    assert effective_rank(np.diag([1.0, 0.0])) == pytest.approx(1)
    with pytest.raises(StatesError, match="zero matrix"):
        stable_rank(np.zeros((3, 3)))


def test_relative_update_norm():
    w = RNG.normal(size=(5, 7))
    assert relative_update_norm(w, 1.1 * w) == pytest.approx(0.1)
    with pytest.raises(StatesError, match="all zero"):
        relative_update_norm(np.zeros((2, 2)), np.ones((2, 2)))
    with pytest.raises(StatesError, match="one shape"):
        relative_update_norm(w, w.T)


def low_rank(rank=12):
    u = np.linalg.qr(RNG.normal(size=(60, 60)))[0]
    v = np.linalg.qr(RNG.normal(size=(40, 40)))[0]
    return u, v, u[:, :rank] @ np.diag(np.linspace(10, 1, rank)) @ v[:, :rank].T


def test_a_new_strong_direction_is_one_intruder_and_none_without_update():
    u, v, w = low_rank()
    assert intruder_dimensions(w, w) == 0
    assert intruder_dimensions(w, w + 20 * np.outer(u[:, 30], v[:, 30])) == 1
    assert intruder_dimensions(w, w + 20 * np.outer(u[:, 30], v[:, 30]) + 15 * np.outer(u[:, 31], v[:, 31])) == 2
    assert intruder_dimensions(w, w + 0.5 * np.outer(u[:, 30], v[:, 30])) == 0  # weaker than the top ten


def test_float32_base_vectors_count_the_same_intruders():
    u, v, w = low_rank()
    tuned = w + 20 * np.outer(u[:, 30], v[:, 30])
    assert intruders(left_vectors(w.astype(np.float32)), tuned) == 1
    assert left_vectors(w.astype(np.float32)).shape == (60, 12)
