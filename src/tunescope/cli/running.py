"""Verbs of a run: run, search, status, show, and run-step, which executors call."""

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunescope.errors import PrerequisiteError, StepError
from tunescope.program import command, program

from .options import (
    DisplayOption,
    JsonOption,
    KindOption,
    MachineOption,
    MethodOption,
    Mode,
    OnlyOption,
    PhaseOption,
    SeedOption,
    SetOption,
    StudyArgument,
    TaskOption,
    app,
    print_json,
)

if TYPE_CHECKING:
    from tunescope.run.driver import Policy
    from tunescope.run.selection import Chosen
    from tunescope.run.session import Session
    from tunescope.run.state import States, StepState


@app.command()
def run(
    study: StudyArgument,
    kind: KindOption = None,
    only: OnlyOption = None,
    task: TaskOption = None,
    method: MethodOption = None,
    seed: SeedOption = None,
    phase: PhaseOption = None,
    machine: MachineOption = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Steps at once.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed steps again.")] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Start nothing new after a failure.")] = False,
    executor: Annotated[str | None, typer.Option(metavar="local|ray|slurm", help="Where steps run; default: the study's.")] = None,
    display: DisplayOption = "auto",
    overrides: SetOption = None,
) -> None:
    """Run the study, or the chosen steps and what they need; resumes by itself, and ends with the report."""
    from tunescope.console import talk
    from tunescope.run.driver import Policy
    from tunescope.run.selection import Selection, select
    from tunescope.run.session import Session

    selection = Selection(kind or (), only or (), task or (), method or (), seed or (), phase, machine)
    session = Session.open(study, [*(overrides or ()), *([f"execution.executor={executor}"] if executor else [])])
    chosen = select(session.plan, selection)
    execution = session.execution
    policy = Policy(execution.retries, execution.step_timeout_s, retry_failed, fail_fast, execution.retry_budget)
    states = _run_steps(session, chosen, policy, jobs, display)
    undone = [states[i] for i in states if i in chosen.named and states[i].status != "done"]
    for state in undone:
        talk.print(f"{state.status:<8}{state.step.id}  {_missing_reason(state, chosen, session)}", markup=False)
    _offline(session, chosen)
    if selection.reports:
        _report(session, states)
    if undone:
        raise typer.Exit(_exit_code(states, chosen))


@app.command()
def search(
    study: StudyArgument,
    task: Annotated[str, typer.Option("--task", help="The task.")],
    method: Annotated[str, typer.Option("--method", help="The method.")],
    learning_rate: Annotated[float, typer.Option("--learning_rate", "--learning-rate", help="A learning rate of the method's grid.")],
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch-size", help="A batch size of the task's grid.")],
    jobs: Annotated[int | None, typer.Option(min=1, help="Steps at once.")] = None,
    display: DisplayOption = "auto",
    overrides: SetOption = None,
) -> None:
    """Run one setting of the search, and what it needs: what an agent of an exported W&B sweep calls."""
    from tunescope.console import talk
    from tunescope.run.driver import Policy
    from tunescope.run.selection import Selection, select
    from tunescope.run.session import Session
    from tunescope.study.sweep import search_step

    session = Session.open(study, overrides or ())
    step = search_step(session.plan, task, method, learning_rate, batch_size)
    execution = session.execution
    policy = Policy(execution.retries, execution.step_timeout_s, retry_failed=True)
    chosen = select(session.plan, Selection(only=(step.id,)))
    states = _run_steps(session, chosen, policy, jobs, display)
    state = states[step.id]
    if state.finished is None or state.status != "done":
        talk.print(f"{state.status:<8}{step.id}  {state.why}", markup=False)
        raise typer.Exit(_exit_code(states, chosen))
    print(f"selection_loss: {state.finished.metric('selection_loss', 'selection'):.6g}")


def _run_steps(session: "Session", chosen: "Chosen", policy: "Policy", jobs: int | None, mode: Mode) -> "dict[str, StepState]":
    """Run what is to be run, with a display and a summary."""
    from tunescope.console import duration, open_display, talk
    from tunescope.status_text import counts

    session.prepare(chosen)
    started, before = time.monotonic(), session.states()
    executor = session.executor(jobs)
    screen = open_display(mode, chosen, before, executor.capacity)
    try:
        states = session.run(chosen, screen, policy, executor)
    finally:
        screen.close()
    if all(_finish_time(states[i]) == _finish_time(before[i]) is not None for i in chosen.run):
        talk.print(f"{len(chosen.run)} steps, all done before: nothing to run", markup=False)
    else:
        talk.print(f"{counts(states[i] for i in chosen.run)}  in {duration(time.monotonic() - started)}", markup=False)
    return states


def _exit_code(states: "States", chosen: "Chosen") -> int:
    """How a run that is not done ends: nothing failed, but something that must be there is missing; or else as with failed steps."""
    found = {states[i].status for i in chosen.needed}
    return PrerequisiteError.exit_code if "blocked" in found and "failed" not in found else StepError.exit_code


def _finish_time(state: "StepState") -> float | None:
    return state.finished.result["finished"] if state.finished else None


def _missing_reason(state: "StepState", chosen: "Chosen", session: "Session") -> str:
    """Why a step is not done; for needs that belong elsewhere, where they come from."""
    step = state.step
    foreign = sorted(i for i in (*step.needs, *step.selects_from) if i not in chosen.run and not session.store.result(i)[0])
    if not foreign:
        return state.why
    where = ", ".join(sorted({f"phase {session.plan[i].phase} on {session.plan[i].machine or 'any machine'}" for i in foreign}))
    folder = session.store.root / "steps"
    return f"{state.why}. {len(foreign)} needed results come from {where}: run that, or copy its folders to {folder}"


def _offline(session: "Session", chosen: "Chosen") -> None:
    """How to send what W&B keeps on disk. `wandb sync` puts the parts of a resumed run in order itself."""
    from tunescope.console import talk
    from tunescope.tracking_services import offline_runs

    waiting = sum(len(offline_runs(session.store.folder(i))) for i in chosen.run)
    if waiting:
        send = f"find {shlex.quote(str(session.store.root))} -type d -name 'offline-run-*' -exec {program('wandb')} sync {{}} +"
        talk.print(f"W&B: {waiting} offline runs are on disk; send them with\n  {send}", markup=False)


def _report(session: "Session", states: "dict[str, StepState]") -> None:
    """Build the report unless it is current; its path is the last line of stdout."""
    from tunescope.console import talk
    from tunescope.run.reporting import build_report, current_report

    path = current_report(session.file, session.store, states)
    if path is not None:
        talk.print("report is current: built from these very results", markup=False)
    else:
        talk.print("computing statistics and report", markup=False)
        path = build_report(session.file, session.plan, session.store, states)
    print(f"report: {path}")


@app.command()
def status(
    study: StudyArgument,
    overrides: SetOption = None,
    kind: KindOption = None,
    only: OnlyOption = None,
    task: TaskOption = None,
    phase: PhaseOption = None,
    machine: MachineOption = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until nothing is left to do.")] = False,
    all_flags: Annotated[bool, typer.Option("--flags", help="List every red flag with its step, not one line a kind of flag.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what is done, running, failed, blocked, stale (and why) or to do, what to do next; and the red flags by severity."""
    from tunescope.analysis.step_flags import finished_flags
    from tunescope.run.reporting import current_report
    from tunescope.run.selection import Selection, select
    from tunescope.run.session import Session
    from tunescope.status_text import StatusText, watch_status

    session = Session.open(study, overrides or ())
    chosen = select(session.plan, Selection(kind or (), only or (), task or (), (), (), phase, machine))

    def flags(states: "States") -> list[tuple[str, str]]:
        return finished_flags(session.file.study, {i: s.finished for i, s in states.items() if s.finished})

    def following(verb: str, *more: str) -> str:
        filters = [("--kind", kind), ("--only", only), ("--task", task), ("--phase", [phase]), ("--machine", [machine])]
        narrowed = [part for name, values in filters for value in values or () if value for part in (name, value)]
        sets = [part for item in overrides or () for part in ("--set", item)]
        return f"`{command(verb, study, *more, *(narrowed if verb in ('run', 'status') else []), *sets)}`"

    def report(states: "States") -> str | None:
        path = current_report(session.file, session.store, states)
        return str(path) if path else None

    text = StatusText(flags, following, report, all_flags)
    if watch and not as_json:
        watch_status(session.states, chosen.named, text)
        return
    states = session.states()
    if as_json:
        found = flags(states)
        rows = [_state_row(s, [flag for step, flag in found if step == i]) for i, s in states.items() if i in chosen.named]
        print_json({"study": session.file.study.name, "steps": rows})
        return
    print("\n".join(text.lines(states, chosen.named)))


def _state_row(state: "StepState", flags: list[str]) -> dict[str, Any]:
    result = state.finished.result if state.finished else {}
    return {
        "id": state.step.id, "status": state.status, "why": state.why, "changes": list(state.changes), "fingerprint": state.fingerprint,
        "digest": state.digest, "wall_s": result.get("wall_s"), "flags": flags,
    }  # fmt: skip


@app.command()
def show(
    study: StudyArgument,
    step: Annotated[str, typer.Argument(metavar="STEP", help="A step id, e.g. train/sst2/lora/final/seed-42.")],
    overrides: SetOption = None,
    lines: Annotated[int, typer.Option(help="Lines of the log to show.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """Show one step: state and why, inputs, numbers, log, and the command that runs it again."""
    from tunescope.console import tail
    from tunescope.run.details import detail_lines, details
    from tunescope.run.selection import step_named
    from tunescope.run.session import Session

    session = Session.open(study, overrides or ())
    found = details(session, step_named(session.plan, step).id, study, overrides or ())
    if as_json:
        print_json(found)
        return
    print("\n".join([*detail_lines(found), "log:", *(f"  {line}" for line in tail(found["log"], lines))]))


@app.command("run-step", hidden=True)
def run_step(folder: Path, driver: str | None = None) -> None:
    """Run one prepared step folder (executors call this)."""
    from tunescope.run.lease import Process
    from tunescope.run.worker import child_main, work

    if driver:
        child_main(folder, Process.parse(driver))
    raise typer.Exit(work(folder))
