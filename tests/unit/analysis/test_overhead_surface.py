"""The joint model in adapters and batch, on planted launches."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats

from launch_rows import cell, row
from tunescope.analysis.overhead_surface import surface
from tunescope.analysis.tables import plain
from tunescope.analysis.tables_serving import surface_table
from tunescope.study.schema import AnalysisSpec

ARMS = {"merged": 0, "adapters_1": 1, "adapters_2": 2, "adapters_4": 4}


def planted(launches=10, noise=0.0, shared=0.0, seed=0, bend=0.0):
    """overhead = 0.10 + 0.05 N + 0.02 log2 B, with noise per cell and an error that all arms with adapters of one launch share."""
    rng, rows = np.random.default_rng(seed), []
    for launch in range(launches):
        common = rng.normal(0, shared)
        for arm, n in ARMS.items():
            cells = []
            for batch in (1, 2, 4, 16):
                over = 0.10 + 0.05 * n + 0.02 * math.log2(batch) + common + (bend if (n, batch) == (4, 4) else 0) if n else 0.0
                cells.append(cell(2.0 * (1 + over) * math.exp(rng.normal(0, noise)), batch=batch))
            rows.append(row(arm, launch, cells, adapters=range(n)))
    return rows


def test_an_exact_surface_is_recovered_from_cells_that_hold_all_adapters():
    found = surface(planted(launches=3), "merged")
    assert found.fit.coefficients_C == pytest.approx([0.10, 0.05, 0.02])
    assert (4, 2) not in found.points and (4, 4) in found.points and len(found.points) == 4 + 3 + 2
    assert found.predict(4, 16)[0] == pytest.approx(0.38) and found.predict(4, 16)[3] is False
    assert found.predict(8, 16)[3] and found.predict(4, 2)[3] and found.predict(2, 64)[3]


def test_limits_are_t_over_the_fits_of_single_launches():
    rows = planted(launches=6, noise=0.02, shared=0.05)
    found = surface(rows, "merged")
    design = np.array([[1.0, n, math.log2(b)] for n, b in found.points])
    fits = []
    for launch in range(6):
        mine = {r["arm"]: {c["batch_size"]: c["ms_per_token"] for c in r["cells"]} for r in rows if r["launch"] == launch}
        y = [mine[f"adapters_{n}"][b] / mine["merged"][b] - 1 for n, b in found.points]
        fits.append(np.linalg.lstsq(design, np.array(y), rcond=None)[0])
    fits = np.array(fits)
    for i in range(3):
        low, high = stats.t.interval(0.90, 5, fits[:, i].mean(), stats.sem(fits[:, i]))
        assert found.fit.estimate(np.eye(3)[i]) == pytest.approx((fits[:, i].mean(), low, high))


def test_limits_hold_their_level_when_launches_differ_as_a_whole():
    inside = 0
    for seed in range(200):
        _, low, high = surface(planted(launches=5, noise=0.01, shared=0.05, seed=seed), "merged").fit.estimate(np.eye(3)[0])
        inside += low <= 0.10 <= high
    assert 0.84 <= inside / 200 <= 0.96


def test_a_point_off_the_surface_is_named_with_its_p():
    found = surface(planted(noise=0.005, bend=0.3), "merged").plain()
    assert (found["worst_miss"]["adapters"], found["worst_miss"]["batch_size"]) == (4, 4) and found["worst_miss"]["overhead"] > 0.05
    assert found["misfit_p"] < 1e-3 < 0.01 < surface(planted(noise=0.005), "merged").plain()["misfit_p"]


def test_as_many_points_as_terms_miss_nothing():
    rows = [{**r, "cells": [c for c in r["cells"] if c["batch_size"] in (2, 4)]} for r in planted(noise=0.01) if r["arm"] != "adapters_1"]
    found = surface(rows, "merged").plain()
    assert len(found["points"]) == 3 and found["worst_miss"] is None and found["misfit_p"] is None
    frames = SimpleNamespace(of_kind=lambda kind: [kind])
    note = plain(surface_table(SimpleNamespace(frames=frames, study=SimpleNamespace(analysis=AnalysisSpec())), {"surface": found}))["note"]
    assert "As many points as terms" in note and "miss" not in note.lower()


def test_no_surface_without_two_launches_or_two_numbers_of_adapters():
    assert surface(planted(launches=1), "merged") is None
    assert surface([r for r in planted() if r["arm"] in ("merged", "adapters_2")], "merged") is None
    assert surface([], "merged") is None
