"""Tables as LaTeX and CSV."""

import re
from io import StringIO
from typing import Any

import pandas as pd
import pytest

from tunescope.report.latex import escape, latex, write_tables
from tunescope.report.tables import baselines_table, build_tables, costs_table, serving_table
from tunescope.report.tables_statistics import disagreements_table, statistics_tables, value_text
from tunescope.report.tabular import Row, Table
from tunescope.report.wording import percent

from .conftest import Published


@pytest.fixture(scope="module")
def tables(published: Published) -> dict[str, Table]:
    return build_tables(published.findings)


def _statistic(**changes: Any) -> Table:
    steps = [f"train/{t}/{m}/final/seed-{s}" for t in ("mrpc", "sst2") for m in ("full", "lora") for s in (42, 7)] + ["baseline/mrpc"]
    entry = {"title": "T", "columns": ["task", "method", "p"], "rows": [["mrpc", "lora", 0.01234]], "note": "", "steps": steps}
    return statistics_tables({"x": {**entry, **changes}})[0]


def test_latex_special_characters_are_escaped() -> None:
    assert escape(["R&D 5 % a_b #1 {x} $y$"]) == [r"R\&D 5 \% a\_b \#1 \{x\} \$y\$"]
    assert escape(["", "a\nb", "−1 ≤ x", "<i>"]) == ["", "a b", r"$-$1 $\le$ x", "$<$i$>$"]
    assert escape(["[1, 2]"]) == ["{}[1, 2]"], "a leading bracket would be read as the argument of the row's line break"
    assert escape([]) == []
    assert "\\textbackslash" in escape([r"\input{x}"])[0]


def test_latex_uses_booktabs_and_every_row_has_every_cell(tables: dict[str, Table]) -> None:
    for table in tables.values():
        text = latex(table)
        assert all(rule in text for rule in (r"\toprule", r"\midrule", r"\bottomrule")) and "&" in text
        assert not re.search(r"\|", text.split(r"\begin{tab")[-1].splitlines()[0]), "no vertical rules"
        lines = [line for line in text.splitlines() if r"\\ %" in line]
        assert len(lines) == len(table.rows)
        for line, row in zip(lines, table.rows, strict=True):
            cells, comment = line.split(r"\\ %")
            assert len(re.findall(r"(?<!\\)&", cells)) == len(table.columns) - 1
            assert comment.split() == list(row.steps)
            assert not re.search(r"(?<!\\)[%#]", cells)


def test_csv_keeps_full_precision_and_steps(tables: dict[str, Table], published: Published, tmp_path: Any) -> None:
    write_tables(tables, tmp_path)
    for name, table in tables.items():
        frame = pd.read_csv(tmp_path / f"{name}.csv")
        assert len(frame) == len(table.rows) and "steps" in frame
    claims = pd.read_csv(tmp_path / "claims.csv").set_index("id")
    for claim in published.findings.claims:
        assert claims.loc[claim.id, "p"] == pytest.approx(claim.p, rel=1e-12)
        assert claims.loc[claim.id, "steps"] == "; ".join(claim.steps)
        if claim.interval:
            assert claims.loc[claim.id, "interval_low"] == pytest.approx(claim.interval[0], rel=1e-12)


def test_every_row_names_its_steps(tables: dict[str, Table]) -> None:
    unsourced = {name for name, table in tables.items() if any(not row.steps for row in table.rows)}
    assert unsourced <= {"statistics_planned_power"}, "power stated before the runs comes from no step"


def test_claims_table_tells_margins_and_verdicts(tables: dict[str, Table], published: Published) -> None:
    table = tables["claims"]
    cells = {row.cells[0]: dict(zip(table.columns, row.cells, strict=True)) for row in table.rows}
    assert cells["quality, SST-2"]["Margin"] == "≥\u00a097\u00a0%" and cells["overhead"]["Margin"] == "≤\u00a030\u00a0%"
    assert {row["Verdict"] for row in cells.values()} <= {"supported", "contradicted", "inconclusive"}
    by_id = {c.id: c for c in published.findings.claims}
    assert cells["drift, all tasks"]["Verdict"] == by_id["drift/all"].verdict


def test_published_rows_say_not_measured_here(tables: dict[str, Table]) -> None:
    marked = [row for row in tables["baselines"].rows if row.mark == "published"]
    assert marked and all(any("not measured here" in cell for cell in row.cells) for row in marked)
    assert all("not measured here" not in " ".join(r.cells) for r in tables["baselines"].rows if r.mark != "published")


def test_an_expected_range_stands_beside_the_measured_base_without_a_value(tables: dict[str, Table]) -> None:
    table = tables["baselines"]
    rows = [dict(zip(table.columns, row.cells, strict=True)) for row in table.rows if row.cells[1] == "about 1B"]
    assert rows and {row["Value"] for row in rows} == {"80\u00a0% to 85\u00a0%"}
    assert {row["95 % interval"] for row in rows} == {"–"} and {row["Origin"] for row in rows} == {"not measured here: a plan"}
    assert {row.cells[1] for row in table.rows} >= {"base", "majority"}


def test_costs_compare_training_speed_and_not_wall_time(tables: dict[str, Table], published: Published) -> None:
    """The simulated arms take the same wall time; LoRA trains 1 / 0.7 as many tokens a second."""
    costs = {(r.task, r.method): r for r in published.findings.costs}
    assert costs["sst2", "full"].wall_s == costs["sst2", "lora"].wall_s
    assert costs["sst2", "full"].actual_speedup == 1 and costs["sst2", "lora"].actual_speedup == pytest.approx(1 / 0.7)
    table = tables["costs"]
    cells = {row.cells[:2]: dict(zip(table.columns, row.cells, strict=True)) for row in table.rows}
    lora = next(v for k, v in cells.items() if k == ("SST-2", "lora"))
    assert lora["MFU"] == "57.1\u00a0%" and lora["Speed-up"] == "1.43×"


def test_the_note_on_costs_names_steps_that_shared_their_machine_and_no_column_that_is_not_there(published: Published) -> None:
    rows = [r.model_copy(update={"mfu": None, "shared_machine": r.method == "lora"}) for r in published.findings.costs]
    table = costs_table([r for r in rows if r.task == "sst2"])
    assert "MFU" not in table.note and "MFU" not in table.columns
    assert " SST-2 lora: other steps ran on the machine at the same time" in table.note
    alone = costs_table(published.findings.costs).note
    assert "MFU: model FLOPs" in alone and "other steps" not in alone


def test_merging_in_bf16_is_shown(published: Published) -> None:
    table = published.findings.statistics["merge"]
    at = [table["columns"].index(name) for name in ("bf16: equal predictions", "bf16: score gap")]
    assert table["rows"] and all([row[k] for k in at] == [0.995, 0.001] for row in table["rows"])


def test_overhead_is_one_row_with_the_serve_step_on_the_page_and_in_the_csv(tables: dict[str, Table], published: Published) -> None:
    table = tables["master"]
    place = table.columns.index("Overhead")
    *runs, last = table.rows
    assert {row.cells[place] for row in runs} == {"–"} and not any("serve" in row.steps for row in runs)
    estimate = next(c.estimate for c in published.findings.claims if c.dimension == "overhead")
    assert last.cells[:2] == ("all tasks", "lora") and last.cells[place] == percent(estimate, sign=True) and "serve" in last.steps
    csv = pd.read_csv(StringIO(table.data.to_csv(index=False)))
    assert len(csv) == len(table.rows) and csv.overhead.dropna().tolist() == pytest.approx([estimate])
    assert "16,train/" in table.data.to_csv(index=False), "whole numbers stay whole"


def test_names_of_the_code_are_words_on_the_page_and_stay_in_the_csv() -> None:
    rows = [["wall_s", "has_ans_f1", "lora_idle", "squad_v2", 1.0]]
    table = _statistic(columns=["", "measure", "arm", "second task", "d_z"], rows=rows, steps=["serve"])
    assert table.columns[-1] == "Effect size d_z"
    assert table.rows[0].cells[:4] == ("wall time (s)", "F1 (answerable)", "adapters on, none used", "SQuAD v2")
    assert list(table.data.columns[:5]) == ["", "measure", "arm", "second task", "d_z"] and table.data.iloc[0, 0] == "wall_s"


def test_a_row_that_names_task_method_or_seed_keeps_only_their_steps() -> None:
    assert _statistic().rows[0].steps == ("train/mrpc/lora/final/seed-42", "train/mrpc/lora/final/seed-7", "baseline/mrpc")
    assert len(_statistic(rows=[["all tasks", "lora", 0.5]]).rows[0].steps) == 9, "what names no known task keeps all"


def test_a_row_of_a_claim_cites_the_steps_of_its_task() -> None:
    steps = ["train/mrpc/full/final/seed-42", "train/sst2/full/final/seed-42", "serve"]
    rows = [["quality/mrpc", 1.0], ["quality/all", 1.0], ["overhead", 1.0]]
    found = [row.steps for row in _statistic(columns=["claim", "p"], rows=rows, steps=steps).rows]
    assert found == [(steps[0],), tuple(steps), ("serve",)]
    alone = _statistic(columns=["claim", "p"], rows=[["quality/rte", None]], steps=steps).rows[0]
    assert alone.steps == (), "a claim without runs does not borrow those of other tasks"


def test_a_row_of_a_run_cites_that_run_and_a_row_of_two_methods_cites_both() -> None:
    runs = [f"train/mrpc/full/{s}/seed-42" for s in ("final", "search-lr5e-05-bs8", "search-lr0.001-bs8")]
    columns = ["task", "method", "role", "seed", "learning_rate", "batch_size"]
    rows = [["mrpc", "full", "search", 42, 5e-5, 8], ["mrpc", "full", "final", 42, 5e-5, 8], ["mrpc", "full", "search", 42, None, 8]]
    found = _statistic(columns=columns, rows=rows, steps=runs).rows
    assert [row.steps for row in found] == [(runs[1],), (runs[0],), tuple(runs)]
    pair = _statistic(columns=["method", "against", "p"], rows=[["lora", "full", 0.5]])
    assert len(pair.rows[0].steps) == 9


def test_a_threshold_is_not_printed_as_a_score(tables: dict[str, Table], published: Published) -> None:
    row = published.findings.baselines[0].model_copy(update={"metric": "best_f1_threshold", "value": 0.3})
    assert len(baselines_table([*published.findings.baselines, row]).rows) == len(tables["baselines"].rows)


def test_alternation_is_labelled_beside_its_overhead(published: Published) -> None:
    entry = published.findings.statistics["overhead"]
    notes = {(line[0], line[1]): line[-1] for line in entry["rows"]}
    assert "holds at most 1 of 2 adapters" in notes["adapters_2", "1"]
    assert notes["adapters_2", "2, 4"] == "" == notes["base", "1"]


def test_statistics_of_any_shape_are_written_out() -> None:
    assert _statistic().rows[0].cells == ("MRPC", "lora", "0.0123")
    assert _statistic(rows=[{"task": "mrpc", "method": "lora", "p": None}]).rows[0].cells[2] == "–"
    assert [value_text("x", v) for v in (True, [0.1, None], ["a", 1], {"k": 0.5}, float("nan"))] == [
        "yes",
        "[0.100, ∞]",
        "a, 1",
        "k: 0.500",
        "–",
    ]
    assert value_text("learning_rate", 0.0005) == "0.0005" and value_text("seed", 1337) == "1337"
    assert statistics_tables({"empty": {"title": "", "columns": ["a"], "rows": [], "note": "", "steps": []}}) == []


def test_notes_of_all_serving_cells_are_said_once(published: Published) -> None:
    rows = [r.model_copy(update={"note": "few requests" + ("; alone" if k == 0 else "")}) for k, r in enumerate(published.findings.serving)]
    table = serving_table(rows)
    assert "few requests" in table.note and [row.cells[-1] for row in table.rows[:2]] == ["alone", "–"]


def test_a_single_launch_has_no_spread_and_ratios_name_their_pairs(published: Published) -> None:
    row = next(r for r in published.findings.serving if r.ratio_to_baseline is not None)
    one = row.model_copy(update={"launches": 2, "ratio_launches": 1, "ms_per_token_median": 1.83, "ms_per_token_mad": None})
    table = serving_table([one])
    shown = dict(zip(table.columns, table.rows[0].cells, strict=True))
    assert (shown["ms per token"], shown["Launches"], shown["Pairs"]) == ("1.83", "2", "1") and "Pairs: launches" in table.note


def test_disagreements_say_who_is_right() -> None:
    row = {
        "task": "squad_v2", "example_id": "v/1", "label": None, "predictions": {"full": "", "lora": "x" * 500},
        "agreement": {"full": 1.0, "lora": 2 / 3}, "right": {"full": True, "lora": False}, "steps": ["a"],
    }  # fmt: skip
    cells = disagreements_table([row]).rows[0].cells
    assert cells[:4] == ("SQuAD v2", "v/1", "–", "(no answer) ✓ (100\u00a0%)")
    assert cells[4].endswith("… ✕ (67\u00a0%)") and len(cells[4]) < 140


def test_a_table_with_one_source_says_it_once() -> None:
    rows = tuple(Row((str(k),), ("serve",)) for k in range(2))
    assert Table("t", "T", ("a",), rows, frozenset()).one_source
    assert not Table("t", "T", ("a",), (*rows, Row(("3",), ("x",))), frozenset()).one_source
