"""The numbers behind `validate`, against closed forms, and on both sides of each bound."""

import json

import numpy as np
import pandas as pd
import pytest

from tunescope.records import FinishedStep
from tunescope.run import compare


def run(folder, *, digest="d", outputs=None, loss=(3.0, 2.0, 1.0), wrong=0, n=200, accuracy=0.8, drift=0.1) -> FinishedStep:
    """A finished training run whose first `wrong` predictions are not `yes`."""
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"step": i, "loss": v}) + "\n" for i, v in enumerate(loss)))
    predictions = ["no"] * wrong + ["yes"] * (n - wrong)
    pd.DataFrame({"example_id": [f"test/{i}" for i in range(n)], "prediction": predictions}).to_parquet(folder / "predictions.parquet")
    metrics = [
        {"name": "accuracy", "value": accuracy, "split": "test"}, {"name": "drift", "value": drift, "split": "probe"},
    ]  # fmt: skip
    return FinishedStep("train/x", folder, {"seed": 1}, {
        "digest": digest, "outputs": outputs or {"loss_digest": "l", "weights_sha256": "w"}, "metrics": metrics, "resources": [],
        "content": {"predictions.parquet": str(wrong)}, "wall_s": 1.0,
    })  # fmt: skip


def rows(old, new, moved=""):
    return {name: (tier, status, found) for tier, name, status, found in compare.training(old, new, moved)}


def test_a_rerun_that_is_the_same_says_so_part_by_part(tmp_path):
    found = rows(run(tmp_path / "a"), run(tmp_path / "b"))
    assert [found[n][:2] for n in (compare.DIGEST, compare.CURVES, compare.FINAL)] == [("R1", "PASS")] * 3
    assert "losses equal, weights equal, predictions equal" in found[compare.DIGEST][2]
    assert found[compare.AGREE][:2] == ("R2", "SKIP") and "100.00% of 200" in found[compare.AGREE][2]


def test_what_differs_is_named(tmp_path):
    new = run(
        tmp_path / "b",
        digest="e",
        outputs={"loss_digest": "l", "weights_sha256": "v"},
        wrong=1,
        accuracy=0.8 + 1e-9,
        loss=(30.0, 20.0, 9.0),
    )
    found = rows(run(tmp_path / "a"), new)
    assert found[compare.DIGEST][:2] == ("R1", "FAIL")
    assert "losses equal, weights DIFFERENT, predictions DIFFERENT; metrics ['accuracy']" in found[compare.DIGEST][2]
    assert found[compare.CURVES][1] == "FAIL" and found[compare.FINAL][:2] == ("R1", "FAIL")


@pytest.mark.parametrize(("wrong", "status"), [(1, "PASS"), (2, "FAIL")])
def test_another_machine_is_judged_by_agreement_and_tolerance(tmp_path, wrong, status):
    """199 of 200 is 99.5 %, and 198 is not; a digest is not claimed of two machines."""
    found = rows(run(tmp_path / "a"), run(tmp_path / "b", digest="e", wrong=wrong, accuracy=0.807), "cpu a → b")
    assert found[compare.DIGEST][:2] == ("R1", "SKIP")
    assert found[compare.AGREE][:2] == ("R2", status)
    assert found[compare.FINAL][:2] == ("R2", "PASS")
    assert rows(run(tmp_path / "c"), run(tmp_path / "d", digest="e", accuracy=0.809), "cpu a → b")[compare.FINAL][1] == "FAIL"


def test_an_example_that_one_side_lacks_does_not_agree(tmp_path):
    assert compare.agreement(run(tmp_path / "a", n=10).folder, run(tmp_path / "b", n=9).folder) == (0.9, 10)
    assert compare.agreement(tmp_path / "a", tmp_path) == (None, 0)


def test_a_metric_that_is_missing_on_one_side_is_no_match(tmp_path):
    old, new = run(tmp_path / "a"), run(tmp_path / "b")
    new.result["metrics"].pop()
    assert compare.gaps(old, new) == {"train/x accuracy": 0.0, "train/x drift": float("inf")}
    assert rows(old, new)[compare.FINAL][1] == "FAIL"


def test_the_prediction_interval_is_the_textbook_one_and_covers():
    """t(0.975, 2) = 4.302653, times sd 1, times the root of 4/3."""
    assert compare.prediction_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.968276, 2 + 4.968276), abs=1e-5)
    rng, inside = np.random.default_rng(5), 0
    for _ in range(2000):
        *old, new = rng.normal(1.0, 0.1, size=6)
        low, high = compare.prediction_interval(old)
        inside += low <= new <= high
    assert abs(inside / 2000 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize(("accuracy", "status"), [(0.80, "PASS"), (0.40, "FAIL")])
def test_a_new_seed_is_judged_by_its_ratio(tmp_path, accuracy, status):
    pairs = [(run(tmp_path / f"l{i}", accuracy=0.8 + i / 100), run(tmp_path / f"f{i}", accuracy=0.82)) for i in range(3)]
    new = run(tmp_path / "l", accuracy=accuracy), run(tmp_path / "f", accuracy=0.82)
    assert compare.predicted(pairs, new, "accuracy", "test", "sst2, seed 9")[::2] == ("R3", status)
    zero = run(tmp_path / "z", accuracy=0.0)
    assert compare.predicted(pairs, (new[0], zero), "accuracy", "test", "sst2, seed 9")[2] == "SKIP"


def test_curves_of_another_machine_are_left_to_the_agreement_unless_the_digest_is_equal(tmp_path):
    old, other = run(tmp_path / "a"), run(tmp_path / "b", digest="e", loss=(30.0, 20.0, 9.0))
    assert rows(old, other, "another GPU")[compare.CURVES][1] == "SKIP"
    assert rows(old, run(tmp_path / "c"), "another GPU")[compare.CURVES][1] == "PASS"
