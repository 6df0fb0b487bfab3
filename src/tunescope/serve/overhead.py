"""Serving overhead from launch rows: cell table, ratios with intervals, the tie check.

One launch is one sample. A row is one line of `launches.jsonl`; rows that are not `ok` are ignored everywhere.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from tunescope.study.arms import SAME_SHAPE, parse_arm

from .arms import alternation

Row = Mapping[str, Any]
Cell = tuple[int, int, str]
"""(batch size, prompt length in tokens, sampling)."""
Measure = Literal["ms_per_token", "ttft_ms", "tpot_ms"]
"""Time of one token of the batch, prefill included; time to first token; time of each further token (medians over a launch's requests)."""
P99_REQUESTS = 299
"""Requests below which no upper bound on a 99th percentile exists: 0.99^299 < 0.05."""
TIE_LEVEL, TIE_MARGIN = 0.99, 0.03
"""Arms of equal shape fail to tie when a ratio is off by more than the margin and its interval at this level excludes 1."""
TIE_REACH = 0.10
"""A tie is shown, and not only not refuted, when the whole interval lies within this much of 1."""


def finished(rows: Sequence[Row], arm: str | None = None) -> list[Row]:
    """The rows of finished launches, of one arm or of all."""
    return [r for r in rows if r["ok"] and (arm is None or r["arm"] == arm)]


def graph_tokens(row: Row) -> int | None:
    """Tokens of the largest step that the engine of a launch replays from a CUDA graph; None on a CPU and in eager mode.

    Where the launch left it to vLLM: min(2 x max_num_seqs, 512), the rule of vLLM 0.25 to 0.32 without speculative decoding.
    """
    if row.get("enforce_eager", True) or row.get("device") == "cpu":
        return None
    return int(row.get("max_cudagraph_capture_size") or min(2 * row["max_num_seqs"], 512))


def largest_prefill(rows: Sequence[Row]) -> int:
    """Tokens of the largest prefill among the cells of finished launches: batch size x prompt length."""
    return max((c["batch_size"] * c["prompt_length"] for r in finished(rows) for c in r["cells"]), default=0)


def side_by_side(rows: Sequence[Row]) -> dict[str, int]:
    """The finished arms that serve N adapters side by side in N slots -> N, the fewest first."""
    arms = [parse_arm(name) for name in dict.fromkeys(r["arm"] for r in finished(rows))]
    return {arm.name: arm.adapters for arm in sorted(arms, key=lambda arm: arm.adapters) if arm.side_by_side}


def cell_of(cell: Row) -> Cell:
    return cell["batch_size"], cell["prompt_length"], cell["sampling"]


def cell_table(rows: Sequence[Row]) -> pd.DataFrame:
    """One line per arm and cell over its launches.

    Columns: arm, batch_size, prompt_length, output_tokens, sampling, adapters (loaded), adapters_active (in one batch), launches,
    ms_per_token_median, ms_per_token_mad (raw median absolute deviation over launches, not scaled; NaN for a single launch),
    tokens_per_s_median, ttft_ms_median, tpot_ms_median, latency_p50_ms, latency_p95_ms, latency_p99_ms (medians over launches of each
    launch's percentile), requests (sum), note.
    """
    flat = [{"row": r, **c} for r in finished(rows) for c in r["cells"]]
    groups: dict[tuple[str, Cell], list[dict[str, Any]]] = {}
    for entry in flat:
        groups.setdefault((entry["row"]["arm"], cell_of(entry)), []).append(entry)
    return pd.DataFrame([_table_line(arm, entries) for (arm, _), entries in groups.items()], columns=_COLUMNS)


_COLUMNS = [
    "arm", "batch_size", "prompt_length", "output_tokens", "sampling", "adapters", "adapters_active", "launches", "ms_per_token_median",
    "ms_per_token_mad", "tokens_per_s_median", "ttft_ms_median", "tpot_ms_median", "latency_p50_ms", "latency_p95_ms", "latency_p99_ms",
    "requests", "note",
]  # fmt: skip


def _table_line(arm: str, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    times = [e["ms_per_token"] for e in entries]
    latency = np.median([e["latency_ms"] for e in entries], axis=0)
    requests, first = sum(e["requests"] for e in entries), entries[0]
    adapters = len(first["row"]["adapters"])
    notes = [first["note"] or alternation(adapters, first["batch_size"])]
    fewest = min(e["requests"] for e in entries)  # the p99 shown is the median of the launches' own
    notes += [f"p99 of {fewest} requests a launch has no upper bound"] if fewest < P99_REQUESTS else []
    return {
        **{k: first[k] for k in ("batch_size", "prompt_length", "output_tokens", "sampling", "adapters_active")},
        "arm": arm,
        "adapters": adapters,
        "launches": len(entries),
        "ms_per_token_median": float(np.median(times)),
        "ms_per_token_mad": spread(times),
        "tokens_per_s_median": float(np.median([e["tokens_per_s"] for e in entries])),
        "ttft_ms_median": float(np.median([e["ttft_ms"][0] for e in entries])),
        "tpot_ms_median": float(np.median([e["tpot_ms"][0] for e in entries])),
        **dict(zip(("latency_p50_ms", "latency_p95_ms", "latency_p99_ms"), map(float, latency), strict=True)),
        "requests": requests,
        "note": "; ".join(n for n in notes if n),
    }


def spread(values: Sequence[float]) -> float:
    """Raw median absolute deviation; NaN for fewer than two values, of which no spread is known."""
    return float(np.median(np.abs(np.array(values) - np.median(values)))) if len(values) > 1 else math.nan


@dataclass(frozen=True)
class Ratio:
    """Time of one arm over another's: geometric mean over launches, with a t interval on the log scale."""

    ratio: float
    low: float | None
    """None with fewer than two launches."""
    high: float | None
    level: float
    mean_log: float
    se_log: float | None
    df: int
    launches: int
    cells: tuple[Cell, ...]

    @property
    def interval(self) -> tuple[float | None, float | None]:
        return self.low, self.high

    def p_below(self, limit: float) -> float | None:
        """One-sided p of 'the ratio is below `limit`' (null: at or above), e.g. 1.3 for an overhead of at most 30 %."""
        t = self._t(limit)
        return None if t is None else float(stats.t.cdf(t, self.df))

    def p_above(self, limit: float) -> float | None:
        """One-sided p of 'the ratio is above `limit`'."""
        t = self._t(limit)
        return None if t is None else float(stats.t.sf(t, self.df))

    def _t(self, limit: float) -> float | None:
        if self.se_log is None:
            return None
        gap = self.mean_log - math.log(limit)
        return gap / self.se_log if self.se_log > 0 else math.copysign(math.inf, gap) if gap else 0.0


def overhead_ratio(
    rows: Sequence[Row], arm: str, baseline: str, cells: Sequence[Cell], level: float = 0.90, measure: Measure = "ms_per_token"
) -> Ratio | None:
    """Time per token (or another measure) of `arm` over `baseline`, mean log ratio over `cells`, one value per launch number.

    Launch k of both arms ran in the same A B B A round, so launches pair by number; t with launches - 1 degrees of freedom.

    Returns:
        None when no launch number has all the cells in both arms.
    """
    logs = list(log_ratios(rows, arm, baseline, cells, measure).values())
    if not logs:
        return None
    n, mean = len(logs), float(np.mean(logs))
    if n < 2:
        return Ratio(math.exp(mean), None, None, level, mean, None, 0, n, tuple(cells))
    se = float(np.std(logs, ddof=1) / math.sqrt(n))
    half = float(stats.t.ppf((1 + level) / 2, n - 1)) * se
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half), level, mean, se, n - 1, n, tuple(cells))


def log_ratios(rows: Sequence[Row], arm: str, baseline: str, cells: Sequence[Cell], measure: Measure = "ms_per_token") -> dict[int, float]:
    """Launch number -> mean over cells of log(time of arm / of baseline); launches without all the cells are left out."""
    above, below = _log_times(rows, arm, measure), _log_times(rows, baseline, measure)
    return {
        k: float(np.mean([above[k][c] - below[k][c] for c in cells]))
        for k in sorted(above.keys() & below.keys())
        if cells and all(c in above[k] and c in below[k] for c in cells)
    }


def _log_times(rows: Sequence[Row], arm: str, measure: Measure) -> dict[int, dict[Cell, float]]:
    """Cells that take no time have no ratio: an answer of one token has no further tokens."""
    return {r["launch"]: {cell_of(c): math.log(t) for c in r["cells"] if (t := _time(c, measure)) > 0} for r in finished(rows, arm)}


def _time(cell: Row, measure: Measure) -> float:
    return float(cell[measure] if measure == "ms_per_token" else cell[measure][0])  # of percentiles the median


def common_cells(rows: Sequence[Row], arms: Sequence[str]) -> list[Cell]:
    """Cells that every one of these arms has measured, in order."""
    sets = [{cell_of(c) for r in finished(rows, arm) for c in r["cells"]} for arm in arms]
    return sorted(set.intersection(*sets)) if sets else []


def tie_check(rows: Sequence[Row]) -> dict[str, Any]:
    """Do the arms of equal shape (base, full, merged) cost the same? When they do not, no overhead can be claimed.

    Returns {"ok": bool | None, "pairs": [{"arms", "ratio", "interval", "launches", "ties", "shown"}], "note"}; ok is None when there is no
    pair with two launches; `shown` is false where the interval is too wide to show a tie.
    """
    arms = [a for a in SAME_SHAPE if finished(rows, a)]
    pairs = []
    for a, b in combinations(arms, 2):
        estimate = overhead_ratio(rows, a, b, common_cells(rows, [a, b]), TIE_LEVEL)
        if estimate is None or estimate.low is None or estimate.high is None:
            continue
        apart = abs(estimate.ratio - 1) > TIE_MARGIN and not estimate.low <= 1 <= estimate.high
        interval = [estimate.low, estimate.high]
        shown = not apart and estimate.low >= 1 / (1 + TIE_REACH) and estimate.high <= 1 + TIE_REACH
        found = {"arms": [a, b], "ratio": estimate.ratio, "interval": interval, "launches": estimate.launches, "ties": not apart}
        pairs.append(found | {"shown": shown})
    note = f"apart means: off by more than {TIE_MARGIN:.0%} and the {TIE_LEVEL:.0%} interval excludes 1"
    note += f"; a tie is shown when the interval lies within {TIE_REACH:.0%} of 1"
    return {"ok": all(p["ties"] for p in pairs) if pairs else None, "pairs": pairs, "note": note}
