"""Figures of serving many adapters: overhead against their number, memory, and the cost of switching."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from tunescope.analysis.overhead import launch_rows
from tunescope.analysis.overhead_scaling import BreakEven, OverheadModel, break_even, overhead_model
from tunescope.analysis.serving import switching_rows
from tunescope.analysis.serving_memory import memory_table
from tunescope.study.arms import Arm, arm_name, parse_arm

from .drawing import INK, MUTED, Chart, Material, NoData, legend_below, looks, panels, percent_axis, stay_near
from .wording import decimals, margin_percent, percent

MIB = 2**20


def overhead_adapters(material: Material) -> Chart:
    """Overhead of each launch against the number of adapters, the fitted line with its band, and the break-even."""
    spec = material.study.analysis
    model = overhead_model(launch_rows(material.frames), spec.overhead_baseline_arm)
    if model is None:
        raise NoData("a line against adapters needs two arms of adapters_1, adapters_2, …, and two launches of both")
    even = break_even(model, spec.overhead_limit)
    figure, (ax,) = panels([""], height=3.2)
    band = _line(ax, model)
    _launches(ax, model, material)
    ax.axhline(0, color=INK, lw=0.8)
    ax.axhline(spec.overhead_limit, color=INK, ls=(0, (4, 2)), lw=1, label=f"limit {margin_percent(spec.overhead_limit)}")
    stay_near(ax, [*(y for _, y in model.points), 0.0, spec.overhead_limit], floor=-1.0)
    _mark(ax, model, even)
    ax.set_xlabel("adapters side by side")
    ax.set_ylabel(f"time per token over {arm_name(spec.overhead_baseline_arm)}")
    ax.set_xticks(sorted({n for n, _ in model.points}))
    percent_axis(ax)
    legend_below(figure, ax, 4)
    batches = ", ".join(map(str, sorted({c[0] for c in model.cells})))
    caption = (
        f"One point a launch, mean over batches of {batches}, those of one number of adapters drawn side by side; line: mean of the "
        f"launches' own least-squares lines with its pointwise {model.level:.0%} band (t over launches){_beyond(ax, band)}. "
        f"{model.apart_text()}{even.text}"
    )
    alt = (
        f"Overhead = {percent(model.intercept)} + {percent(model.slope)} an adapter ({percent(model.slope_interval[0])} to "
        f"{percent(model.slope_interval[1])}), {model.fitted_range[0]} to {model.fitted_range[1]} adapters. {even.text}"
    )
    steps = tuple(material.frames.of_kind("serve"))
    return Chart("overhead_adapters", "Overhead against the number of adapters", caption, alt, steps, figure)


def _launches(ax: Axes, model: OverheadModel, material: Material) -> None:
    """A point a launch; those of one arm side by side, in a fixed order, so that they can be told."""
    fewest, most = model.fitted_range
    for n in sorted({n for n, _ in model.points}):
        colour, marker, _ = material.arm_look(f"adapters_{n}")
        mine = [y for k, y in model.points if k == n]
        aside = np.linspace(-0.02, 0.02, len(mine)) * (most - fewest)
        ax.plot(n + aside, mine, marker, color=colour, ms=4.5, alpha=0.8, mew=0, label=f"{arm_name(f'adapters_{n}')}, a launch")


def _line(ax: Axes, model: OverheadModel) -> tuple[float, float]:
    """The fitted line with its band, in no arm's colour; returns the band's ends."""
    from scipy import stats

    x = np.linspace(*model.fitted_range, 50)
    y, v = model.intercept + model.slope * x, np.array(model.covariance)
    half = float(stats.t.ppf((1 + model.level) / 2, model.df)) * np.sqrt(np.maximum(v[0, 0] + 2 * x * v[0, 1] + x**2 * v[1, 1], 0))
    ax.plot(x, y, color=MUTED, lw=1.6, label="fitted line")
    ax.fill_between(x, y - half, y + half, color=MUTED, alpha=0.18, lw=0, label=f"{percent(model.level, 0)} band")
    return float(min(y - half)), float(max(y + half))


def _beyond(ax: Axes, band: tuple[float, float]) -> str:
    """That the axis cuts the band, with its ends."""
    low, high = ax.get_ylim()
    return "" if low <= band[0] and band[1] <= high else f", which goes on beyond the axis, to {percent(band[0])} and {percent(band[1])}"


def _mark(ax: Axes, model: OverheadModel, even: BreakEven) -> None:
    """The break-even, where it lies within what was measured."""
    if even.status != "bounded" or even.adapters is None or even.high is None:
        return
    fewest, most = model.fitted_range
    low, high = fewest if even.low is None else even.low, min(even.high, most)
    reach = [[even.adapters - low], [high - even.adapters]]
    ax.errorbar([even.adapters], [even.limit], xerr=reach, fmt="D", color=INK, ms=5, label="break-even")


def memory(material: Material) -> Chart:
    """Weights with slots, what slots add, and cache, against the number of adapters (or merged engines) served."""
    lines = memory_table(launch_rows(material.frames))
    if not any(line["max_loras"] for line in lines):
        raise NoData("no launch with adapters has said what its engine holds")
    shown = [(title, key, unit) for title, key, unit in _HELD if any(line[key] is not None for line in lines)]
    figure, axes = panels([title for title, _, _ in shown], height=2.9)
    for ax, (_, key, unit) in zip(axes, shown, strict=True):
        _held(ax, lines, key, unit, material)
    legend_below(figure, axes, 4)
    each = "; ".join(f"{arm_name(x['arm'])} {size} MiB" for x in lines if (size := _slot(x)))
    off = max(x["rounding"] for x in lines) / MIB
    alt = "; ".join(f"{arm_name(x['arm'])} {decimals(x['weights_and_slots'] / MIB, 0 if off else 1)} MiB" for x in lines)
    rounded = f"; the engine's log rounds to ±{off:.0f} MiB" if off else ""
    slots = "; ".join(f"{arm_name(x['arm'])}: {x['max_loras']}" for x in lines if x["max_loras"])
    cached = any(key == "cache_tokens" for _, key, _ in shown)
    caption = (
        f"Medians over launches, as the engine reports them{rounded}. Slots are set aside before any adapter is loaded, and take their "
        f"memory unused too (slots held by {slots}). {'' if cached else 'A CPU has a cache of fixed size, not compared. '}"
        f"Each slot: {each}."
    )
    return Chart(
        "serving_memory",
        "Memory by number of adapters or merged engines",
        caption,
        f"{alt}.",
        tuple(material.frames.of_kind("serve")),
        figure,
    )


def _slot(line: dict[str, Any]) -> str:
    """MiB of one slot, as a range where a log rounded them; "" without slots."""
    if line["slot_range"]:
        return " to ".join(decimals(x / MIB, 1) for x in line["slot_range"])
    return "" if line["bytes_per_slot"] is None else decimals(line["bytes_per_slot"] / MIB, 2)


_HELD = (
    ("Weights and slots (MiB)", "weights_and_slots", MIB),
    ("Each slot (MiB)", "bytes_per_slot", MIB),
    ("Cache left (k tokens)", "cache_tokens", 1e3),
)


def _held(ax: Axes, lines: Sequence[dict[str, Any]], key: str, unit: float, material: Material) -> None:
    """One panel: a quantity of each arm against what it serves; a line joins arms that differ in that number alone."""
    known = [(arm, line[key] / unit) for line in lines if not (arm := parse_arm(line["arm"])).switches and line[key] is not None]
    ticks = sorted({_served(parse_arm(line["arm"])) for line in lines})
    places = {arm: ticks.index(n) + aside for n in ticks for arm, aside in _side_by_side([arm for arm, _ in known if _served(arm) == n])}
    for alike in (lambda a: a.model == "merged", lambda a: a.side_by_side, lambda a: a.narrow and a.adapters == a.slots):
        joined = sorted((places[arm], y) for arm, y in known if alike(arm))
        ax.plot([x for x, _ in joined], [y for _, y in joined], color=MUTED, lw=1, zorder=1)
    for arm, y in known:
        colour, marker, _ = material.arm_look(arm.name)
        ax.plot(places[arm], y, marker, color=colour, ms=5.5, ls="", label=arm.words)
    ax.set_xlabel("adapters or engines served")
    ax.set_xticks(range(len(ticks)), [str(t) for t in ticks])
    ax.set_xlim(-0.4, len(ticks) - 0.6)
    ax.set_ylim(0, 1.1 * max(line[key] / unit for line in lines if line[key] is not None) or 1)


def _side_by_side(arms: Sequence[Arm]) -> list[tuple[Arm, float]]:
    """Each arm with its distance from the tick they share."""
    return [(arm, 0.14 * (k - (len(arms) - 1) / 2)) for k, arm in enumerate(arms)]


def _served(arm: Arm) -> int:
    """Merged engines, or adapters in use; an engine of the base, and one with nothing but empty slots, serve none."""
    return arm.engines if arm.model == "merged" else arm.adapters


def switching(material: Material) -> Chart:
    """Mean time of a request against the number of requests between switches, a line per tier."""
    rows = switching_rows(launch_rows(material.frames))
    if not rows:
        raise NoData("no switching launch is finished yet (arm `switching`)")
    figure, (ax,) = panels([""], height=3)
    colour, _, _ = material.arm_look("switching")
    for k, tier in enumerate(dict.fromkeys(r["tier"] for r in rows)):
        _, marker, dash = looks(k)
        mine = sorted((r for r in rows if r["tier"] == tier), key=lambda r: r["switch_every"])
        if tier == "one adapter":
            ax.axhline(mine[0]["ms_per_request"], color=MUTED, lw=1, ls=(0, (4, 2)), label="one adapter, no switch")
            continue
        label = f"{tier} ({mine[0]['adapters']} adapters)"
        x, y = [r["switch_every"] * 1.03 ** (k - 2) for r in mine], [r["ms_per_request"] for r in mine]  # bars side by side
        ax.errorbar(x, y, yerr=[r["ms_mad"] or 0 for r in mine], color=colour, marker=marker, ls=dash, ms=5, lw=1.2, capsize=2, label=label)
    every = sorted({r["switch_every"] for r in rows})
    ax.set_xscale("log", base=2)
    ax.set_xticks(every, [str(e) for e in every])
    ax.minorticks_off()
    ax.set_ylim(0, 1.08 * max(r["ms_per_request"] + (r["ms_mad"] or 0) for r in rows))
    ax.set_xlabel("requests between two switches")
    ax.set_ylabel("mean time of a request (ms)")
    legend_below(figure, ax, 4)
    said = [
        f"{r['tier']}, every {r['switch_every']}: {decimals(r['added_ms'], 2)} ms added to a switching request"
        for r in rows
        if r["tier"] != "one adapter"
    ]
    caption = (
        "Requests one at a time, 8 output tokens; medians over launches, bars: median absolute deviation. Resident: the adapter is in a "
        "slot; cpu cache: copied from memory at every switch; disk: read again at every switch."
    )
    return Chart("switching", "Cost of switching adapters", caption, f"{'; '.join(said)}.", tuple(material.frames.of_kind("serve")), figure)
