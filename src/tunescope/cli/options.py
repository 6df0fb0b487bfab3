"""Arguments and options that several verbs share, and the one way results are printed as JSON."""

import json
from typing import Annotated, Any, Literal

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Mode = Literal["auto", "live", "plain", "none"]
StudyArgument = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or a built-in name (quickstart, lora_vs_full ...).")]
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


def print_json(value: Any) -> None:
    """Print one result on stdout."""
    print(json.dumps(value, indent=1, ensure_ascii=False))
