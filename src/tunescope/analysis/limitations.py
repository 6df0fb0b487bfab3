"""Limitations that the data itself states, each with the steps that state it."""

from collections.abc import Iterator

from tunescope.serve.machine import busy, uneven
from tunescope.serve.overhead import P99_REQUESTS, finished, graph_tokens, largest_prefill
from tunescope.study.schema import TASK_NAMES, Study

from .confirmatory import CONFIRMATORY_SEEDS, FIRST_LOOK, broken_plan
from .findings import Claim, Limitation, Missing, TaskRow
from .frames import Frames
from .overhead import launch_rows
from .quality import TaskQuality
from .scores import scalars

SMALL_MODEL = 1e8
SMALL_TEST = 500
Said = tuple[str, list[str]]
"""A sentence and the ids of the steps it rests on."""


def limitations(
    frames: Frames, study: Study, qualities: list[TaskQuality], claims: list[Claim], table: list[TaskRow], absent: list[Missing]
) -> list[Limitation]:
    """One sentence per limitation that these results show."""
    found = [*_partial(frames, absent), *_design(frames, study, claims), *_data(frames, study)]
    found += [*_learning(study, qualities, table), *_serving(frames, claims)]
    return [Limitation(text=text, steps=sorted(set(steps))) for text, steps in found]


def _partial(frames: Frames, absent: list[Missing]) -> Iterator[Said]:
    if absent:
        done = f"{len(frames.planned) - len(absent)} of {len(frames.planned)} steps"
        yield f"Partial study: {done} are finished; claims that need the others are not decided.", [m.step for m in absent]


def _design(frames: Frames, study: Study, claims: list[Claim]) -> Iterator[Said]:
    plan = next((c for c in claims if broken_plan(c)), None)
    if plan is not None:
        yield f"Not every claim is confirmatory: {broken_plan(plan)}.", plan.steps
    n, runs = len(study.seeds), frames.steps[frames.steps.kind == "train"]
    finals = list(runs[runs.role == "final"].step_id)
    if n < CONFIRMATORY_SEEDS:
        seeds = f"{n} seed{'s' if n > 1 else ''}"
        yield f"{seeds}: {FIRST_LOOK}; claims are planned on {CONFIRMATORY_SEEDS}, and the spread between runs is poorly known.", finals
    sizes = scalars(frames, frames.of_kind("train"), "total_parameters")
    if sizes and max(sizes) < SMALL_MODEL:
        yield f"The model has {max(sizes) / 1e6:.1f} million parameters; what holds for it need not hold for larger ones.", finals
    searched = list(runs[runs.role == "search"].step_id)
    if searched:
        seed = study.training.search_seed
        yield f"Learning rates were chosen on one seed ({seed}) and {len(searched)} search runs; drift depends on them.", searched


def _data(frames: Frames, study: Study) -> Iterator[Said]:
    outputs = {task: frames.outputs(step) for task in study.tasks for step in frames.of_kind("data", task)}
    made = [TASK_NAMES[t] for t, o in outputs.items() if o.get("made_here")]
    if made:
        yield (
            f"The data of {', '.join(made)} was made by rules for this package; scores on it say nothing about the official task.",
            _data_steps(frames, study, made),
        )
    other = [TASK_NAMES[t] for t, o in outputs.items() if o.get("comparable") is False and TASK_NAMES[t] not in made]
    if other:
        yield (
            f"{', '.join(other)}: not the official split, so scores do not compare with published ones.",
            _data_steps(frames, study, other),
        )
    sizes = {t: int(frames.predictions[frames.predictions.task == t].example_id.nunique()) for t in study.tasks}
    small = [f"{TASK_NAMES[t]} ({n})" for t, n in sizes.items() if 0 < n < SMALL_TEST]
    if small:
        yield f"Few test examples: {', '.join(small)}; small differences cannot be seen there.", list(frames.predictions.step_id.unique())
    lost = {TASK_NAMES[t]: _answers_lost(frames, t) for t in study.tasks}
    if any(lost.values()):
        named = [name for name, n in lost.items() if n]
        shown = ", ".join(f"{name} {lost[name]}" for name in named)
        yield f"Answers cut off by the length limit: {shown}.", _runs_of(frames, study, named)


def _data_steps(frames: Frames, study: Study, names: list[str]) -> list[str]:
    return [step for task in study.tasks if TASK_NAMES[task] in names for step in frames.of_kind("data", task)]


def _runs_of(frames: Frames, study: Study, names: list[str]) -> list[str]:
    return [step for task in study.tasks if TASK_NAMES[task] in names for step in frames.of_kind("train", task)]


def _answers_lost(frames: Frames, task: str) -> int:
    rows = frames.steps[(frames.steps.kind == "train") & (frames.steps.task == task)]
    counts = [o.get("truncated") or {} for o in rows.outputs]
    return max((int(v) for c in counts for k, v in c.items() if "lost" in k and isinstance(v, int | float)), default=0)


def _learning(study: Study, qualities: list[TaskQuality], table: list[TaskRow]) -> Iterator[Said]:
    failed = [q for q in qualities if q.gate_failed(study.analysis.reference_method)]
    if failed:
        names = ", ".join(TASK_NAMES[q.task] for q in failed)
        steps = [step for q in failed for row in q.gate for step in row.steps]
        yield f"Full fine-tuning does not beat its baselines on {names}: quality cannot be compared there.", steps
    saturated = [r for r in table if r.drift_saturated]
    if saturated:
        names, limit = ", ".join(f"{TASK_NAMES[r.task]} ({r.method})" for r in saturated), study.analysis.saturated_drift
        steps = [step for r in saturated for step in r.steps]
        yield f"Drift is saturated (above {limit:g}) for {names}: differences there mean little.", steps


def _serving(frames: Frames, claims: list[Claim]) -> Iterator[Said]:
    overhead = next(c for c in claims if c.dimension == "overhead")
    steps = frames.of_kind("serve")
    if not steps:
        return
    if overhead.has("too_few_launches"):
        yield f"{overhead.n_launches} serving launches an arm: the overhead verdict is inconclusive by rule.", steps
    outputs = frames.outputs(steps[0])
    if outputs.get("cpu_figures"):
        mode = ", in eager mode in every arm" if outputs.get("eager") else ""
        yield f"Serving was measured on a CPU{mode}: the figures show that the benchmark works and say nothing about GPUs.", steps
    rows = launch_rows(frames)
    reach = min((tokens for r in finished(rows) if (tokens := graph_tokens(r))), default=None)
    if reach is not None and (most := largest_prefill(rows)) > reach:
        outside = f"CUDA graphs reach {reach} tokens a step, and prefills of up to {most} ran outside of them"
        yield f"{outside}: what adapters cost there depends on the speed of the host.", steps
    for disturbed in filter(None, (busy(rows), uneven(rows))):
        yield f"{disturbed[0].upper()}{disturbed[1:]}: part of what arms differ by may be that.", steps
    requests = frames.launches.requests  # the p99 of a cell is the median of its launches' own, so requests of several do not add up
    least = int(requests.min()) if len(requests) else P99_REQUESTS
    if least < P99_REQUESTS:
        yield f"Serving cells have {least} requests a launch or more: a 99th percentile has no upper bound below {P99_REQUESTS}.", steps
