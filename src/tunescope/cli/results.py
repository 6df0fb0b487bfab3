"""Verbs after a run: report, validate, export, clean."""

from pathlib import Path
from typing import Annotated

import typer

from tunescope.errors import PrerequisiteError
from tunescope.program import command

from .options import JsonOption, OnlyOption, SetOption, StudyArgument, app, print_json


@app.command()
def report(
    study: StudyArgument,
    overrides: SetOption = None,
    table: Annotated[str | None, typer.Option("--table", metavar="NAME", help="Only compute one table and print it as CSV.")] = None,
) -> None:
    """Compute statistics, figures and the report from whatever is finished."""
    from tunescope.run.reporting import build_report, one_table
    from tunescope.run.session import Session

    session = Session.open(study, overrides or ())
    states = session.states()
    if not any(s.finished for s in states.values()):
        raise PrerequisiteError(f"no finished step in {session.store.root}: run the study first (`{command('run', study)}`)")
    if table is not None:
        print(one_table(session.file, session.plan, session.store, states, table), end="")
        return
    print(f"report: {build_report(session.file, session.plan, session.store, states)}")


@app.command()
def validate(
    study: StudyArgument,
    overrides: SetOption = None,
    full_test: Annotated[
        bool, typer.Option("--full-test", help="Rerun every baseline and a run of each method, and train both at a new seed.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Recompute what can be recomputed and compare, in four tiers: inputs, the same machine, another machine, a new seed."""
    from tunescope.console import talk, tier_lines
    from tunescope.run.session import Session
    from tunescope.run.validate import TIERS
    from tunescope.run.validate import validate as check_all

    session = Session.open(study, overrides or ())
    checks = list(check_all(session, full=full_test, note=lambda text: talk.print(text, markup=False)))
    if as_json:
        print_json([check.__dict__ | {"supports": TIERS[check.tier]} for check in checks])
    else:
        print("\n".join(tier_lines(checks, TIERS)))
    if any(c.status == "FAIL" for c in checks):
        raise typer.Exit(1)


@app.command()
def merge(
    study: StudyArgument,
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="runs/<study> of other hosts, copied or mounted here.")],
    overrides: SetOption = None,
) -> None:
    """Bring finished steps of other hosts together; refuses plans, models or results that contradict each other, leaves out stale ones."""
    from tunescope.console import talk
    from tunescope.run.merge import merge as bring_together
    from tunescope.run.session import Session

    done = bring_together(Session.open(study, overrides or ()), folders, lambda text: talk.print(text, markup=False))
    stale = f", {len(done.stale)} stale results left out" if done.stale else ""
    print(f"{len(done.copied)} steps copied, {len(done.here)} were here already or are running{stale}")


@app.command()
def export(
    study: StudyArgument,
    out: Annotated[Path, typer.Argument(help="Folder to write to.")],
    merged: Annotated[bool, typer.Option("--merged", help="Also write adapters merged into the base model.")] = False,
    sweep: Annotated[bool, typer.Option("--sweep", help="Write the search as W&B sweep files instead, one per task and method.")] = False,
    only: OnlyOption = None,
    overrides: SetOption = None,
) -> None:
    """Write trained adapters and models as folders for transformers, PEFT and vLLM, or the search as W&B sweeps."""
    from tunescope.run.export import export_models, export_sweeps
    from tunescope.run.session import Session

    session = Session.open(study, overrides or ())
    sweeps = export_sweeps(session, out, study, overrides or (), only or ())
    for path in sweeps if sweep else export_models(session, out, only or (), merged=merged):
        print(path)


@app.command()
def clean(
    study: StudyArgument, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False, overrides: SetOption = None
) -> None:
    """Remove superseded results (attic) and checkpoints of finished steps."""
    from tunescope.console import talk
    from tunescope.run.session import Session

    session = Session.open(study, overrides or ())
    folders = [p for p in [session.store.attic(), *session.store.checkpoints()] if p.exists()]
    if not folders:
        talk.print("nothing to remove")
        return
    talk.print("\n".join(str(p) for p in folders), markup=False)
    if yes or typer.confirm(f"Remove these {len(folders)} folders?", err=True):
        print(f"removed {session.store.clean()} folders")
