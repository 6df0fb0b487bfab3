"""Figures of serving: overhead over the baseline arm, speed against batch size, latency against throughput."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from tunescope.analysis.findings import ServingRow
from tunescope.study.arms import arm_name, parse_arm

from .drawing import INK, Chart, Material, NoData, legend_below, mark_cut, panels, percent_axis, stay_near
from .wording import decimals, margin_percent, percent, percent_interval


def _rows(material: Material) -> list[ServingRow]:
    """Serving cells of the registered prompt length, greedy where there is a choice."""
    rows = material.findings.serving
    if not rows:
        raise NoData("no serving launch is finished yet")
    length = material.study.analysis.overhead_prompt_length
    rows = [r for r in rows if r.prompt_length == length] or [r for r in rows if r.prompt_length == rows[0].prompt_length]
    return [r for r in rows if r.sampling == "greedy"] or rows


def _arms(rows: Sequence[ServingRow], material: Material) -> list[str]:
    order = list(material.study.serving.arms) if material.study.serving else []
    return sorted({r.arm for r in rows}, key=lambda a: (order.index(a) if a in order else 99, a))


def overhead(material: Material) -> Chart:
    """Extra time per token of each arm over the baseline arm, by batch size, with the registered limit."""
    spec = material.study.analysis
    # Several merged engines are no overhead over one: they have a table of their own.
    rows = [r for r in _rows(material) if r.ratio_to_baseline is not None and r.arm != spec.overhead_baseline_arm]
    rows = [r for r in rows if parse_arm(r.arm).engines == 1]
    if not rows:
        raise NoData(f"no serving cell can be compared with the {spec.overhead_baseline_arm} arm")
    sizes, arms = sorted({r.batch_size for r in rows}), _arms(rows, material)
    figure, (ax,) = panels([""], height=3.2)
    place = {(r.arm, r.batch_size): sizes.index(r.batch_size) + (arms.index(r.arm) - (len(arms) - 1) / 2) * 0.7 / len(arms) for r in rows}
    for arm in arms:
        colour, marker, _ = material.arm_look(arm)
        mine = [r for r in rows if r.arm == arm]
        x, y, reach = [place[r.arm, r.batch_size] for r in mine], [*map(_extra, mine)], [*zip(*map(_reach, mine), strict=True)]
        ax.errorbar(x, y, yerr=reach, fmt=marker, color=colour, ms=5.5, lw=1.4, label=arm_name(arm))
    ax.axhline(0, color=INK, lw=0.8)
    ax.axhline(spec.overhead_limit, color=INK, ls=(0, (4, 2)), lw=1, label=f"limit {margin_percent(spec.overhead_limit)}")
    stay_near(ax, [*map(_extra, rows), 0.0, spec.overhead_limit], floor=-1.0)
    cut = [mark_cut(ax, place[r.arm, r.batch_size], _ends(r), material.arm_look(r.arm)[0]) for r in rows]
    ax.set_xticks(range(len(sizes)), [f"batch {b}" for b in sizes])
    ax.set_ylabel(f"time per token over {arm_name(spec.overhead_baseline_arm)}")
    percent_axis(ax)
    legend_below(figure, ax, 4)
    alt = "; ".join(f"{arm_name(r.arm)} batch {r.batch_size}: {percent(_extra(r), sign=True)} {_limits(r)}" for r in rows)
    caption = (
        f"Extra time per token over the {arm_name(spec.overhead_baseline_arm)} arm, prompts of {rows[0].prompt_length} tokens, "
        f"{rows[0].sampling}{_pairs(rows)}; dashed: the registered limit."
        f"{' Arrow: the interval goes on beyond the axis; the table of cells has its ends.' if any(cut) else ''}"
    )
    return Chart("overhead", "Serving overhead by arm and batch", caption, f"Overhead: {alt}.", _steps(rows), figure)


def _pairs(rows: Sequence[ServingRow]) -> str:
    """What the intervals rest on, and which arms have none."""
    shown = sorted({int(r.ratio_launches or 0) for r in rows if r.ratio_interval})
    bare = list(dict.fromkeys(arm_name(r.arm) for r in rows if not r.ratio_interval))
    if not shown:
        return "; one launch of both arms each, so no intervals"
    text = f", with intervals over {shown[0]}{f' to {shown[-1]}' if len(shown) > 1 else ''} launches of both arms"
    return text + (f"; one such launch, so no interval: {', '.join(bare)}" if bare else "")


def _extra(row: ServingRow) -> float:
    return float(row.ratio_to_baseline or 1) - 1


def _limits(row: ServingRow) -> str:
    return percent_interval(tuple(None if x is None else x - 1 for x in row.ratio_interval) if row.ratio_interval else None)


def _reach(row: ServingRow) -> tuple[float, float]:
    """Distances from the ratio to its interval's ends."""
    ratio = float(row.ratio_to_baseline or 1)
    low, high = (ratio if x is None else x for x in row.ratio_interval or (None, None))
    return max(ratio - low, 0.0), max(high - ratio, 0.0)


def _ends(row: ServingRow) -> tuple[float, float]:
    """The interval of the extra time."""
    below, above = _reach(row)
    return _extra(row) - below, _extra(row) + above


def scaling(material: Material) -> Chart:
    """Time per token, throughput and request latency against the batch size, a line per arm."""
    rows = _rows(material)
    arms = _arms(rows, material)
    figure, axes = panels(["Time per token (ms)", "Throughput (tokens per s)", "Latency p50 to p99 (ms)"], height=2.7)
    sizes = sorted({r.batch_size for r in rows})
    for k, arm in enumerate(arms):
        mine = sorted((r for r in rows if r.arm == arm), key=lambda r: r.batch_size)
        apart = 0.6 * (k - (len(arms) - 1) / 2) / len(arms)  # so that bars can be told
        _arm_lines(axes, mine, [sizes.index(r.batch_size) + apart for r in mine], material.arm_look(arm))
    for ax in axes:
        ax.set_xticks(range(len(sizes)), [str(b) for b in sizes])
        ax.set_xlabel("batch size")
        ax.set_ylim(bottom=0)
    legend_below(figure, axes, 4)
    alt = "; ".join(
        f"{arm_name(r.arm)} batch {r.batch_size}: {decimals(r.ms_per_token_median, 2)} ms, {decimals(r.tokens_per_s_median, 0)} tokens/s"
        for r in rows
    )
    bare = " (none for a single launch)" if any(r.ms_per_token_mad is None for r in rows) else ""
    caption = (
        f"Medians over launches, prompts of {rows[0].prompt_length} tokens, {rows[0].sampling}; bars of time per token: median absolute "
        f"deviation{bare}; bars of latency: p50 to p99 of requests."
    )
    return Chart("serving_scaling", "Serving speed against batch size", caption, f"{alt}.", _steps(rows), figure)


def latency_throughput(material: Material) -> Chart:
    """Request latency against throughput, a line per arm through its batch sizes."""
    rows = [r for r in _rows(material) if r.latency_p50_ms]
    if not rows:
        raise NoData("no serving cell has request latencies")
    figure, (ax,) = panels([""], height=3.4)
    numbered = _lowest(rows)
    for arm in _arms(rows, material):
        colour, marker, dash = material.arm_look(arm)
        mine = sorted((r for r in rows if r.arm == arm), key=lambda r: r.batch_size)
        x, y = [r.tokens_per_s_median for r in mine], [float(r.latency_p50_ms or 0) for r in mine]
        ax.plot(x, y, color=colour, marker=marker, ls=dash, ms=4, lw=1, label=arm_name(arm))
        for r, here in zip(mine, x, strict=True) if arm == numbered else ():
            below = min(float(other.latency_p50_ms or 0) for other in rows if other.batch_size == r.batch_size)
            ax.annotate(f"{r.batch_size}", (here, below), (0, -11), textcoords="offset points", ha="center", fontsize=7, color=colour)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(y=0.16)  # room for the numbers
    ax.grid(axis="both", which="major")
    for axis, (low, high) in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
        shown = "25" if high / low > 5 else "23456789"  # a short axis would hardly have a number
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axis.set_minor_formatter(FuncFormatter(lambda v, _, shown=shown: f"{v:,.0f}" if f"{v:.0e}"[0] in shown else ""))
        axis.set_tick_params(which="both", labelsize=7, length=3, pad=3.5)  # alike, or labels of the two stand at two heights
    ax.set_xlabel("throughput (output tokens per s)")
    ax.set_ylabel("request latency p50 (ms)")
    legend_below(figure, ax, 4)
    alt = "; ".join(
        f"{arm_name(r.arm)} batch {r.batch_size}: {decimals(r.tokens_per_s_median, 0)} tokens/s at {decimals(r.latency_p50_ms, 0)} ms"
        for r in rows
    )
    caption = (
        f"Medians over launches, prompts of {rows[0].prompt_length} tokens, {rows[0].sampling}, closed loop; numbers are batch sizes, each "
        f"below the point of {arm_name(numbered)}. Lower and further right is better."
    )
    return Chart("latency_throughput", "Latency against throughput", caption, f"{alt}.", _steps(rows), figure)


def _lowest(rows: Sequence[ServingRow]) -> str:
    """Of the arms with the most batch sizes, the one of lowest latencies: what stands under its line is least in the way of others."""
    latencies: dict[str, list[float]] = {}
    for r in rows:
        latencies.setdefault(r.arm, []).append(float(r.latency_p50_ms or 0))
    return min(latencies, key=lambda arm: (-len(latencies[arm]), sum(latencies[arm])))


def _arm_lines(axes: Sequence[Axes], rows: Sequence[ServingRow], sizes: Sequence[float], look: tuple[str, str, Any]) -> None:
    colour, marker, dash = look
    options: dict[str, Any] = {"color": colour, "marker": marker, "ls": dash, "ms": 4, "lw": 1, "label": arm_name(rows[0].arm)}
    axes[0].errorbar(sizes, [r.ms_per_token_median for r in rows], yerr=[r.ms_per_token_mad or 0.0 for r in rows], **options)
    axes[1].plot(sizes, [r.tokens_per_s_median for r in rows], **options)
    timed = [(s, r) for s, r in zip(sizes, rows, strict=True) if r.latency_p50_ms is not None]
    if timed:
        middle = [float(r.latency_p50_ms or 0) for _, r in timed]
        top = [max(0.0, float(r.latency_p99_ms or m) - m) for (_, r), m in zip(timed, middle, strict=True)]
        axes[2].errorbar([s for s, _ in timed], middle, yerr=[[0.0] * len(top), top], **options)


def _steps(rows: Sequence[ServingRow]) -> tuple[str, ...]:
    return tuple(sorted({s for row in rows for s in row.steps}))
