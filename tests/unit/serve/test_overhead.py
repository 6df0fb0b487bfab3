import math

import numpy as np
import pytest
from scipy import stats

from launch_rows import GREEDY, cell, row, session
from tunescope.serve.overhead import cell_table, common_cells, log_ratios, overhead_ratio, tie_check

CELLS = [(2, 128, GREEDY)]


def test_cell_table_holds_median_and_raw_mad_over_launches():
    line = cell_table(session({"base": [1.0, 2.0, 4.0, 100.0]})).iloc[0]
    assert (line["ms_per_token_median"], line["ms_per_token_mad"]) == (3.0, 1.5)
    assert line["launches"] == 4 and line["requests"] == 80
    assert line["latency_p95_ms"] == 60.0 and line["ttft_ms_median"] == 9.0
    assert line["tokens_per_s_median"] == pytest.approx(np.median([2000, 1000, 500, 20]))


def test_a_single_launch_has_no_spread():
    line = cell_table(session({"base": [1.0]})).iloc[0]
    assert line["ms_per_token_median"] == 1.0 and math.isnan(line["ms_per_token_mad"])


def test_cell_table_ignores_failed_launches_and_keeps_cells_apart():
    rows = [row("a", 0, [cell(1.0), cell(5.0, batch=4)]), row("a", 1, [cell(9.0)], ok=False)]
    table = cell_table(rows)
    assert list(table["ms_per_token_median"]) == [1.0, 5.0] and set(table["launches"]) == {1}
    assert list(cell_table([]).columns) == list(table.columns)


def test_cell_table_says_what_a_cell_cannot_show():
    rows = [row("adapters_2", 0, [cell(1.0, batch=1, requests=298), cell(1.0, batch=2, requests=299)], adapters=["x", "y"])]
    notes = list(cell_table(rows)["note"])
    assert "alternation" in notes[0] and "p99" in notes[0] and notes[1] == ""


def test_ratio_is_geometric_with_the_textbook_t_interval():
    base, arm = [2.0, 2.2, 1.9, 2.1], [3.0, 3.1, 2.9, 3.5]
    estimate = overhead_ratio(session({"merged": base, "adapters_2": arm}), "adapters_2", "merged", CELLS)
    logs = np.log(np.array(arm) / np.array(base))
    low, high = stats.t.interval(0.90, 3, logs.mean(), stats.sem(logs))
    assert estimate.ratio == pytest.approx(stats.gmean(np.array(arm) / np.array(base)))
    assert estimate.interval == pytest.approx((math.exp(low), math.exp(high)))
    assert estimate.p_below(1.7) == pytest.approx(stats.ttest_1samp(logs, math.log(1.7), alternative="less").pvalue)
    assert estimate.p_above(1.7) == pytest.approx(1 - estimate.p_below(1.7))


def test_prefill_and_decoding_have_ratios_of_their_own():
    def launches(arm, first, further):
        return [
            row(arm, n, [cell(1.0) | {"ttft_ms": [f, 90.0, 99.0], "tpot_ms": [t, 90.0, 99.0]}])
            for n, (f, t) in enumerate(zip(first, further, strict=True))
        ]

    rows = launches("b", [20.0, 22.0], [2.0, 2.0]) + launches("a", [60.0, 66.0], [2.5, 2.6])
    assert overhead_ratio(rows, "a", "b", CELLS, measure="ttft_ms").ratio == pytest.approx(3.0)
    assert overhead_ratio(rows, "a", "b", CELLS, measure="tpot_ms").ratio == pytest.approx(math.sqrt(1.25 * 1.3))
    assert overhead_ratio(rows, "a", "b", CELLS).ratio == 1.0


def test_answers_of_one_token_have_no_decoding_to_compare():
    rows = [row(arm, n, [cell(1.0) | {"tpot_ms": [0.0, 0.0, 0.0]}]) for arm in "ab" for n in range(3)]
    assert overhead_ratio(rows, "a", "b", CELLS, measure="tpot_ms") is None
    assert overhead_ratio(rows, "a", "b", CELLS, measure="ttft_ms").ratio == 1.0


def test_swapping_arms_inverts_the_ratio():
    rows = session({"a": [1.0, 1.2, 1.1], "b": [2.0, 2.1, 2.6]})
    forth, back = overhead_ratio(rows, "a", "b", CELLS), overhead_ratio(rows, "b", "a", CELLS)
    assert forth.ratio == pytest.approx(1 / back.ratio) and forth.low == pytest.approx(1 / back.high)


def test_a_drift_that_hits_both_arms_of_a_round_cancels():
    drift = np.array([1.0, 1.5, 2.0, 4.0])
    estimate = overhead_ratio(session({"a": list(2 * drift), "b": list(drift)}), "a", "b", CELLS)
    assert estimate.ratio == pytest.approx(2.0) and estimate.se_log == pytest.approx(0.0, abs=1e-12)


def test_thirty_per_cent_less_throughput_is_a_42_9_per_cent_longer_step():
    rows = session({"b": [1.0, 1.0], "a": [1 / 0.7, 1 / 0.7]})
    assert overhead_ratio(rows, "a", "b", CELLS).ratio - 1 == pytest.approx(0.429, abs=5e-4)


def test_launches_pair_by_number_and_incomplete_ones_are_left_out():
    rows = [*session({"b": [1.0, 1.0, 1.0]}), row("a", 0, [cell(2.0)]), row("a", 2, [cell(8.0)]), row("a", 5, [cell(3.0)])]
    rows.append(row("a", 1, [cell(2.0, batch=4)]))
    assert log_ratios(rows, "a", "b", CELLS) == pytest.approx({0: math.log(2), 2: math.log(8)})
    assert overhead_ratio(rows, "a", "b", CELLS).ratio == pytest.approx(4.0)


def test_cells_count_equally_within_a_launch():
    rows = [row("b", 0, [cell(1.0), cell(10.0, batch=4)]), row("a", 0, [cell(2.0), cell(80.0, batch=4)])]
    cells = common_cells(rows, ["a", "b"])
    assert cells == [(2, 128, GREEDY), (4, 128, GREEDY)]
    assert overhead_ratio(rows, "a", "b", cells).ratio == pytest.approx(4.0)


def test_one_launch_gives_a_ratio_without_an_interval_or_p():
    estimate = overhead_ratio(session({"a": [3.0], "b": [2.0]}), "a", "b", CELLS)
    assert estimate.ratio == pytest.approx(1.5) and estimate.interval == (None, None) and estimate.p_below(1.3) is None


def test_nothing_in_common_is_none():
    assert overhead_ratio(session({"a": [3.0]}), "a", "b", CELLS) is None
    assert overhead_ratio(session({"a": [3.0], "b": [1.0]}), "a", "b", []) is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, hits, draws = np.random.default_rng(5), 0, 400
    for _ in range(draws):
        noise = rng.lognormal(sigma=0.1, size=(2, 5))
        estimate = overhead_ratio(session({"a": list(1.3 * noise[0]), "b": list(noise[1])}), "a", "b", CELLS)
        hits += estimate.low <= 1.3 <= estimate.high
    assert abs(hits / draws - 0.90) < 3.5 * math.sqrt(0.09 / draws)


def test_equal_arms_tie_and_a_clear_difference_does_not():
    rng = np.random.default_rng(0)
    same = {arm: list(2 * rng.lognormal(sigma=0.02, size=6)) for arm in ("base", "full", "merged")}
    tie = tie_check(session(same))
    assert tie["ok"] is True and len(tie["pairs"]) == 3
    slow = session(same | {"merged": [v * 1.2 for v in same["merged"]]})
    broken = tie_check(slow)
    assert broken["ok"] is False and {tuple(p["arms"]) for p in broken["pairs"] if not p["ties"]} == {
        ("base", "merged"),
        ("full", "merged"),
    }


def test_a_precise_but_tiny_difference_still_ties():
    rows = session({"base": [2.0, 2.001, 2.002], "full": [2.02, 2.021, 2.022]})
    assert tie_check(rows)["ok"] is True


def test_without_repeats_there_is_no_tie_check():
    assert tie_check(session({"base": [2.0], "full": [9.0]}))["ok"] is None


def test_a_tie_is_shown_only_by_a_narrow_interval():
    rng = np.random.default_rng(1)
    narrow, wide = ({a: list(2 * np.exp(rng.normal(0, sd, 6))) for a in ("base", "merged")} for sd in (0.005, 0.3))
    assert [(p["ties"], p["shown"]) for p in tie_check(session(narrow))["pairs"]] == [(True, True)]
    assert [(p["ties"], p["shown"]) for p in tie_check(session(wide))["pairs"]] == [(True, False)]
