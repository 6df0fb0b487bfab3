"""Adapters side by side or merged: what to do, in plain words, from launch rows."""

from collections.abc import Sequence

from tunescope.serve.overhead import Row, common_cells, finished, overhead_ratio, side_by_side, tie_check

from .merged_or_adapters import choices
from .overhead_scaling import break_even, overhead_model
from .serving_memory import rounding, telling, weights_and_slots


def recommendations(rows: Sequence[Row], limit: float, min_launches: int, cpu: bool, baseline: str = "merged") -> list[str]:
    """What to do, in plain words, each with the conditions it holds under."""
    said = ["These are CPU figures of eager engines; they say nothing about a GPU."] if cpu else []
    if tie_check(rows)["ok"] is False:
        why = "Arms of equal shape do not tie, so nothing is recommended: something else ran on the machine. Run the step again alone."
        return [*said, why]
    for arm, n in side_by_side(rows).items():
        said += _advice(rows, arm, n, baseline, limit, min_launches)
    model = overhead_model(rows, baseline)
    said += [break_even(model, limit).text] if model is not None else []
    chosen = choices(rows)
    # Weights measured with merged engines side by side are told by the choice.
    return said + [choice.text for choice in chosen] + ([] if any(c.measure == "weights" for c in chosen) else _memory_advice(rows))


def _advice(rows: Sequence[Row], arm: str, n: int, baseline: str, limit: float, min_launches: int) -> list[str]:
    cells = [c for c in common_cells(rows, [arm, baseline]) if c[0] >= n]
    estimate = overhead_ratio(rows, arm, baseline, cells)
    if estimate is None:
        return []
    batches = sorted({c[0] for c in cells})
    where = f"batches of {', '.join(map(str, batches))}, {estimate.launches} launches"
    shown = f"{100 * limit:.6g}%"  # as registered, with all its digits
    measured = f"{n} adapter{'s' if n > 1 else ''} side by side took {estimate.ratio:.2f} times as long a token as {baseline} ({where})"
    if estimate.low is None or estimate.high is None or estimate.launches < min_launches:
        return [f"{measured}: a first look; {min_launches} launches are needed to decide about a limit of {shown}."]
    limits = f"{estimate.level:.0%} interval {estimate.low:.2f} to {estimate.high:.2f}"
    if estimate.high <= 1 + limit:
        return [f"{measured}, {limits}: serve them side by side where {shown} is acceptable."]
    if estimate.low > 1 + limit:
        return [f"{measured}, {limits}: above {shown}, so merge and run one engine a task where memory allows."]
    return [f"{measured}, {limits}: not decided against a limit of {shown}; run more launches."]


def _memory_advice(rows: Sequence[Row]) -> list[str]:
    merged = next((r for r in telling(finished(rows, "merged")) if r.get("weight_bytes")), None)
    if merged is None:
        return []
    found = {n: r for arm, n in side_by_side(rows).items() for r in telling(finished(rows, arm)) if weights_and_slots(r)}
    held = {n: (weights_and_slots(r) or 0, *_doubt(max(rounding(merged), rounding(r)))) for n, r in found.items()}
    return [
        f"Memory: {n} merged model{'s need' if n > 1 else ' needs'} {n * merged['weight_bytes'] / 2**20:.{places}f} MiB of weights, one "
        f"engine with {n} adapter{'s' if n > 1 else ''} {size / 2**20:.{places}f} MiB (slots are set aside before any adapter is "
        f"loaded{doubt})."
        for n, (size, places, doubt) in held.items()
    ]


def _doubt(off: float) -> tuple[int, str]:
    """Decimals of MiB that bytes off by `off` bear, and what to say of it."""
    return (0, f"; the engine's log rounds to ±{off / 2**20:.0f} MiB an engine") if off else (1, "")
