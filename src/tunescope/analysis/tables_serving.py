"""Statistics tables on serving: twins, overhead, merged engines against adapters, memory, switching, open loop."""

from typing import Any

from tunescope.serve.arms import alternation
from tunescope.serve.overhead import common_cells, finished, overhead_ratio, tie_check

from .crossed import Interval
from .overhead import launch_rows, registered_cells
from .serving import open_loop_rows, switching_rows
from .tables import Material, Table, table

MIB = 2**20


def serving_tables(m: Material) -> dict[str, Table]:
    """All of them, in the order of reading."""
    found = m.serving
    return {
        "tie_check": tie_table(m), "overhead": overhead_table(m), "prefill_decoding": prefill_decoding_table(m),
        "overhead_scaling": scaling_table(m, found), "overhead_surface": surface_table(m, found),
        "merged_or_adapters": choice_table(m, found), "serving_memory": memory_table(m, found), "switching": switching_table(m),
        "open_loop": open_loop_table(m),
    }  # fmt: skip


def tie_table(m: Material) -> Table:
    """Arms of identical shape, which must tie."""
    found = tie_check(launch_rows(m.frames))
    rows = [(*pair["arms"], pair["launches"], pair["ratio"], *pair["interval"], _tie(pair)) for pair in found["pairs"]]
    note = f"Twins that do not tie void the overhead claim; {found['note']}."
    columns = ("arm", "against", "launches", "ratio", "99 % low", "99 % high", "tie")
    return table("Serving arms of identical shape", columns, rows, note, m.frames.of_kind("serve"))


def _tie(pair: dict[str, Any]) -> str:
    return "yes" if pair["shown"] else "not refuted, not shown" if pair["ties"] else "no"


def overhead_table(m: Material) -> Table:
    """Every arm against the registered baseline arm over the registered cells, and in batches of 1."""
    spec, launches, rows = m.study.analysis, launch_rows(m.frames), []
    adapters = {row["arm"]: len(row["adapters"]) for row in finished(launches)}
    for arm in adapters:
        for cells in (registered_cells(m.study), [(1, spec.overhead_prompt_length, "greedy")]):
            found = overhead_ratio(launches, arm, spec.overhead_baseline_arm, cells) if arm != spec.overhead_baseline_arm else None
            if found is not None:
                labels = "; ".join(text for c in cells if (text := alternation(adapters[arm], c[0])))
                sizes = ", ".join(str(c[0]) for c in cells)
                rows.append((arm, sizes, found.launches, found.ratio - 1, *_less_one(found.interval), labels))
    columns = ("arm", "batch sizes", "launches", "overhead", "90 % low", "90 % high", "note")
    note = f"Time per token over {spec.overhead_baseline_arm} less 1, prompts of {spec.overhead_prompt_length}, greedy."
    return table("Overhead by arm", columns, rows, note, m.frames.of_kind("serve"))


def _less_one(interval: Interval) -> Interval:
    low, high = interval
    return None if low is None else low - 1, None if high is None else high - 1


def prefill_decoding_table(m: Material) -> Table:
    """Where an arm's overhead lies: before the first token, or in each further one."""
    spec, launches, rows = m.study.analysis, launch_rows(m.frames), []
    baseline = spec.overhead_baseline_arm
    for arm in dict.fromkeys(row["arm"] for row in finished(launches)):
        for cell in common_cells(launches, [arm, baseline]) if arm != baseline else ():
            first = overhead_ratio(launches, arm, baseline, [cell], measure="ttft_ms")
            further = overhead_ratio(launches, arm, baseline, [cell], measure="tpot_ms")
            if first and cell[1:] == (spec.overhead_prompt_length, "greedy"):
                decoding = (further.ratio - 1, *_less_one(further.interval)) if further else (None, None, None)
                rows.append((arm, cell[0], first.launches, first.ratio - 1, *_less_one(first.interval), *decoding))
    columns = ("arm", "batch", "launches", "TTFT over", "TTFT low", "TTFT high", "TPOT over", "TPOT low", "TPOT high")
    note = (
        f"Over {baseline}, less 1, with 90 % limits over launches; prompts of {spec.overhead_prompt_length}, greedy, closed loop, "
        "medians of each launch's requests. TTFT: first token - queued, so the prefill; TPOT: (end to end - TTFT) / (tokens - 1), so "
        "decoding."
    )
    return table("Overhead of prefill and of decoding", columns, rows, note, m.frames.of_kind("serve"))


def scaling_table(m: Material, found: dict[str, Any]) -> Table:
    """Overhead against the number of adapters, and where merging becomes cheaper."""
    model, even = found.get("model"), found.get("break_even")
    rows: list[tuple[Any, ...]] = []
    if model:
        rows.append(("intercept", model["intercept"], *model["intercept_interval"]))
        rows.append(("slope per adapter", model["slope"], *model["slope_interval"]))
        rows.append(("slope per adapter (Theil-Sen)", model["theil_sen_slope"], *model["theil_sen_interval"]))
        rows.append(("lack of fit, p", model["lack_of_fit_p"], None, None))
    if even:
        rows.append((f"break-even at {100 * even['limit']:g} %, adapters ({even['status']})", even["adapters"], even["low"], even["high"]))
    where = f"Fitted on batches of {', '.join(map(str, sorted({c[0] for c in model['cells']})))}. {model['apart_text']}" if model else ""
    note = f"A line a launch, since overheads of one launch share its baseline; limits over launches. {where}" + (
        even["text"] if even else ""
    )
    return table(
        "Overhead against the number of adapters", ("what", "value", "90 % low", "90 % high"), rows, note, m.frames.of_kind("serve")
    )


def surface_table(m: Material, found: dict[str, Any]) -> Table:
    """Overhead in adapters and batch size together."""
    joint = found.get("surface")
    rows: list[tuple[Any, ...]] = []
    note = ""
    if joint:
        rows = [(name, term["value"], term["low"], term["high"]) for name, term in joint["terms"].items()]
        rows.append(("misfit, p", joint["misfit_p"], None, None))
        miss, points = joint["worst_miss"], joint["points"]
        note = (
            f"Overhead over {m.study.analysis.overhead_baseline_arm} = intercept + adapters + log2(batch), fitted to each of "
            f"{joint['launches']} launches at {len(points)} points ({min(n for n, _ in points)} to {max(n for n, _ in points)} adapters, "
            f"batches of {min(b for _, b in points)} to {max(b for _, b in points)} that hold them all), prompts of "
            f"{joint['prompt_length']}, {joint['sampling']}; t limits over launches. "
        )
        note += (
            f"Worst miss: {100 * miss['overhead']:+.1f} points, adapters {miss['adapters']}, batch {miss['batch_size']}; a small p says "
            "that this is not the shape, and then the measured cells are to be read instead."
            if miss
            else "As many points as terms: the fit meets them exactly, so nothing tells whether this is the shape."
        )
    columns = ("term", "overhead", "90 % low", "90 % high")
    return table("Overhead by adapters and batch", columns, rows, note, m.frames.of_kind("serve"))


def choice_table(m: Material, found: dict[str, Any]) -> Table:
    """K merged engines on one device against one engine with K adapters."""
    rows: list[tuple[Any, ...]] = []
    for choice in found.get("choices", []):
        for k, ratio, limits in zip(choice["counts"], choice["ratios"], choice["intervals"], strict=True):
            rows.append((choice["measure"], f"K = {k}", choice["launches"], ratio, *(limits or (None, None))))
        status = "break-even K" + (" (extrapolated)" if choice["extrapolated"] else "")
        rows.append((choice["measure"], status, choice["launches"], choice["at"], choice["low"], choice["high"]))
    note = (
        "One engine with K adapters over K merged engines that share the device and the batch; K = 1 is the merged arm. Time and weights: "
        "below 1 is better side by side; cache: above 1. Break-even: where a line of log ratios in log2 K meets 0, Fieller limits; empty "
        "when the slope's interval covers 0."
    )
    return table(
        "Merged engines or adapters side by side", ("measure", "where", "launches", "ratio", "90 % low", "90 % high"), rows, note,
        m.frames.of_kind("serve"),
    )  # fmt: skip


def memory_table(m: Material, found: dict[str, Any]) -> Table:
    """What each arm's engine holds, and what a slot adds."""
    rows = [
        (
            line["arm"], line["adapters"], line["max_loras"], line["launches"], line["weights_and_slots"] / MIB,
            line["rounding"] / MIB or None, None if line["bytes_per_slot"] is None else line["bytes_per_slot"] / MIB,
            *(None if x is None else x / MIB for x in line["slot_range"] or (None, None)), line["cache_tokens"], line["cache_share"],
        )
        for line in found.get("memory", [])
    ]  # fmt: skip
    note = (
        "Weights with preallocated adapter slots, as the engine reports them; per slot: bytes of the slots over max_loras; of "
        "launches that read a log, what the engine holds more than the base. Cache: tokens of key-value cache left; empty on a CPU, "
        "where its size is fixed beforehand."
    )
    if any(line["rounding"] for line in found.get("memory", [])):
        note += " ±: the engine's log gives hundredths of a GiB, so a slot is known as a range; slots of one rank are of one size."
    columns = (
        "arm", "adapters", "max_loras", "launches", "weights and slots (MiB)", "± (MiB)", "per slot (MiB)", "per slot from (MiB)",
        "per slot to (MiB)", "cache tokens", "cache / base",
    )  # fmt: skip
    return table("Serving memory", columns, rows, note, m.frames.of_kind("serve"))


_SWITCHING = {
    "tier": "tier", "adapters": "adapters", "switch_every": "requests between switches", "launches": "launches",
    "ms_per_request": "ms a request", "added_ms": "added (ms)", "added_mad": "MAD (ms)", "gb_per_s": "GB/s", "load_ms": "load (ms)",
    "unload_ms": "unload (ms)",
}  # fmt: skip
_OPEN_LOOP = {
    "arm": "arm", "request_rate": "requests/s asked", "launches": "launches", "requests": "requests", "completed": "completed",
    "requests_per_s": "requests/s served", "ttft_p50_ms": "TTFT p50 (ms)", "ttft_p99_ms": "TTFT p99 (ms)", "tpot_p50_ms": "TPOT p50 (ms)",
    "itl_p50_ms": "ITL p50 (ms)", "itl_p99_ms": "ITL p99 (ms)", "e2el_p50_ms": "e2el p50 (ms)", "e2el_p95_ms": "e2el p95 (ms)",
    "e2el_p99_ms": "e2el p99 (ms)",
}  # fmt: skip
"""Keys of a row -> its columns' headings."""


def switching_table(m: Material) -> Table:
    """What a switch of adapters costs, by tier and by how often one happens."""
    rows = [[row[name] for name in _SWITCHING] for row in switching_rows(launch_rows(m.frames))]
    note = (
        "Requests one at a time; medians over launches. Added: time of a request that switches, over staying on one adapter. Resident: in "
        "a slot; cpu cache: in memory, copied to a slot; disk: read again. GB/s: bytes of one adapter over the added time, empty where "
        "a launch found nothing added. Loading and unloading are explicit calls."
    )
    return table("Switching adapters", [*_SWITCHING.values()], rows, note, m.frames.of_kind("serve"))


def open_loop_table(m: Material) -> Table:
    """Tails under Poisson arrivals."""
    rows = [[row[name] for name in _OPEN_LOOP] for row in open_loop_rows(m.frames)]
    note = (
        "A real server under Poisson arrivals, measured by vLLM's bench client; medians over launches of each launch's percentile, "
        "requests summed. TTFT: first token - sent; TPOT: (end to end - TTFT) / (tokens - 1); ITL: gap between tokens; e2el: last token "
        "- sent."
    )
    return table("Open loop", [*_OPEN_LOOP.values()], rows, note, m.frames.of_kind("serve"))
