"""Where task data comes from: the embedded sample, a folder of official files, or the hub at a pinned commit."""

import json
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, cast

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.study.schema import DataSpec, TaskName

from . import distribution
from .distribution import Folder, Rows, SourceFile

REPOSITORIES: dict[TaskName, tuple[str, str | None]] = {
    "mrpc": ("nyu-mll/glue", "mrpc"),
    "sst2": ("nyu-mll/glue", "sst2"),
    "rte": ("nyu-mll/glue", "rte"),
    "squad_v2": ("rajpurkar/squad_v2", None),
}
"""Hub repository and configuration of each task."""
LICENCES: dict[TaskName, str] = {
    "mrpc": "Microsoft's own terms for the download (details id 52398); research use, no redistribution",
    "sst2": "none stated; cite Socher et al. 2013",
    "rte": "none stated; PASCAL RTE-1, 2, 3 and 5 by way of GLUE",
    "squad_v2": "CC BY-SA 4.0",
}
SAMPLE_LICENCES: dict[TaskName, str] = {
    "mrpc": "CC BY-SA 4.0 (made here by rules from SQuAD v2.0 text)",
    "sst2": "CC BY-SA 4.0 (made here from templates)",
    "rte": "CC BY-SA 4.0 (made here by rules from SQuAD v2.0 text)",
    "squad_v2": "CC BY-SA 4.0 (a sample of SQuAD v2.0 dev)",
}
LOCK_FILE = "revisions.lock.json"


@dataclass(frozen=True)
class Raw:
    """All rows of one task: publisher's split name -> rows in the hub's columns."""

    splits: dict[str, Rows]
    comparable: bool = True
    """Scores on the test part may stand beside published ones."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """A task's data, found but not yet read. `origin` and `revision` say whether prepared data is still up to date."""

    licence: str
    made_here: bool
    revision: str | None
    origin: dict[str, dict[str, Any]]
    """Logical file name -> checksums of the unpacked file; empty for the hub, where the commit says it all."""
    read: Callable[[], Raw]


def open_source(task: TaskName, spec: DataSpec, data_dir: Path, files_dir: Path | None) -> Source:
    """Find a task's data. The hub's commit is resolved, and locked beside the data, when the study names none.

    Raises:
        PrerequisiteError: a folder or file is missing or damaged, or the hub cannot be reached.
    """
    if spec.source == "hub":
        revision = locked_revision(REPOSITORIES[task][0], spec.revisions, data_dir)
        return Source(LICENCES[task], False, revision, {}, lambda: read_hub(task, revision))
    if spec.source == "sample":
        folder = Path(str(resources.files("tunescope.data") / "sample"))
        files = _official_files(task, Folder(folder, task))
        note = "embedded sample: small, and not the published data"
        return Source(
            SAMPLE_LICENCES[task], task != "squad_v2", None, _origin(files),
            lambda: Raw(_parse(task, files), False, [note]),
        )  # fmt: skip
    if files_dir is None:
        raise PrerequisiteError("data.source is 'files' but no folder is named; set execution.paths.files to the folder of official files")
    files = _official_files(task, Folder(files_dir, task))
    return Source(LICENCES[task], False, None, _origin(files), lambda: _read_files(task, files))


def _origin(files: Iterable[SourceFile]) -> dict[str, dict[str, Any]]:
    return {f.name: f.checksums for f in files}


def _official_files(task: TaskName, folder: Folder) -> list[SourceFile]:
    """Exactly the files that are read. MRPC prefers the original MSR file, whose row numbers the hub's `idx` are."""
    if task == "squad_v2":
        names = [*(["train-v2.0.json"] if folder.find("train-v2.0.json") else []), "dev-v2.0.json"]
    elif task == "mrpc":
        original = ("msr_paraphrase_train.txt", "dev_ids.tsv")
        use_original = all(folder.find(n) for n in original) or not folder.find("train.tsv")
        names = [*(original if use_original else ("train.tsv", "dev.tsv")), "msr_paraphrase_test.txt"]
    else:
        names = ["train.tsv", "dev.tsv", "test.tsv"]
    return [folder.read(name) for name in names]


def _read_files(task: TaskName, files: list[SourceFile]) -> Raw:
    changed = [f.name for f in files if not f.checksums["published"]]
    notes = [f"{name} is not byte for byte the published file" for name in changed]
    splits = _parse(task, files)
    if task == "squad_v2" and "train" not in splits:
        notes.append("SQuAD v2.0 train is absent: dev is split by article, so scores are not comparable with published ones")
    return Raw(splits, not notes, notes)


def _parse(task: TaskName, files: list[SourceFile]) -> dict[str, Rows]:
    by_name = {f.name.split("/")[1]: f for f in files}
    if task == "squad_v2":
        names = {"train": "train-v2.0.json", "validation": "dev-v2.0.json"}
        return {split: distribution.squad_rows(by_name[name]) for split, name in names.items() if name in by_name}
    if task == "mrpc":
        return _parse_mrpc(by_name)
    glue = distribution.glue_rows
    return {"train": glue(by_name["train.tsv"]), "validation": glue(by_name["dev.tsv"]), "test": glue(by_name["test.tsv"], labelled=False)}


def _parse_mrpc(files: dict[str, SourceFile]) -> dict[str, Rows]:
    test = distribution.mrpc_rows(files["msr_paraphrase_test.txt"])[0]
    if "train.tsv" in files:
        return {
            "train": distribution.mrpc_rows(files["train.tsv"])[0],
            "validation": distribution.mrpc_rows(files["dev.tsv"])[0],
            "test": test,
        }
    rows, ids = distribution.mrpc_rows(files["msr_paraphrase_train.txt"])
    moved = distribution.mrpc_dev_ids(files["dev_ids.tsv"])
    missing = moved - set(ids)
    if missing:
        path = files["dev_ids.tsv"].path
        raise PrerequisiteError(f"{path}: {len(missing)} pairs are not in msr_paraphrase_train.txt, first: {min(missing)}")
    train = [r for r, i in zip(rows, ids, strict=True) if i not in moved]
    return {"train": train, "validation": [r for r, i in zip(rows, ids, strict=True) if i in moved], "test": test}


def locked_revision(repository: str, pinned: dict[str, str], data_dir: Path) -> str:
    """The commit to download: the study's, else the locked one, else the newest, which is then locked.

    Raises:
        StudyError: study and lock name different commits.
        PrerequisiteError: neither names one and the hub cannot be reached.
    """
    from filelock import FileLock

    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(data_dir / f".{LOCK_FILE}.lock"):
        return _locked_revision(repository, pinned, data_dir / LOCK_FILE)


def _locked_revision(repository: str, pinned: dict[str, str], path: Path) -> str:
    lock: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    wanted, held = pinned.get(repository), lock.get(repository)
    if wanted and held and wanted != held:
        raise StudyError(
            f"data.revisions: the study pins {repository} to {wanted}, but {path} holds {held}; use another data folder or remove the line"
        )
    revision = wanted or held or newest_revision(repository)
    if held is None:
        _write_lock(path, lock | {repository: revision})
    return revision


def newest_revision(repository: str) -> str:
    """The newest commit of a hub data set."""
    from huggingface_hub import HfApi

    try:
        sha = HfApi().dataset_info(repository).sha
    except Exception as error:  # offline, gated, renamed: the client raises many types
        raise _unreachable(repository, error) from error
    if sha is None:
        raise PrerequisiteError(f"the hub names no commit for {repository}; pin one under data.revisions")
    return sha


def read_hub(task: TaskName, revision: str) -> Raw:
    """Download one task at a commit (or take it from the local cache) and keep exactly the columns that the study uses."""
    from datasets import load_dataset

    repository, configuration = REPOSITORIES[task]
    try:
        loaded = load_dataset(repository, configuration, revision=revision)
    except Exception as error:  # offline, unknown commit, schema errors: the client raises many types
        raise _unreachable(f"{repository} at {revision}", error) from error
    texts = {"mrpc": ("sentence1", "sentence2"), "rte": ("sentence1", "sentence2"), "sst2": ("sentence",)}
    columns = (*texts[task], "label", "idx") if task in texts else ("id", "title", "context", "question", "answers")
    wanted = ("train", "validation") if task == "squad_v2" else ("train", "validation", "test")
    missing = [split for split in wanted if split not in loaded]
    if missing:
        raise PrerequisiteError(f"{repository}: no split {', '.join(missing)}; found {', '.join(map(str, loaded))}")
    splits = {split: [{c: row[c] for c in columns} for row in cast(Iterable[dict[str, Any]], loaded[split])] for split in wanted}
    return Raw(splits)


def _unreachable(what: str, error: Exception) -> PrerequisiteError:
    return PrerequisiteError(
        f"cannot get {what} from the hub ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}). Without a network: "
        "prepare the data on a machine that has one and copy the data folder, or set data.source to 'files' (official files in "
        "execution.paths.files) or 'sample' (embedded)"
    )


def _write_lock(path: Path, lock: dict[str, str]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(handle, "w") as file:
        file.write(json.dumps(lock, indent=2, sort_keys=True) + "\n")
    os.replace(name, path)
