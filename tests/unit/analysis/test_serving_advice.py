"""Advice about adapters and the summary that holds it, on planted launches."""

import json
from types import SimpleNamespace

from launch_rows import cell, engines, row
from tunescope.analysis.serving import overhead_summary
from tunescope.analysis.serving_advice import recommendations
from tunescope.analysis.serving_memory import LOG
from tunescope.analysis.tables import plain
from tunescope.analysis.tables_serving import scaling_table
from tunescope.study.schema import AnalysisSpec


def advice(rows, **kwargs):
    return " ".join(recommendations(rows, 0.30, 10, cpu=False, **kwargs))


def test_recommendations_follow_the_interval_against_the_limit():
    assert "serve them side by side" in advice(engines({2: 0.1}, noise=0.01))
    assert "merge and run one engine" in advice(engines({2: 0.9}, noise=0.01))
    assert "not decided" in advice(engines({2: 0.3}, noise=0.05))


def test_few_launches_are_only_a_first_look():
    assert "first look; 10 launches" in advice(engines({2: 0.1}, launches=3, noise=0.01))


def test_no_recommendation_when_equal_arms_do_not_tie():
    rows = engines({2: 0.1}, noise=0.005) + [row("base", k, [cell(4.0 + 0.001 * k, batch=4)]) for k in range(10)]
    said = recommendations(rows, 0.30, 10, cpu=False)
    assert len(said) == 1 and "do not tie" in said[0]


def test_cpu_figures_and_memory_are_said():
    said = recommendations(engines({2: 0.1}, noise=0.01), 0.30, 10, cpu=True)
    assert "nothing about a GPU" in said[0]
    assert "2 merged models need 2.0 MiB of weights, one engine with 2 adapters 1.0 MiB" in said[-1]


def test_memory_of_launches_that_read_a_log_is_told_as_rounded():
    rows = engines({2: 0.1}, noise=0.01)
    for each in rows:
        each["weight_bytes_source"] = LOG if each["arm"] == "adapters_2" else "told"
    assert "one engine with 2 adapters 1 MiB" in advice(rows) and "rounds to ±5 MiB" in advice(rows)


def summary(rows, **registered):
    frames = SimpleNamespace(of_kind=lambda kind: [kind], documents={"serve": {"launches.jsonl": rows}}, outputs=lambda step: {})
    return overhead_summary(frames, SimpleNamespace(analysis=AnalysisSpec(**registered)))


def test_the_summary_is_json_at_the_registered_limit_and_number_of_launches():
    found = json.loads(json.dumps(summary(engines({1: 0.1, 2: 0.2, 4: 0.35}, noise=0.01), overhead_limit=0.25, min_launches=11)))
    assert found["break_even"]["limit"] == 0.25 and "11 launches are needed to decide about a limit of 25%" in found["recommendations"][0]
    assert [m["arm"] for m in found["memory"]] == ["merged", "adapters_1", "adapters_2", "adapters_4"]


def test_advice_and_table_say_the_same_of_a_limit_passed_at_the_fewest_adapters():
    found = summary(engines({1: 0.5, 2: 0.6, 4: 0.8}, noise=0.01))
    frames = SimpleNamespace(of_kind=lambda kind: [kind])
    shown = plain(scaling_table(SimpleNamespace(frames=frames), found))
    assert shown["rows"][-1] == ["break-even at 30 %, adapters (already above)", None, None, None]
    text = found["break_even"]["text"]
    assert "above 30% already at the fewest adapters measured (N = 1: 51%" in text
    assert text in found["recommendations"] and shown["note"].endswith(text)


def test_without_a_finished_launch_there_is_no_model():
    assert summary([]) == {}
    assert summary([row("merged", 0, [], ok=False)])["model"] is None
