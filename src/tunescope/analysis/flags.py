"""Red flags: what the steps noted, and what only shows when their results lie side by side. They never change a verdict."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

from tunescope.serve.overhead import overhead_ratio, side_by_side
from tunescope.study.schema import TASK_NAMES, Study

from .findings import Claim, RedFlag
from .frames import Frames
from .overhead import launch_rows, registered_cells
from .scores import scalar, seeds_of
from .step_flags import Results, comparison_flags

_WIDEST = {"quality": 0.5, "drift": 1.0, "overhead": 1.0}
"""Interval widths (fractions) above which an interval says next to nothing."""


def red_flags(frames: Frames, study: Study, claims: list[Claim]) -> list[RedFlag]:
    """All flags, each with the step to look at, without repeats."""
    results = Results(partial(seeds_of, frames), partial(scalar, frames), frames.outputs)
    found = [*_notes(frames), *_unreadable(frames), *comparison_flags(study, results)]
    found += [*_records(frames, study), *_unlike(frames, study), *_latency(frames), *_falling_overhead(frames, study), *_odd_claims(claims)]
    return list(dict.fromkeys(RedFlag(step=step, text=text) for step, text in found))


def _notes(frames: Frames) -> Iterator[tuple[str, str]]:
    for row in frames.steps.itertuples():
        for note in row.notes:
            yield str(row.step_id), str(note)


def _unreadable(frames: Frames) -> Iterator[tuple[str, str]]:
    yield from frames.problems


def _records(frames: Frames, study: Study) -> Iterator[tuple[str, str]]:
    """Finished final runs without the records they should have left."""
    tables = {"predictions": frames.predictions, "drift table": frames.drift, "training series": frames.series}
    have = {name: set(frame.step_id) for name, frame in tables.items()}
    for task in study.tasks:
        for method in study.methods:
            for step in seeds_of(frames, task, method).values():
                lost = [name for name, ids in have.items() if step not in ids]
                if lost:
                    yield step, f"missing records: {', '.join(lost)}"


_SAME = ("precision", "optimizer", "fused_kernels", "batch_size")
"""What the final runs of a task must share for their comparison to be about the method."""


def _unlike(frames: Frames, study: Study) -> Iterator[tuple[str, str]]:
    """Final runs of one task that were computed differently, for instance on machines of which only one has a GPU."""
    for task in study.tasks:
        steps = [step for method in study.methods for step in seeds_of(frames, task, method).values()]
        for name in _SAME:
            values = {str(frames.outputs(step).get(name)) for step in steps}
            if len(values) > 1:
                unlike = f"{TASK_NAMES[task]}: final runs differ in {name} ({', '.join(sorted(values))})"
                yield steps[0], f"{unlike}: their differences are not the method's alone"


def _latency(frames: Frames) -> Iterator[tuple[str, str]]:
    """Times that cannot be."""
    rows = frames.launches
    wrong = rows[(rows.ms_per_token <= 0) | (rows.ttft_ms_p50 > rows.latency_ms_p50) | (rows.latency_ms_p50 > rows.latency_ms_p99)]
    for (step, arm), group in wrong.groupby(["step_id", "arm"]):
        yield str(step), f"impossible latency in {len(group)} cells of arm {arm}"


def _falling_overhead(frames: Frames, study: Study) -> Iterator[tuple[str, str]]:
    """More adapters, less overhead, beyond the intervals."""
    rows, baseline = launch_rows(frames), study.analysis.overhead_baseline_arm
    ratios = [(arm, overhead_ratio(rows, arm, baseline, registered_cells(study))) for arm in side_by_side(rows)]
    for (fewer, first), (more, second) in pairwise(ratios):
        if first and second and first.low is not None and second.high is not None and second.high < first.low:
            yield frames.of_kind("serve")[0], f"overhead falls from {fewer} ({first.ratio:.2f}) to {more} ({second.ratio:.2f})"


def _odd_claims(claims: list[Claim]) -> Iterator[tuple[str, str]]:
    tested = [c for c in claims if c.p is not None and c.task is not None]
    if len(tested) > 1 and all(min(c.p or 0.0, 1 - (c.p or 0.0)) < 1e-12 for c in tested):
        yield _first_step(tested[0]), "every per-task p is 0 or 1"
    for claim in claims:
        low, high = claim.interval or (None, None)
        if low is None or high is None or claim.id.endswith("/all"):
            continue
        if high - low <= 1e-9:
            yield _first_step(claim), f"{claim.id}: the interval has no width"
        elif high - low > _WIDEST.get(claim.dimension, float("inf")):
            yield _first_step(claim), f"{claim.id}: the interval is {high - low:.2f} wide and says next to nothing"


def _first_step(claim: Claim) -> str:
    return next((s for s in claim.steps if s.startswith("train/")), claim.steps[0] if claim.steps else claim.id)
