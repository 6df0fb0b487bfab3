import pytest

from tunescope.serve.correctness import compare, correctness, problems, within

BASE = [-1.0, -2.0, -3.0]
TUNED = [-0.5, -2.5, -3.0]


def row(arm, model, adapters=None, ok=True):
    return {"arm": arm, "ok": ok, "check": {"model": model, "adapters": adapters or {}}}


def shifted(values, by):
    return [v + by for v in values]


ROWS = [
    row("base", BASE),
    row("full", [-0.1, -0.1, -0.1]),
    row("merged", shifted(TUNED, 1e-5)),
    row("adapters_2", BASE, {"sst2": TUNED, "rte": [-9.0] * 3}),
]
REFERENCES = {"base": BASE, "full": [-0.1, -0.1, -0.1], "sst2": TUNED, "rte": [-9.0] * 3}


def test_compare_is_largest_and_mean_absolute_difference():
    assert compare([1.0, 2.0], [1.5, 1.0]) == {"max": 1.0, "mean": 0.75}


def test_everything_that_agrees_is_ok():
    found = correctness(ROWS, REFERENCES, "sst2", "float32", 1e-4)
    assert found["ok"] and problems(found) == []
    adapter = found["adapters"]["adapters_2/sst2"]
    assert adapter["differs_from_base"] == 0.5 and adapter["max_difference_to_peft"] == 0.0
    assert adapter["max_difference_to_merged"] == pytest.approx(1e-5)
    assert "max_difference_to_merged" not in found["adapters"]["adapters_2/rte"]
    assert found["models"]["merged"]["max_difference"] == pytest.approx(1e-5)


@pytest.mark.parametrize(("changed", "name"), [(0, "base"), (2, "merged")])
def test_a_model_that_computes_something_else_is_named(changed, name):
    rows = list(ROWS)
    rows[changed] = row(name, shifted(rows[changed]["check"]["model"], 0.01))
    found = correctness(rows, REFERENCES, "sst2", "float32", 1e-4)
    assert not found["ok"] and any(text.startswith(f"{name}: ") for text in problems(found))


def test_an_adapter_equal_to_the_base_is_not_ok():
    found = correctness([row("base", BASE), row("adapters_1", BASE, {"sst2": BASE})], {"base": BASE, "sst2": BASE}, "sst2", "float32", 1e-4)
    assert found["adapters"]["adapters_1/sst2"]["ok"] is False


def test_fp32_judges_the_largest_and_low_precision_the_mean():
    assert within({"max": 2e-4, "mean": 1e-4}, "float32", 1e-4) and not within({"max": 2.1e-4, "mean": 0.0}, "float32", 1e-4)
    assert within({"max": 0.5, "mean": 0.09}, "bfloat16", 1e-4) and not within({"max": 0.2, "mean": 0.11}, "bfloat16", 1e-4)


def test_spread_between_launches_and_failed_rows():
    rows = [row("base", BASE), row("base", shifted(BASE, 0.25)), row("full", BASE, ok=False)]
    found = correctness(rows, REFERENCES, "sst2", "float32", 1e-4)
    assert found["spread_between_launches"] == {"base": 0.25} and "full" not in found["models"]
    assert correctness([], REFERENCES, "sst2", "float32", 1e-4)["ok"] is False
