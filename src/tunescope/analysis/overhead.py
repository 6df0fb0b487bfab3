"""The overhead claim: time per token of the adapter arm over the merged arm, one number per launch, tested over launches."""

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from tunescope.study.schema import Study

from .findings import Claim
from .frames import Frames
from .inference import Array, Interval, TTest, t_test
from .verdicts import Decision, decide

TIE_ARMS = ("base", "full", "merged")
TIE_TOLERANCE = 0.05
"""Arms of identical shape may differ by this share before the difference counts (when it is also significant, two-sided 0.05)."""


@dataclass(frozen=True)
class LogRatios:
    """Per-launch mean log ratio of time per token of two arms over the registered cells; launches paired by number."""

    arm: str
    baseline: str
    launches: tuple[int, ...]
    values_n: Array
    step: str | None

    def interval(self, level: float = 0.90) -> Interval:
        """Limits of the ratio (not its log); None below two launches."""
        if len(self.values_n) < 2:
            return None, None
        low, high = t_test(self.values_n).interval(level)
        return (None if low is None else math.exp(low)), (None if high is None else math.exp(high))

    @property
    def ratio(self) -> float | None:
        """Geometric-mean ratio."""
        return math.exp(float(self.values_n.mean())) if len(self.values_n) else None


def log_ratios(launches: pd.DataFrame, arm: str, baseline: str, batch_sizes: tuple[int, ...], prompt_length: int) -> LogRatios:
    """Greedy cells of both arms at the registered batch sizes and prompt length; a launch counts when it has every cell in both arms."""
    rows = launches[(launches.prompt_length == prompt_length) & (launches.sampling == "greedy") & launches.batch_size.isin(batch_sizes)]
    rows = rows[rows.ms_per_token > 0]
    tables = [rows[rows.arm == a].pivot_table(index="launch", columns="batch_size", values="ms_per_token") for a in (arm, baseline)]
    tables = [t.reindex(columns=list(batch_sizes)).dropna() for t in tables]
    common = [n for n in tables[0].index if n in tables[1].index]
    logs = [np.log(t.loc[common].to_numpy(dtype=np.float64)).mean(axis=1) if common else np.array([]) for t in tables]
    step = str(launches.step_id.iloc[0]) if len(launches) else None
    return LogRatios(arm, baseline, tuple(int(n) for n in common), logs[0] - logs[1], step)


@dataclass(frozen=True)
class TieRow:
    """Two arms of identical shape, which must tie."""

    arm: str
    baseline: str
    ratio: float
    interval: Interval
    p: float | None
    tied: bool


def tie_check(frames: Frames, study: Study) -> list[TieRow]:
    """base, full and merged against each other: untied when they differ by more than 5 % and significantly (two-sided 0.05)."""
    spec = study.analysis
    arms = [a for a in TIE_ARMS if a in set(frames.launches.arm)]
    rows = []
    for arm, baseline in combinations(arms, 2):
        found = log_ratios(frames.launches, arm, baseline, spec.overhead_batch_sizes, spec.overhead_prompt_length)
        if found.ratio is None:
            continue
        test = t_test(found.values_n) if len(found.values_n) > 1 else None
        p = None if test is None or test.p is None or test.p_opposite is None else min(1.0, 2 * min(test.p, test.p_opposite))
        tied = abs(math.log(found.ratio)) <= math.log(1 + TIE_TOLERANCE) or p is None or p > 0.05
        rows.append(TieRow(arm, baseline, found.ratio, found.interval(), p, tied))
    return rows


def overhead_claim(frames: Frames, study: Study) -> Decision:
    """t on the mean log ratio less log(1 + limit), one-sided, over launches; too few launches or untied twins make it inconclusive."""
    spec = study.analysis
    found = log_ratios(
        frames.launches, spec.overhead_arm, spec.overhead_baseline_arm, spec.overhead_batch_sizes, spec.overhead_prompt_length
    )
    n, limit = len(found.values_n), math.log(1 + spec.overhead_limit)
    test: TTest | None = t_test(found.values_n - limit, "less") if n >= 2 else None
    low, high = found.interval()
    interval = None if low is None or high is None else (low - 1, high - 1)
    blocks = _blocks(frames, study, found, test)
    claim = Claim(
        id="overhead", dimension="overhead", task=None,
        statement=f"{spec.overhead_arm} costs at most {spec.overhead_limit:.0%} more time per token than {spec.overhead_baseline_arm}",
        verdict="inconclusive", estimate=None if found.ratio is None else found.ratio - 1,
        estimate_name=f"time per token of {spec.overhead_arm} / {spec.overhead_baseline_arm} - 1", interval=interval, interval_level=0.90,
        margin=spec.overhead_limit, p=test.p if test else None, p_opposite=test.p_opposite if test else None, p_adjusted=None,
        df=test.df if test else None, attainable_p=None,
        method=f"t over launches on the mean log ratio over batch sizes {', '.join(map(str, spec.overhead_batch_sizes))}, prompts of "
        f"{spec.overhead_prompt_length}, greedy",
        n_seeds=None, n_examples=None, n_launches=n, notes=[*blocks, *_remarks(frames)], steps=frames.of_kind("serve"),
    )  # fmt: skip
    return decide(Decision(claim, bool(blocks)), spec.alpha)


def _blocks(frames: Frames, study: Study, found: LogRatios, test: TTest | None) -> list[str]:
    spec, n, notes = study.analysis, len(found.values_n), []
    if study.serving is None:
        return ["the study has no serving part"]
    if not frames.of_kind("serve"):
        return ["partial: missing serve"]
    if n < spec.min_launches:
        notes.append(f"{n} paired launches, {spec.min_launches} are registered as the least: too few to decide")
    if n == 0:
        notes.append(_absent_cells(study))
    elif test is not None and test.p is None:
        notes.append(test.note)
    for row in tie_check(frames, study):
        if not row.tied:
            notes.append(
                f"{row.arm} and {row.baseline} have identical shapes but do not tie (ratio {row.ratio:.3f}): no overhead is claimed"
            )
    notes += [f"serving correctness: {text}" for text in wrong_adapters(frames)]
    return notes


def _absent_cells(study: Study) -> str:
    spec, serving = study.analysis, study.serving
    assert serving is not None
    absent = [f"arm {a}" for a in (spec.overhead_arm, spec.overhead_baseline_arm) if a not in serving.arms]
    absent += [f"batch size {b}" for b in spec.overhead_batch_sizes if b not in serving.batch_sizes]
    absent += [f"prompt length {spec.overhead_prompt_length}"] if spec.overhead_prompt_length not in serving.prompt_lengths else []
    absent += ["greedy sampling"] if "greedy" not in serving.sampling else []
    return f"the serving grid lacks the registered {', '.join(absent)}" if absent else "no launch has all registered cells in both arms"


def wrong_adapters(frames: Frames) -> list[str]:
    """Adapters whose served output failed its check, in words (from correctness.json)."""
    found = []
    for step in frames.of_kind("serve"):
        document = frames.documents.get(step, {}).get("correctness.json", {})
        adapters = document.get("adapters", document)
        rows = adapters.items() if isinstance(adapters, dict) else ((row.get("name", "?"), row) for row in adapters)
        found += [f"adapter {name} failed its output check" for name, row in rows if isinstance(row, dict) and row.get("ok") is False]
    return found


def _remarks(frames: Frames) -> list[str]:
    found = []
    for step in frames.of_kind("serve"):
        outputs = frames.outputs(step)
        if outputs.get("cpu_figures"):
            found.append("measured on a CPU: the figures say nothing about GPUs")
        if outputs.get("eager"):
            found.append("engines ran in eager mode")
    failed = frames.engines[~frames.engines.ok.astype(bool) | frames.engines.compiled_during_inference.fillna(False).astype(bool)]
    if len(failed):
        found.append(f"{len(failed)} launches failed or compiled during inference and are left out: {', '.join(sorted(set(failed.arm)))}")
    return found
