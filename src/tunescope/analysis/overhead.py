"""The overhead claim: time per token of the adapter arm over the merged arm, one number per launch, tested over launches."""

import math
from typing import Any

import numpy as np

from tunescope.serve.overhead import Row, finished, log_ratios, tie_check
from tunescope.study.arms import arm_name
from tunescope.study.registration import cells_lacking
from tunescope.study.schema import Study

from .crossed import TTest, t_test
from .findings import Claim, Reason
from .frames import Frames
from .verdicts import decide


def launch_rows(frames: Frames) -> list[Row]:
    """The lines of launches.jsonl of the finished serve step, [] without one."""
    return [row for step in frames.of_kind("serve") for row in frames.documents.get(step, {}).get("launches.jsonl", [])]


def registered_cells(study: Study) -> list[tuple[int, int, str]]:
    """The cells the overhead claim is made on: registered batch sizes and prompt length, greedy."""
    return [(b, study.analysis.overhead_prompt_length, "greedy") for b in study.analysis.overhead_batch_sizes]


def overhead_claim(frames: Frames, study: Study) -> Claim:
    """t on the mean log ratio less log(1 + limit), one-sided, over launches; too few launches or untied twins make it inconclusive."""
    spec, rows = study.analysis, launch_rows(frames)
    logs = np.array(list(log_ratios(rows, spec.overhead_arm, spec.overhead_baseline_arm, registered_cells(study)).values()))
    n, limit = len(logs), math.log(1 + spec.overhead_limit)
    test = t_test(logs - limit, "less") if n >= 2 else None
    low, high = t_test(logs).interval() if n >= 2 else (None, None)
    claim = Claim(
        id="overhead", dimension="overhead", task=None,
        
        statement=f"{arm_name(spec.overhead_arm)} cost at most {100 * spec.overhead_limit:g} % more time per token than "
        f"{arm_name(spec.overhead_baseline_arm)}",
        verdict="inconclusive", estimate=math.expm1(float(logs.mean())) if n else None,
        estimate_name=f"time per token of {spec.overhead_arm} / {spec.overhead_baseline_arm} - 1",
        interval=None if low is None or high is None else (math.expm1(low), math.expm1(high)), interval_level=0.90,
        margin=spec.overhead_limit, p=test.p if test else None, p_opposite=test.p_opposite if test else None, p_adjusted=None,
        df=test.df if test else None, attainable_p=None,
        method=f"t over launches on the mean log ratio over batch sizes {', '.join(map(str, spec.overhead_batch_sizes))}, prompts of "
        f"{spec.overhead_prompt_length}, greedy",
        n_seeds=None, n_examples=None, n_launches=n, reasons=_reasons(frames, study, rows, n, test), notes=_notes(frames, rows),
        steps=frames.of_kind("serve"),
    )  # fmt: skip
    return decide(claim, spec.alpha)


def _reasons(frames: Frames, study: Study, rows: list[Row], n: int, test: TTest | None) -> list[Reason]:
    """Why the claim may not be decided, most telling first."""
    spec, found = study.analysis, []
    if study.serving is None:
        return [Reason(kind="no_serving", text="the study has no serving part")]
    if not frames.of_kind("serve"):
        return [Reason(kind="missing_steps", text="partial: missing serve")]
    if n < max(spec.min_launches, 2):
        text = f"too few launches to decide: {n} of at least {max(spec.min_launches, 2)} an arm"
        found.append(Reason(kind="too_few_launches", text=text))
    if n == 0:
        absent = ", ".join(cells_lacking(study))
        text = f"the serving grid lacks the registered {absent}" if absent else "no launch has all registered cells in both arms"
        found.append(Reason(kind="cells_not_measured", text=text))
    elif test is not None and test.p is None:
        found.append(Reason(kind="no_variation", text=test.note))
    for pair in tie_check(rows)["pairs"]:
        if not pair["ties"]:
            arms = " and ".join(pair["arms"])
            text = f"{arms} have identical shapes but do not tie (ratio {pair['ratio']:.3f}): no overhead is claimed"
            found.append(Reason(kind="twins_differ", text=text))
    return found


def _notes(frames: Frames, rows: list[Row]) -> list[str]:
    found = []
    for step in frames.of_kind("serve"):
        outputs: dict[str, Any] = frames.outputs(step)
        if outputs.get("cpu_figures"):
            found.append("measured on a CPU: the figures say nothing about GPUs")
        if outputs.get("eager"):
            found.append("engines ran in eager mode")
        if outputs.get("correct") is False:
            found.append("some served outputs are outside tolerance of their references (correctness.json)")
    lost = len(rows) - len(finished(rows))
    return [*found, f"{lost} failed or rejected launches are left out"] if lost else found
