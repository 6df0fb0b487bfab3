"""Tables and figures of what bench_serving.py has measured so far, as a folder to publish; runs where no GPU is.

    python benchmarks/serving_results.py runs/bench_serving/out --to docs/results/serving-h100
    python benchmarks/serving_results.py first/out second/out --to docs/results/serving-h100

Reads launches.jsonl, open_loop.jsonl, correctness.json and asked.json of the benchmark's folder. Writes the finished launches, every cell
as CSV, the figures, and README.md with the command, the machine and the tables. Nothing is measured here: repeat it after more launches.
Several folders are sessions of one benchmark, on several GPUs of one kind: their launches are numbered on, so that launches are paired
within a session. Sessions of another model, grid or set-up, and launches given twice, are refused. A published folder can be given again
beside new sessions.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from tunescope.analysis.findings import Findings
from tunescope.analysis.frames import Frames, collect
from tunescope.analysis.overhead import launch_rows, registered_cells
from tunescope.analysis.serving import overhead_summary, serving_rows
from tunescope.analysis.tables import Material as Tabled
from tunescope.analysis.tables_serving import serving_tables
from tunescope.report.drawing import Material, NoData, save, style
from tunescope.report.figures import FIGURES
from tunescope.report.tables import serving_table
from tunescope.report.tables_statistics import statistics_tables
from tunescope.report.tabular import Table
from tunescope.serve.machine import busy, loop_times
from tunescope.serve.overhead import Ratio, cell_table, graph_tokens, overhead_ratio
from tunescope.serve.session import read_rows
from tunescope.study.arms import SAME_SHAPE, parse_arm
from tunescope.study.load import load_study
from tunescope.study.schema import ModelSpec, ServingSpec, Study

DRAWN = ("overhead", "overhead_adapters", "serving_scaling", "latency_throughput", "serving_memory", "switching")
STEP = "serve"
_NO_GRID = ("arms", "launches", "launch_timeout_s", "open_loop")
"""Settings that may differ between sessions of one benchmark; open loops are compared where a session has one."""


def study_of(asked: dict[str, Any]) -> Study:
    """The registered analysis of the plan around the benchmark's own grid."""
    plan = load_study("lora_vs_full").study
    spec = ServingSpec.model_validate(asked["serving"])
    return plan.model_copy(update={"serving": spec, "model": ModelSpec(name=asked["model"])})


def frames_of(out: Path, study: Study, scratch: Path) -> Frames:
    """The launches as the frames of a store with one serve step."""
    folder = scratch / "steps" / STEP
    folder.mkdir(parents=True)
    for name in ("launches.jsonl", "open_loop.jsonl"):
        good = [row for row in read_rows(out / name) if row["ok"]]
        if good or name == "launches.jsonl":
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in good))
    if (out / "correctness.json").is_file():
        (folder / "correctness.json").write_text((out / "correctness.json").read_text())
    rows = read_rows(folder / "launches.jsonl")
    checked = json.loads((folder / "correctness.json").read_text())["ok"] if (folder / "correctness.json").is_file() else None
    outputs = {"correct": checked, "cpu_figures": any(r["device"] == "cpu" for r in rows), "eager": any(r["enforce_eager"] for r in rows)}
    (folder / "step.json").write_text(json.dumps({"id": STEP, "inputs": {"kind": "serve"}}))
    (folder / "result.json").write_text(json.dumps({"outputs": outputs, "metrics": [], "resources": [], "notes": []}))
    return collect(scratch, study, [SimpleNamespace(id=STEP)])


def joined(outs: list[Path], scratch: Path) -> Path:
    """One folder of all sessions: launch numbers of each go on after those of the one before.

    Raises:
        ValueError: sessions asked for another model or grid, an arm was not set up alike (weights, engine, kind of GPU), or the same launch
            was given twice, which would count as two samples.
    """
    asked = [json.loads((out / "asked.json").read_text()) for out in outs]
    _refuse_other_grids(outs, asked)
    arms = sorted({arm for each in asked for arm in each["serving"]["arms"]}, key=_place)
    grid = {**asked[0]["serving"], "arms": arms, "launches": sum(each["serving"]["launches"] for each in asked)}
    grid["open_loop"] = _open_loop(asked)
    folder = scratch / "joined"
    folder.mkdir()
    for name in ("launches.jsonl", "open_loop.jsonl"):
        rows = _numbered_on([out / name for out in outs])
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    offsets = _offsets([out / "launches.jsonl" for out in outs])
    firsts = [offset + first for offset, each in zip(offsets, asked, strict=True) for first in each.get("first_launches", [0])]
    commands = "\n".join(each["command"] for each in asked)
    said = {"command": commands, "model": asked[0]["model"], "serving": grid, "first_launches": firsts}
    (folder / "asked.json").write_text(json.dumps(said))
    checked = [json.loads(path.read_text()) for out in outs if (path := out / "correctness.json").is_file()]
    if checked:
        shown = next((each for each in checked if not each["ok"]), checked[0])  # one session that serves something else spoils all
        (folder / "correctness.json").write_text(json.dumps(shown, indent=1))
    return folder


def _place(name: str) -> tuple[Any, ...]:
    """Where an arm stands in tables and figures, whatever session was first: models without adapters, then by number of adapters."""
    arm = parse_arm(name)
    return arm.switches, arm.engines, arm.lora, arm.adapters, SAME_SHAPE.index(arm.model), arm.slots, arm.narrow


def _refuse_other_grids(outs: list[Path], asked: list[dict[str, Any]]) -> None:
    grids = [{"model": each["model"], **{k: v for k, v in each["serving"].items() if k not in _NO_GRID}} for each in asked]
    opened = next((each["serving"]["open_loop"] for each in asked if each["serving"].get("open_loop")), None)
    for out, grid, each in zip(outs, grids, asked, strict=True):
        other = [key for key in grids[0] if grid.get(key) != grids[0][key]]
        own = each["serving"].get("open_loop")
        other += [f"open_loop.{key}" for key in own or () if key not in _NO_GRID and own[key] != opened[key]]
        if other:
            raise ValueError(f"{out / 'asked.json'}: another {', '.join(other)} than in {outs[0]}, so they are not one benchmark")


def _open_loop(asked: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The open loop of the sessions that have one: their arms and launches together."""
    opened = [each["serving"]["open_loop"] for each in asked if each["serving"].get("open_loop")]
    if not opened:
        return None
    arms = sorted({arm for each in opened for arm in each["arms"]}, key=_place)
    return {**opened[0], "arms": arms, "launches": sum(each["launches"] for each in opened)}


def _offsets(files: list[Path]) -> list[int]:
    """What is added to the launch numbers of each session."""
    found = [0]
    for file in files:
        found.append(found[-1] + max((row["launch"] + 1 for row in read_rows(file) if row["ok"]), default=0))
    return found[:-1]


def _numbered_on(files: list[Path]) -> list[dict[str, Any]]:
    """The good launches of all sessions, those of each numbered on after the one before."""
    alike: dict[str, str] = {}
    rows: list[dict[str, Any]] = []
    for file, offset in zip(files, _offsets(files), strict=True):
        before = [{**row, "launch": None} for row in rows]
        for row in (row for row in read_rows(file) if row["ok"]):
            if alike.setdefault(row["arm"], row["digest"]) != row["digest"]:
                raise ValueError(f"{file}: arm '{row['arm']}' was not set up as in the sessions before, so they are not one benchmark")
            if {**row, "launch": None} in before:
                raise ValueError(f"{file}: launch {row['launch']} of '{row['arm']}' is in a folder before too; give each session once")
            rows.append(row | {"launch": row["launch"] + offset})
    return rows


def publish(outs: list[Path], to: Path) -> None:
    """Write the folder."""
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        out = joined(outs, Path(scratch))
        asked = json.loads((out / "asked.json").read_text())
        study = study_of(asked)
        frames = frames_of(out, study, Path(scratch))
        for name in ("launches.jsonl", "open_loop.jsonl", "correctness.json", "asked.json"):
            if (out / name).is_file() and (out / name).stat().st_size:
                shutil.copy(out / name, to / name)
    findings = Findings.model_construct(serving=serving_rows(frames, study))
    figures = draw(Material(findings, frames, study), to)
    said = overhead_summary(frames, study)
    tables = [serving_table(findings.serving), *statistics_tables(serving_tables(Tabled(frames, study, [], [], [], (), said)))]
    tables[0].data.to_csv(to / "cells.csv", index=False)
    (to / "README.md").write_text(page(asked, frames, study, said.get("recommendations", []), figures, tables))


def draw(material: Material, to: Path) -> list[str]:
    """Markdown of every figure that has data."""
    found = []
    with style():
        for name in DRAWN:
            try:
                chart = save(FIGURES[name](material), to)
            except NoData as reason:
                found.append(f"*{name} is not drawn: {reason}.*")
                continue
            (to / f"{name}.pdf").unlink(missing_ok=True)
            found.append(f"## {chart.title}\n\n![{chart.title}]({name}.png)\n\n{chart.caption}")
    return found


def page(asked: dict[str, Any], frames: Frames, study: Study, advice: list[str], figures: list[str], tables: list[Table]) -> str:
    """README.md of the folder."""
    rows = launch_rows(frames)
    per_arm = {arm: sum(r["arm"] == arm for r in rows) for arm in dict.fromkeys(r["arm"] for r in rows)}
    wanted = study.analysis.min_launches
    short = {arm: per_arm.get(arm, 0) for arm in asked["serving"]["arms"] if per_arm.get(arm, 0) < wanted}
    said = [f"# Serving benchmark: {asked['model']}", f"```bash\n{asked['command']}\n```", machine(rows)]
    said.append(f"{sum(per_arm.values())} launches of {len(per_arm)} arms; one launch is one sample.")
    said += [f"**Fewer launches than the {wanted} registered:** {', '.join(f'{a} {n}' for a, n in short.items())}."] if short else []
    if any(frames.outputs(step).get("correct") is False for step in frames.of_kind("serve")):
        said.append("**Served outputs differ from their references (correctness.json): do not use these figures unexplained.**")
    said += ["## What it says", *(f"- {line}" for line in advice)]
    if len(asked["first_launches"]) > 1:
        said += [by_session(rows, asked["first_launches"], study.analysis.overhead_baseline_arm), within_sessions(rows, asked, study)]
    said += [text] if (text := against_each_other(rows, study)) else []
    return "\n\n".join([*said, *figures, *(markdown(t) for t in tables)]).replace("\n\n- ", "\n- ") + "\n"


def by_session(rows: list[dict[str, Any]], first_launches: list[int], baseline: str) -> str:
    """Markdown of the baseline's time per token in every session: intervals cover launches, and not what differs between sessions."""
    batches = sorted({cell["batch_size"] for row in rows for cell in row["cells"]})
    lines = ["| Launches | Arms | Prompt | Sampling |" + "".join(f" batch {b} |" for b in batches), "|---" * (4 + len(batches)) + "|"]
    for numbers, own in sessions(rows, first_launches):
        arms = ", ".join(dict.fromkeys(row["arm"] for row in own))
        cells = cell_table([row for row in own if row["arm"] == baseline])
        wide = cells.pivot_table(index=["prompt_length", "sampling"], columns="batch_size", values="ms_per_token_median")
        for (prompt, sampling), times in wide.reindex(columns=batches).iterrows():
            values = "".join(f" {ms:.2f} |" if pd.notna(ms) else " – |" for ms in times)
            lines.append(f"| {numbers} | {arms} | {prompt} | {sampling} |{values}")
    note = f"Medians over launches of the milliseconds a token of {baseline}. The intervals of this page cover launches, not what differs "
    note += "between sessions: compare arms of different sessions only as far as these rows agree."
    return "\n\n".join(["## The baseline in each session", "\n".join(lines), note])


def sessions(rows: list[dict[str, Any]], first_launches: list[int]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The numbers of each session's launches, in words, and their rows."""
    for first, after in zip(first_launches, [*first_launches[1:], max(row["launch"] for row in rows) + 1], strict=True):
        yield f"{first} to {after - 1}" if after - first > 1 else f"{first}", [r for r in rows if first <= r["launch"] < after]


def within_sessions(rows: list[dict[str, Any]], asked: dict[str, Any], study: Study) -> str:
    """Markdown of what each session alone says of its arms over the baseline, over the registered cells."""
    baseline, cells = study.analysis.overhead_baseline_arm, registered_cells(study)
    lines = ["| Launches | Arm | Over baseline | 90 % limits | Pairs |", "|---|---|---|---|---|"]
    for numbers, own in sessions(rows, asked["first_launches"]):
        for arm in dict.fromkeys(row["arm"] for row in own if row["arm"] != baseline):
            if found := overhead_ratio(own, arm, baseline, cells):
                lines.append(f"| {numbers} | {arm} |{_shown(found)}")
    note = f"{_said(study)} Few pairs give wide limits; they are free of what differs between sessions."
    return "\n\n".join(["## What each session says alone", "\n".join(lines), note])


def against_each_other(rows: list[dict[str, Any]], study: Study) -> str:
    """Markdown of the arms that serve adapters against one another, over the registered cells; "" where no two share two launches."""
    arms = sorted({row["arm"] for row in rows if row["adapters"] and row["cells"]}, key=_place)
    lines = []
    for arm, other in ((arm, other) for i, other in enumerate(arms) for arm in arms[i + 1 :]):
        found = overhead_ratio(rows, arm, other, registered_cells(study))
        if found and found.launches > 1:
            lines.append(f"| {arm} | {other} |{_shown(found)}")
    head = ["| Arm | Against | Difference | 90 % limits | Pairs |", "|---|---|---|---|---|"]
    title = "## Arms with adapters against each other"
    return "\n\n".join([title, "\n".join([*head, *lines]), _said(study)]) if lines else ""


def _said(study: Study) -> str:
    sizes = ", ".join(str(cell[0]) for cell in registered_cells(study))
    return (
        f"Time per token over the other arm's less 1, batches of {sizes}, prompts of {study.analysis.overhead_prompt_length}, greedy. "
        "Pairs: launches of one number that both arms have, which are of one session."
    )


def _shown(found: Ratio) -> str:
    """The cells of a ratio in a table."""
    limits = f"[{found.low - 1:+.1%}, {found.high - 1:+.1%}]" if found.low is not None and found.high is not None else "–"
    return f" {found.ratio - 1:+.1%} | {limits} | {found.launches} |"


def machine(rows: list[dict[str, Any]]) -> str:
    """Device, versions, settings and clocks that the launches recorded."""
    first = rows[0]
    gpus = sorted({line.split(",")[0] for r in rows for line in r["machine"]["before"].get("gpu", [])}) or ["CPU"]
    versions = ", ".join(f"{k} {v}" for k, v in first["versions"].items())
    clocks = sorted({line.split(",")[2].strip() for r in rows for line in r["machine"]["after"].get("gpu", [])})
    reach = graph_tokens(first)
    graphs = f"graphs of up to {reach} tokens a step" if reach else "eager" if first["enforce_eager"] else "compiled"
    text = f"{', '.join(gpus)}; {versions}; {first['dtype']}, {graphs}, max_num_seqs "
    text += f"{first['max_num_seqs']}, max_model_len {first['max_model_len']}"
    text += f", gpu_memory_utilization {first['gpu_memory_utilization']}." if first["gpu_memory_utilization"] else "."
    before, after = ([r["machine"][when]["load_average_1min"] for r in rows] for when in ("before", "after"))
    text += f" Load of the host before a launch: {min(before):.1f} to {max(before):.1f}, after it {min(after):.1f} to {max(after):.1f}."
    text += f" {said}." if (said := busy(rows)) else ""
    if times := loop_times(rows):
        text += f" A Python loop on one core, before and after {len(times) // 2} of the launches: {min(times):.1f} to {max(times):.1f} ms."
    return text + (f" SM clock after a launch: {clocks[0]} to {clocks[-1]}." if clocks else " CPU figures say nothing about a GPU.")


def markdown(table: Table) -> str:
    """A table with its note; columns of dashes are left out by the table itself."""
    head = f"| {' | '.join(table.columns)} |\n|{'---|' * len(table.columns)}"
    body = "\n".join(f"| {' | '.join(c.replace('|', '/') for c in row.cells)} |" for row in table.rows)
    return f"## {table.title}\n\n{head}\n{body}\n\n{table.note}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("outs", type=Path, nargs="+", metavar="out", help="the benchmark's --out folder, or those of several sessions")
    parser.add_argument("--to", type=Path, required=True, help="the folder to publish, e.g. docs/results/serving-h100")
    args = parser.parse_args()
    for out in args.outs:
        if not (out / "asked.json").is_file() or not any(r["ok"] for r in read_rows(out / "launches.jsonl")):
            parser.error(f"{out} holds no asked.json with a finished launch in launches.jsonl: give the --out folder of bench_serving.py")
    try:
        publish(args.outs, args.to)
    except ValueError as error:
        parser.error(str(error))
    print(f"{args.to / 'README.md'}")


if __name__ == "__main__":
    main()
