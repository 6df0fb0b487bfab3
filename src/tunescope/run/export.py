"""Write what training kept as plain Hugging Face folders, and the search as W&B sweep files."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.study.inputs import TrainInputs
from tunescope.study.sweep import sweeps

from .files import read_json
from .selection import Selection, select
from .session import Session


def export_models(session: Session, out: Path, only: Sequence[str] = (), *, merged: bool = False) -> Iterator[Path]:
    """Copy the adapters and models of finished final runs to `<out>/<task>-<method>-seed-<n>`, merged adapters beside with `-merged`.

    Yields:
        Each folder written.

    Raises:
        StudyError: the chosen steps have no final run.
        PrerequisiteError: none of their final runs is finished, or a target exists.
    """
    named = select(session.plan, Selection(only=only)).named
    steps = [s for s in session.plan.steps if s.id in named and s.role == "final"]
    if not steps:
        raise StudyError(
            f"--only {', '.join(only)}: none of the {len(named)} steps it names can be exported; only final training runs can: "
            "--only 'train/*/final/*' names them all, and no --only exports every finished one"
        )
    found = [s for s in steps if session.store.result(s.id)[0]]
    if not found:
        raise PrerequisiteError(f"none of the {len(steps)} final runs is finished in {session.store.root}; run the study first")
    for step in found:
        source = session.store.folder(step.id)
        kept = next((source / name for name in ("adapter", "model") if (source / name).is_dir()), None)
        if kept is None:
            raise PrerequisiteError(f"{source}: holds neither adapter/ nor model/")
        target = out / f"{step.task}-{step.method}-seed-{step.seed}"
        yield _copy(kept, target)
        if merged and kept.name == "adapter":
            yield _merge(session, step.inputs, kept, target.with_name(target.name + "-merged"))


def export_sweeps(session: Session, out: Path, study: str, overrides: Sequence[str] = ()) -> Iterator[Path]:
    """Write one W&B sweep file per task and method to `<out>/<task>-<method>.yaml`; `wandb sweep FILE` takes it.

    Yields:
        Each file written.

    Raises:
        StudyError: nothing is searched.
        PrerequisiteError: a file that exists.
    """
    import yaml

    for name, config in sweeps(session.file, session.plan, study, overrides).items():
        target = out / name
        if target.exists():
            raise PrerequisiteError(f"{target} exists; export to another folder, or delete it first")
        out.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000), encoding="utf-8")
        yield target


def _copy(source: Path, target: Path) -> Path:
    if target.exists():
        raise PrerequisiteError(f"{target} exists; export to another folder, or delete it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    partial.rename(target)
    return target


def _merge(session: Session, inputs: object, adapter: Path, target: Path) -> Path:
    from tunescope.models.loading import resolve_model
    from tunescope.models.lora_utils import merge_adapter

    if target.exists():
        raise PrerequisiteError(f"{target} exists; export to another folder, or delete it first")
    if not (config := read_json(adapter / "adapter_config.json")) or config.get("peft_type") is None:
        raise PrerequisiteError(f"{adapter}: no readable adapter_config.json")
    assert isinstance(inputs, TrainInputs)
    return merge_adapter(resolve_model(inputs.model, session.store.root), adapter, target)
