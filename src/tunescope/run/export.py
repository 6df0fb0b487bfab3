"""Write what training kept as plain Hugging Face folders, and the search as W&B sweep files."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.records import FinishedStep
from tunescope.study.identity import fingerprint
from tunescope.study.inputs import TrainInputs
from tunescope.study.sweep import sweeps

from .files import read_json, sha256_file
from .model_card import Base, Form, Subject, model_card, short_name
from .selection import Selection, select
from .session import Session
from .sources import sources

BASE = "base"


@dataclass(frozen=True)
class _Kept:
    """One finished final run and what it kept."""

    step: FinishedStep
    weights: Path
    """Its `adapter/` or `model/`."""
    name: str
    provenance: Mapping[str, Any]

    @property
    def adapter(self) -> bool:
        return self.weights.name == "adapter"

    @property
    def inputs(self) -> TrainInputs:
        """What it was made from, whatever the study file says by now."""
        return TrainInputs.model_validate(self.step.inputs)


def export_models(session: Session, out: Path, only: Sequence[str] = (), *, merged: bool = False) -> Iterator[Path]:
    """Write finished final runs to `<out>/<task>-<method>-seed-<n>`, each with tokenizer and model card.

    Merged adapters lie beside them with `-merged`. A base that is not on the hub is copied once to `<out>/base` for the adapters on it.

    Yields:
        Each folder written.

    Raises:
        StudyError: the chosen steps have no final run.
        PrerequisiteError: no finished final run among the chosen steps, one that is damaged, stale or waits for a step that is, a
            base that is not the one that was trained on, or a target that exists. All that can be known before is refused before anything
            is written.
    """
    kept = _kept(session, only)
    _refuse_existing([out / name for run in kept for name in (run.name, *([f"{run.name}-merged"] if merged and run.adapter else []))])
    for run in kept:
        yield from _export(session, run, out, merged=merged and run.adapter)


def export_sweeps(session: Session, out: Path, study: str, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Iterator[Path]:
    """Write one W&B sweep file per task and method (of the chosen steps) to `<out>/<task>-<method>.yaml`; `wandb sweep FILE` takes it.

    Yields:
        Each file written.

    Raises:
        StudyError: nothing is searched, or none of the chosen steps is a search run.
        PrerequisiteError: a file that exists.
    """
    import yaml

    named = select(session.plan, Selection(only=only)).named
    steps = [step for step in session.plan.steps if step.id in named]
    for name, config in sweeps(session.file, steps, study, overrides).items():
        target = out / name
        _refuse_existing([target])
        out.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000), encoding="utf-8")
        yield target


def _refuse_existing(targets: Sequence[Path]) -> None:
    there = [str(target) for target in targets if target.exists()]
    if there:
        raise PrerequisiteError("\n".join(f"{target} exists; export to another folder, or delete it first" for target in there))


def _kept(session: Session, only: Sequence[str]) -> list[_Kept]:
    """The chosen finished final runs, each of them as the study has it now and as its step wrote it."""
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
    states = session.states()
    other = [f"{s.id} is {state.status} ({state.why}); run it again, or give export the settings it was made by" for s in found
             if (state := states[s.id]).status != "done"]  # fmt: skip
    damaged = [f"{s.id}: {problem}" for s in found if (problem := session.store.damaged(s.id))]
    if other or damaged:
        raise PrerequisiteError("\n".join(other + damaged))
    return [_kept_by(session, s.id, f"{s.task}-{s.method}-seed-{s.seed}") for s in found]


def _kept_by(session: Session, step_id: str, name: str) -> _Kept:
    step, _ = session.store.result(step_id)
    assert step is not None
    weights = next((step.folder / part for part in ("adapter", "model") if (step.folder / part).is_dir()), None)
    if weights is None:
        raise PrerequisiteError(f"{step.folder}: holds neither adapter/ nor model/")
    config = "adapter_config.json" if weights.name == "adapter" else "config.json"
    if not read_json(weights / config):
        raise PrerequisiteError(f"{weights}: no readable {config}")
    return _Kept(step, weights, name, read_json(step.folder / "provenance.json") or {})


def _export(session: Session, run: _Kept, out: Path, *, merged: bool) -> Iterator[Path]:
    from tunescope.models.exporting import restore_settings, write_adapter, write_model
    from tunescope.models.loading import hub_identity, resolve_model
    from tunescope.models.lora_utils import merge_adapter

    folder = resolve_model(run.inputs.model, session.store.root)
    hub = hub_identity(run.inputs.model, folder)
    found = _sources(session, run)
    base = _describe_base(run, folder, hub)
    if run.adapter and hub is None:
        yield from _export_base(folder, out / BASE, found)
    config = read_json(run.weights / "adapter_config.json") or {}
    with _whole(out / run.name) as partial:
        if run.adapter:
            name, revision = hub or (str((out / BASE).resolve()), None)
            config = write_adapter(run.weights, folder, partial, name, revision)
        else:
            write_model(run.weights, folder, partial)
        _write_card(session, run, partial, run.name, "adapter" if run.adapter else "model", base, config)
    yield out / run.name
    if merged:
        with _whole(out / f"{run.name}-merged") as partial:
            merge_adapter(folder, run.weights, partial)
            restore_settings(partial, folder)
            _write_card(session, run, partial, f"{run.name}-merged", "merged", base, config)
        yield out / f"{run.name}-merged"


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A folder to write into that gets the target's name once it is whole."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    yield partial
    partial.rename(target)


def _sources(session: Session, run: _Kept) -> dict[str, str]:
    """Digests of base model and template as they are now.

    Raises:
        PrerequisiteError: an adapter's base is not the one it was trained on.
    """
    found = sources(run.step.inputs, session.store.root, session.store.root / "environments")
    recorded = run.provenance.get("sources") or {}
    changed = sorted(n.removeprefix("model/") for n, d in recorded.items() if n.startswith("model/") and found.get(n) != d)
    if changed and run.adapter:
        what = f"{', '.join(changed)} of base model '{run.inputs.model.name}' changed since it was trained"
        raise PrerequisiteError(f"{run.step.id}: {what}; put the model back as it was, or train again")
    return found


def _export_base(folder: Path, target: Path, found: Mapping[str, str]) -> Iterator[Path]:
    """Copy the base beside the adapters, unless an earlier adapter's export did."""
    from tunescope.models.exporting import copy_base

    if target.exists():
        wanted = {name.removeprefix("model/"): digest for name, digest in found.items() if name.startswith("model/")}
        if any(not (target / name).is_file() or sha256_file(target / name) != digest for name, digest in wanted.items()):
            raise PrerequisiteError(f"{target} is not the base model of these adapters; export to another folder, or delete it first")
        return
    with _whole(target) as partial:
        copy_base(folder, partial)
    yield target


def _describe_base(run: _Kept, folder: Path, hub: tuple[str, str | None] | None) -> Base:
    from tunescope.models.exporting import stated_licence

    keys, licence = stated_licence(folder)
    name, revision = hub or (short_name(run.inputs.model.name), None)
    return Base(name, name if hub else f"./{BASE}", revision, hub is not None, keys, licence)


def _write_card(session: Session, run: _Kept, folder: Path, name: str, form: Form, base: Base, config: Mapping[str, Any]) -> None:
    data = _data(session, run)
    subject = Subject(
        name=name, form=form, study=session.plan.study.name, step=run.step, base=base, adapter=config, lora_rank=_served_rank(config),
        weights={path.name: sha256_file(path) for path in sorted(folder.glob("*.safetensors"))}, data=data,
        dataset=_dataset(run, data), template=_template(run), provenance=run.provenance,
    )  # fmt: skip
    (folder / "README.md").write_text(model_card(subject), encoding="utf-8")


def _data(session: Session, run: _Kept) -> dict[str, Any]:
    """What the data step recorded, if this store has the one that the run was trained on."""
    record = session.store.record(run.step.id)
    step = f"data/{run.step.inputs['task']}"
    result, _ = session.store.result(step)
    if result is None or record is None or record.upstream.get(step) != result.result["digest"]:
        return {}
    return dict(result.outputs)


def _dataset(run: _Kept, data: Mapping[str, Any]) -> str | None:
    """The hub's name of the data set, for published data from wherever; the embedded sample is none of the hub's."""
    from tunescope.data.sources import REPOSITORIES

    source = (data or run.provenance.get("data") or {}).get("source")
    return REPOSITORIES[run.inputs.task][0] if source in ("hub", "files") else None


def _template(run: _Kept) -> dict[str, Any] | None:
    """The task's prompt, if it is the one that the run recorded."""
    from tunescope.data.tasks import template

    task = run.inputs.task
    recorded = (run.provenance.get("sources") or {}).get(f"template/{task}")
    return template(task) if recorded == fingerprint(template(task)) else None


def _served_rank(config: Mapping[str, Any]) -> int | None:
    """The `max_lora_rank` that vLLM needs for an adapter; None for what it does not serve."""
    from tunescope.serve.arms import accepted_rank

    if config.get("peft_type") != "LORA" or config.get("use_dora"):
        return None
    try:
        return accepted_rank(max([config["r"], *(config.get("rank_pattern") or {}).values()]))
    except StudyError:
        return None
