"""Names of serving arms: what they stand for, what is refused, and what they are called."""

import subprocess
import sys

import pytest

from tunescope.errors import StudyError
from tunescope.study.arms import SAME_SHAPE, arm_name, parse_arm
from tunescope.study.load import load_study
from tunescope.study.schema import TASKS, OpenLoopSpec, ServingSpec

NARROW, MANY = (
    "adapters_1_of_4_narrow",
    ("base", "lora_idle", "adapters_1", "adapters_16", "adapters_2_of_4", "adapters_2_narrow", "switching"),
)


def test_a_record_says_what_its_name_says():
    arms = [parse_arm(name) for name in ("merged_x12", "adapters_16", "adapters_3_of_8", NARROW)]
    assert [(a.model, a.engines, a.adapters, a.slots, a.narrow) for a in arms] == [
        ("merged", 12, 0, 0, False), ("base", 1, 16, 16, False), ("base", 1, 3, 8, False), ("base", 1, 1, 4, True),
    ]  # fmt: skip
    assert [parse_arm(name).lora for name in (*SAME_SHAPE, "merged_x2")] == [False] * 4
    assert all(parse_arm(name).lora for name in MANY[1:])


def test_the_switching_engine_has_all_three_tiers():
    arm = parse_arm("switching")
    assert arm.slots < arm.cpu_slots < arm.adapters
    assert [name for name in (*SAME_SHAPE, "merged_x2", *MANY) if parse_arm(name).switches] == ["switching"]


def test_only_adapters_with_a_slot_each_on_wrapped_layers_are_side_by_side():
    assert [name for name in (*SAME_SHAPE, "merged_x2", *MANY, NARROW) if parse_arm(name).side_by_side] == ["adapters_1", "adapters_16"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("full", "full fine-tuned"),
        ("lora_idle", "adapters on, none used"),
        ("merged_x4", "4 merged engines"),
        ("adapters_1", "1 adapter"),
        ("adapters_32", "32 adapters"),
        ("adapters_2_narrow", "2 adapters, own modules"),
        ("adapters_1_of_4", "1 adapter, 4 slots"),
        (NARROW, "1 adapter, 4 slots, own modules"),
    ],
)
def test_names_in_words(name, words):
    assert arm_name(name) == words


@pytest.mark.parametrize(
    "name",
    ["peft", "adapter_2", "adapters_", "adapters_0", "adapters_02", "adapters_2\n", "merged_x1", "merged_2", "base_narrow", "Adapters_2"],
)
def test_what_is_no_arm_is_refused(name):
    with pytest.raises(ValueError, match=r"is no arm.*; there are base, full"):
        parse_arm(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("bsae", "base"), ("adapter_2", "adapters_2"), ("adapters-4", "adapters_4"), ("adapter_2_of_4", "adapters_2_of_4"),
     ("adapter_2_of_2", "adapters_2"),
     ("adapters_2_narow", "adapters_2_narrow"), ("merged_3", "merged_x3"), ("swiching", "switching"), ("Merged", "merged")],
)  # fmt: skip
def test_a_mistyped_arm_is_answered_with_the_nearest(name, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        parse_arm(name)


@pytest.mark.parametrize(("name", "same"), [("adapters_2_of_2", "adapters_2"), ("adapters_1_of_1_narrow", "adapters_1_narrow")])
def test_a_second_name_of_one_engine_is_refused_with_the_first(name, same):
    with pytest.raises(StudyError) as caught:
        load_study("quickstart", [f"serving.arms=[base,merged,adapters_2,{name}]"])
    (told,) = caught.value.problems
    assert told.endswith(f"study.serving.arms.3: arm '{name}' has as many slots as adapters: it is '{same}', write that")


def test_a_study_file_with_wrong_arms_names_each_and_its_place():
    arms = "serving.arms=[base,adapters_4_of_2,merged_x1]"
    with pytest.raises(StudyError) as caught:
        load_study("quickstart", [arms, "analysis.overhead_arm=adapters-2"])
    few, none, claimed = caught.value.problems
    assert "study.serving.arms.1: arm 'adapters_4_of_2' has fewer slots than adapters" in few
    assert "study.serving.arms.2: 'merged_x1' is no arm" in none
    assert "study.analysis.overhead_arm: 'adapters-2' is no arm (did you mean 'adapters_2'?)" in claimed


@pytest.mark.parametrize(
    ("arms", "served"),
    [
        (("base", "merged_x8", "lora_idle", "adapters_1_of_4_narrow"), {"sst2"}),
        (("base", "adapters_2_of_8"), {"sst2", "squad_v2"}),
        (("base", "switching"), {"sst2", "squad_v2"}),
        (("base", "adapters_3"), set(TASKS)),
    ],
)
def test_arms_need_the_adapters_that_they_serve(arms, served):
    assert ServingSpec(arms=arms).served_tasks(TASKS) == served
    opened = tuple(a for a in arms if a not in ("merged_x8", "switching"))  # those have no open loop
    assert ServingSpec(arms=("base",), open_loop=OpenLoopSpec(arms=opened)).served_tasks(TASKS) == ServingSpec(arms=opened).served_tasks(
        TASKS
    )


def test_reading_names_imports_nothing_heavy():
    code = "import sys, tunescope.study.arms; print(sorted({'numpy', 'pandas', 'scipy', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
