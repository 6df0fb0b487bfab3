import pytest

from tunescope.errors import StudyError
from tunescope.serve.arms import accepted_rank, cells, launch_order, max_loras, pick_adapters
from tunescope.study.arms import parse_arm
from tunescope.study.schema import ServingSpec


def test_launches_are_interleaved_a_b_b_a():
    assert list(launch_order(["a", "b"], 3)) == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("a", 2), ("b", 2)]


def test_a_linear_drift_of_the_machine_hits_all_arms_alike_over_two_launches():
    order = list(launch_order(["a", "b", "c", "d"], 4))
    mean_position = {arm: sum(i for i, (a, _) in enumerate(order) if a == arm) / 4 for arm in "abcd"}
    assert len(set(mean_position.values())) == 1


def test_cpu_engines_get_one_more_slot_than_adapters_and_gpu_engines_do_not():
    assert [max_loras(parse_arm("adapters_2"), d) for d in ("cpu", "cuda")] == [3, 2]
    assert [max_loras(parse_arm("switching"), d) for d in ("cpu", "cuda")] == [2, 2]


def test_idle_and_two_adapter_engines_differ_only_in_use():
    assert max_loras(parse_arm("lora_idle"), "cuda") == max_loras(parse_arm("adapters_2"), "cuda")


@pytest.mark.parametrize(("rank", "accepted"), [(1, 1), (2, 8), (8, 8), (9, 16), (33, 64), (300, 320), (512, 512)])
def test_smallest_accepted_rank_that_holds_the_rank(rank, accepted):
    assert accepted_rank(rank) == accepted


def test_a_rank_above_the_largest_is_refused():
    with pytest.raises(StudyError, match="513"):
        accepted_rank(513)


def test_adapters_are_the_registered_ones_first_and_copies_last():
    spec, trained = ServingSpec(task="mrpc", two_adapters=("sst2", "squad_v2")), ["mrpc", "sst2", "rte", "squad_v2"]
    assert pick_adapters(parse_arm("adapters_1"), spec, trained) == [("mrpc", 0)]
    assert pick_adapters(parse_arm("adapters_2"), spec, trained) == [("sst2", 0), ("squad_v2", 0)]
    eight = pick_adapters(parse_arm("adapters_8"), spec, trained)
    assert len(set(eight)) == 8 and [copy for _, copy in eight] == [0] * 4 + [1] * 4
    assert pick_adapters(parse_arm("lora_idle"), spec, trained) == []


def test_cells_are_the_whole_grid_and_label_alternation():
    spec = ServingSpec(batch_sizes=(1, 2, 4), prompt_lengths=(128, 256), sampling=("greedy", "sampled"))
    grid = cells(parse_arm("adapters_4"), spec)
    assert len({(c["batch_size"], c["prompt_length"], c["sampling"]) for c in grid}) == 3 * 2 * 2
    assert {(c["batch_size"], c["adapters_active"], bool(c["note"])) for c in grid} == {(1, 1, True), (2, 2, True), (4, 4, False)}
    assert not any(c["note"] for c in cells(parse_arm("base"), spec))
    assert cells(parse_arm("switching"), spec) == []
