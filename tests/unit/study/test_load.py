"""The study file: every problem named at once, with its path and the nearest valid name."""

import pytest

from tunescope.errors import StudyError
from tunescope.study.load import builtin_studies, load_study
from tunescope.study.peft_types import peft_types

MINIMAL = """
study:
  name: tiny
  model: {name: sprout-2m}
  tasks: {sst2: {max_length: 64}}
  methods:
    full: {warmup_ratio: 0.1, learning_rates: [1e-3]}
    lora: {warmup_ratio: 0.06, learning_rates: [3e-3], adapter: {r: 4}}
  seeds: [42]
  serving: null
"""


@pytest.fixture
def tiny(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(MINIMAL)
    return path


def problems(name, *overrides):
    with pytest.raises(StudyError) as caught:
        load_study(str(name), overrides)
    assert caught.value.exit_code == 2
    return caught.value.problems


@pytest.mark.parametrize("name", ["quickstart", "pilot", "lora_vs_full", "ablations", "peft_variants"])
def test_built_in_studies_load(name):
    assert name in builtin_studies()
    assert load_study(name).study.name == name


def test_the_plan_has_the_values_of_the_plan():
    study = load_study("lora_vs_full").study
    assert study.seeds == (42, 1337, 2024, 3407, 5489)
    assert study.methods["full"].learning_rates == (1e-5, 2e-5)
    assert study.learning_rates("squad_v2", "full") == (5e-6, 1e-5)
    assert study.methods["lora"].adapter.target_modules == ("q_proj", "v_proj")
    assert (study.tasks["rte"].max_length, study.tasks["squad_v2"].max_length) == (512, 768)
    assert study.batch_sizes("rte") == (8, 16)


def test_yaml_scientific_notation_is_a_number(tiny):
    assert load_study(str(tiny)).study.methods["full"].learning_rates == (1e-3,)


def test_unknown_key_names_path_and_nearest(tiny):
    (line,) = problems(tiny, "training.max_epoch=1")
    assert "study.training.max_epoch" in line and "did you mean 'max_epochs'" in line


def test_unknown_key_inside_a_method(tiny):
    (line,) = problems(tiny, "methods.lora.adapter.alpha=1")
    assert "study.methods.lora.adapter.alpha" in line and "lora_alpha" in line


def test_unknown_task_names_the_nearest(tiny):
    assert any("sst3" in line and "did you mean 'sst2'" in line for line in problems(tiny, "tasks.sst3.max_length=8"))


def test_all_problems_at_once(tiny):
    assert len(problems(tiny, "training.precision=bf17", "drift.everyy=3", "analysis.alpha=2")) == 3


def test_rules_between_sections_come_with_what_is_wrong_in_a_section(tiny):
    wrong = ("training.precision=bf17", "methods.full.learning_rates=[1e-3,1e-4]", "analysis.reference_method=none")
    serving = "serving={task: rte, two_adapters: [sst2, sst2], batch_sizes: [32], max_num_seqs: 16}"
    lines = [line.split(": ", 1)[1] for line in problems(tiny, *wrong, serving, "execution.placement={a: {drift: [rte]}}")]
    assert [line.split(":")[0] for line in lines] == [
        "study.training.precision", "study.analysis.reference_method", "study.tasks.sst2", "study.serving", "study.serving",
        "execution.placement.a.drift",
    ]  # fmt: skip
    (empty, jobs) = problems(tiny, "execution.jobs=0", "seeds=[]")
    assert "study.seeds: needs at least one entry" in empty and "execution.jobs" in jobs


def test_a_placement_that_the_tasks_do_not_bear_out_is_refused(tiny):
    placement = "execution.placement={a: {serve: all, drift: [sst2]}, b: {serve: all, drift: all, train: [rte]}}"
    for more in ((), ("analysis.reference_method=none",)):
        lines = problems(tiny, placement, *more)
        assert [line.split(": ", 1)[1] for line in lines][-3:] == [
            "execution.placement: serve is on both a and b",
            "execution.placement: drift sst2 is on both a and b",
            "execution.placement.b.train: task 'rte' is not in the study",
        ]
        assert len(lines) == 3 + len(more)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seeds=42", "study.seeds: should be a list, e.g. [42]"),
        ("methods.full.learning_rates=1e-3", "study.methods.full.learning_rates: should be a list, e.g. [0.001]"),
        ("training.batch_sizes=8", "study.training.batch_sizes: should be a list, e.g. [8]"),
        ("tasks.sst2.batch_sizes=8", "study.tasks.sst2.batch_sizes: should be a list, e.g. [8]"),
        ("serving={two_adapters: [sst2, sst2], arms: base}", "study.serving.arms: should be a list, e.g. [base]"),
        ("methods.lora.adapter.target_modules=q_proj", "adapter.target_modules: should be a list, e.g. [q_proj], or all-linear"),
        ("methods.lora.adapter.target_modules=all_linear", "e.g. [all_linear], or all-linear (did you mean 'all-linear'?)"),
        ("execution.placement={a: {drift: sst2}}", "execution.placement.a.drift: should be a list, e.g. [sst2], or all"),
    ],
)  # fmt: skip
def test_one_value_in_place_of_a_list_is_told_so(tiny, override, told):
    (line,) = problems(tiny, override)
    assert line.endswith(told)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seeds=[7,42,7]", "study.seeds: 7 is named more than once"),
        ("methods.full.learning_rates=[1e-3,0.001]", "study.methods.full.learning_rates: 0.001 is named more than once"),
        ("training.batch_sizes=[8,8]", "study.training.batch_sizes: 8 is named more than once"),
        ("serving={two_adapters: [sst2, sst2], arms: [base, full, base, full]}", "serving.arms: base, full are named more than once"),
        ("serving={two_adapters: [sst2, sst2], prompt_lengths: [64, 64]}", "study.serving.prompt_lengths: 64 is named more than once"),
        ("serving={two_adapters: [sst2, sst2], batch_sizes: [2, 2]}", "study.serving.batch_sizes: 2 is named more than once"),
        ("methods.lora.adapter.target_modules=[q_proj,q_proj]", "adapter.target_modules: q_proj is named more than once"),
    ],
)  # fmt: skip
def test_what_is_named_twice_in_a_list_is_one_error(tiny, override, told):
    (line,) = problems(tiny, override)
    assert line.endswith(told)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seeds=[7,42,x,7]", ("study.seeds.2: Input should be a valid integer", "study.seeds: 7 is named more than once")),
        ("training.batch_sizes=[8,-8,8]", ("study.training.batch_sizes.1: Input should be greater than 0", "batch_sizes: 8 is named more")),
        (
            "serving={two_adapters: [sst2, sst2], arms: [base, full, bsae, base, full]}",
            ("study.serving.arms.2: 'bsae' is no arm", "study.serving.arms: base, full are named more than once"),
        ),
        (
            "serving={two_adapters: [sst2, sst2], sampling: [greedy, greedi, greedy]}",
            ("sampling.1: 'greedi' is not valid (did you mean 'greedy'?)", "study.serving.sampling: greedy is named more than once"),
        ),
        (
            "methods.lora.adapter.target_modules=[q_proj,{a: 1},q_proj]",
            ("adapter.target_modules.1: Input should be a valid string", "adapter.target_modules: q_proj is named more than once"),
        ),
        (
            "execution.placement={a: {drift: [sst2, rtee, sst2]}}",
            ("placement.a.drift.1: 'rtee' is not valid (did you mean 'rte'?)", "placement.a.drift: sst2 is named more than once"),
        ),
    ],
)
def test_what_is_named_twice_is_told_beside_what_is_wrong_in_the_list(tiny, override, told):
    for line, part in zip(problems(tiny, override), told, strict=True):
        assert part in line


@pytest.mark.parametrize(
    ("metrics", "task", "told"),
    [
        ("{sst2: f1}", "sst2", "'f1' has no value for each test example of this task, so no claim could be tested; name accuracy"),
        ("{squad_v2: best_f1}", "squad_v2", "'best_f1' has no value for each test example"),
        ("{sst2: accuracy}", "squad_v2", "'accuracy' has no value for each test example"),  # what is left out is scored by accuracy
    ],
)
def test_a_metric_that_no_claim_can_be_tested_on_is_refused(tiny, metrics, task, told):
    (line,) = problems(tiny, f"tasks={{{task}: {{max_length: 64}}}}", f"analysis.primary_metric={metrics}")
    assert f"study.analysis.primary_metric.{task}: {told}" in line


@pytest.mark.parametrize("alpha", ["0", "1"])
def test_a_level_at_which_nothing_or_everything_is_decided_is_refused(tiny, alpha):
    (line,) = problems(tiny, f"analysis.alpha={alpha}")
    assert "study.analysis.alpha: Input should be " in line


def test_a_peft_type_that_the_installed_peft_has_not_is_refused_with_the_nearest(tiny):
    (line,) = problems(tiny, "methods.lora.adapter.peft_type=LROA")
    assert "study.methods.lora.adapter.peft_type: the installed PEFT has no 'LROA' (did you mean 'LORA'?); it has ADALORA, " in line


def test_a_wrong_peft_type_is_told_beside_what_else_is_wrong_with_its_adapter(tiny):
    kind, rank = problems(tiny, "methods.lora.adapter.r=0", "methods.lora.adapter.peft_type=LORAA")
    assert "adapter.r: " in rank and "has no 'LORAA' (did you mean 'LORA'?)" in kind


def test_peft_types_are_those_of_the_installed_peft():
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    assert {str(getattr(kind, "value", kind)) for kind in PEFT_TYPE_TO_CONFIG_MAPPING} <= set(peft_types())


def test_without_peft_its_types_are_left_to_training(tiny, monkeypatch):
    monkeypatch.setattr("tunescope.study.peft_types.peft_types", lambda: ())
    assert load_study(str(tiny), ["methods.lora.adapter.peft_type=NEWER"]).study.methods["lora"].adapter.peft_type == "NEWER"


def test_an_overhead_claim_that_no_grid_could_measure_is_refused(tiny):
    (same,) = problems(tiny, "analysis.overhead_arm=merged")
    assert "study.analysis.overhead_arm: 'merged' is overhead_baseline_arm too" in same
    (alone,) = problems(tiny, "analysis.overhead_baseline_arm=switching")
    assert "study.analysis.overhead_baseline_arm: 'switching' is timed request by request" in alone


def test_unequal_search_budgets_are_refused(tiny):
    (line,) = problems(tiny, "methods.full.learning_rates=[1e-3,1e-4]")
    assert "equal search budget" in line


def test_seeds_that_are_left_out_follow_seeds_and_stay_42_where_they_can(tiny):
    served = "serving={task: sst2, two_adapters: [sst2, sst2], arms: [base]}"
    for seeds, expected in (("[7,8]", 7), ("[7,42]", 42)):
        study = load_study(str(tiny), [f"seeds={seeds}", served]).study
        assert (study.training.search_seed, study.serving.seed) == (expected, expected)
    assert load_study(str(tiny), ["seeds=[7]", "training={max_steps: 3}"]).study.training.search_seed == 7


def test_seeds_that_contradict_seeds_are_named_each_with_the_remedy(tiny):
    served = "serving={task: sst2, two_adapters: [sst2, sst2], arms: [base], seed: 2}"
    lines = problems(tiny, "seeds=[7,8]", "training.search_seed=1", served)
    assert [line.split(": ", 1)[1] for line in lines] == [
        f"study.{place} is not one of seeds [7, 8]; leave it out, so that it follows seeds, or name one"
        for place in ("training.search_seed: 1", "serving.seed: 2")
    ]


def test_serving_task_must_be_in_the_study(tiny):
    lines = problems(tiny, "serving.task=rte")
    assert len(lines) == 2 and all(
        f"serving: task '{task}' is not one" in line for task, line in zip(("rte", "squad_v2"), lines, strict=True)
    )


def test_missing_file_and_unknown_name():
    assert "no study file" in problems("nowhere/x.yaml")[0]
    assert "did you mean 'quickstart'" in problems("quickstar")[0]


def test_unreadable_yaml(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("study: [1,")
    assert "not a readable YAML" in problems(path)[0]


def test_override_without_value(tiny):
    assert "--set" in problems(tiny, "training.max_epochs")[0]


def test_execution_overrides_keep_their_prefix(tiny):
    assert load_study(str(tiny), ["execution.jobs=3"]).execution.jobs == 3


def test_a_serving_grid_that_no_engine_runs_is_refused_before_anything_is_trained():
    sizes = ("serving.prompt_lengths=[512]", "serving.output_tokens=600", "serving.batch_sizes=[32]", "serving.max_num_seqs=16")
    found = [p.split(": ", 1)[1] for p in problems("lora_vs_full", *sizes, "serving.open_loop=null")]
    assert found == [
        "study.serving: max_model_len 1024 is below the longest prompt plus output_tokens, 1112",
        "study.serving: max_num_seqs 16 is below the largest batch size, 32",
    ]
    arms = "serving.open_loop.arms=[base,merged,merged_x2,lora_idle,adapters_2_of_4_narrow,switching]"
    found = problems("lora_vs_full", arms, "serving.open_loop.prompt_length=1000")
    assert [p.split(": ", 2)[2] for p in found] == [
        "max_model_len 1024 is below open_loop.prompt_length plus output_tokens, 1128",
        "'merged_x2' has no open loop",
        "'switching' has no open loop",
    ]
