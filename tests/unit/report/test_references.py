"""Short references."""

import pytest

from tunescope.report.references import References

STEPS = [
    "serve", "data/sst2", "data/mrpc", "train/mrpc/lora/final/seed-1337", "train/mrpc/lora/final/seed-42",
    "train/mrpc/lora/search-lr0.01-bs16/seed-42", "train/sst2/full/final/seed-42", "correlate",
]  # fmt: skip


@pytest.fixture
def references() -> References:
    return References(STEPS, STEPS[:-1], ("mrpc", "sst2"))


def test_order_is_kind_then_final_then_task_then_seed_as_a_number(references: References) -> None:
    assert [(r.short, r.step) for r in references] == [
        ("D1", "data/mrpc"), ("D2", "data/sst2"), ("T1", "train/mrpc/lora/final/seed-42"), ("T2", "train/mrpc/lora/final/seed-1337"),
        ("T3", "train/sst2/full/final/seed-42"), ("T4", "train/mrpc/lora/search-lr0.01-bs16/seed-42"), ("S1", "serve"), ("C1", "correlate"),
    ]  # fmt: skip


def test_consecutive_references_become_one(references: References) -> None:
    assert references.text([STEPS[6], STEPS[3], STEPS[4], "serve"]) == "T1–3, S1"
    assert references.text([STEPS[4], STEPS[6], STEPS[4]]) == "T1, T3"
    assert references.spans([STEPS[3], STEPS[4]])[0].anchor == "step-T1"
    assert references.spans([STEPS[3], STEPS[4]])[0].title.splitlines() == [STEPS[4], STEPS[3]]


def test_numbers_do_not_depend_on_the_order_of_arrival() -> None:
    forward, backward = (list(References(s, s, ("mrpc", "sst2"))) for s in (STEPS, STEPS[::-1]))
    assert forward == backward


def test_an_unlisted_step_is_refused(references: References) -> None:
    with pytest.raises(KeyError):
        references.spans(["train/none"])


def test_state_and_folder(references: References) -> None:
    assert references["serve"].finished and not references["correlate"].finished
    assert References(["data/a b"], [])["data/a b"].folder == "../steps/data/a%20b/"
