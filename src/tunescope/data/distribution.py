"""Readers of the official distribution files: GLUE TSV, MSR paraphrase text, SQuAD JSON. Plain or gzip.

Traps: the MRPC files start with a byte order mark; quotes are plain text in all GLUE files, so a quoting CSV reader merges rows; text
may hold characters that `str.splitlines` takes for line ends.
"""

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.errors import PrerequisiteError
from tunescope.study.schema import TaskName

Rows = list[dict[str, Any]]
FOLDERS: dict[TaskName, tuple[str, ...]] = {
    "mrpc": ("mrpc",),
    "sst2": ("sst2",),
    "rte": ("rte",),
    "squad_v2": ("squadv2", "squadv20", "squad2", "squad"),
}
"""Folder names accepted for a task, lower case without punctuation; files may also lie flat."""
PUBLISHED_MD5 = {
    "mrpc/msr_paraphrase_train.txt": "793daf7b6224281e75fe61c1f80afe35",
    "mrpc/msr_paraphrase_test.txt": "e437fdddb92535b820fe8852e2df8a49",
    "mrpc/dev_ids.tsv": "7ab59a1b04bd7cb773f98a0717106c9b",
    "mrpc/train.tsv": "dc2dac669a113866a6480a0b10cd50bf",
    "mrpc/dev.tsv": "185958e46ba556b38c6a7cc63f3a2135",
    "sst2/train.tsv": "da409a0a939379ed32a470bc0f7fe99a",
    "sst2/dev.tsv": "268856b487b2a31a28c0a93daaff7288",
    "sst2/test.tsv": "3230e4efec76488b87877a56ae49675a",
    "rte/train.tsv": "d2844f558d111a16503144bb37a8165f",
    "rte/dev.tsv": "973cb4178d4534cf745a01c309d4a66c",
    "rte/test.tsv": "6041008f3f3e48704f57ce1b88ad2e74",
    "squad_v2/train-v2.0.json": "62108c273c268d70893182d5cf8df740",
    "squad_v2/dev-v2.0.json": "246adae8b7002f8679c027697b0b7cf8",
}
"""MD5 of the unpacked official files."""
_PAIR = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")
_GLUE_LABELS: dict[str, dict[str, int]] = {
    "mrpc": {"0": 0, "1": 1},
    "sst2": {"0": 0, "1": 1},
    "rte": {"entailment": 0, "not_entailment": 1},
}


@dataclass(frozen=True)
class SourceFile:
    """One distribution file, unpacked. `name` is `<task>/<official name>` whatever the folder is called; `path` is for messages."""

    name: str
    path: Path
    content: bytes

    @property
    def checksums(self) -> dict[str, Any]:
        """MD5, SHA-256 and size of the unpacked file, and whether it is byte for byte the published one."""
        md5 = hashlib.md5(self.content, usedforsecurity=False).hexdigest()
        return {
            "md5": md5, "sha256": hashlib.sha256(self.content).hexdigest(), "bytes": len(self.content),
            "published": PUBLISHED_MD5.get(self.name) == md5,
        }  # fmt: skip


class Folder:
    """The official files of one task below a folder.

    Raises:
        PrerequisiteError: the folder is missing.
    """

    def __init__(self, root: Path, task: TaskName):
        if not root.is_dir():
            raise PrerequisiteError(f"no folder {root} with the official files of {task}; set execution.paths.files to where they lie")
        self.task = task
        self.places = [p for base in (root, root / "glue_data") if base.is_dir() for p in sorted(base.iterdir()) if self._fits(p)] + [root]

    def _fits(self, path: Path) -> bool:
        return path.is_dir() and re.sub("[^a-z0-9]", "", path.name.lower()) in FOLDERS[self.task]

    def find(self, name: str) -> Path | None:
        """Where the file lies, packed or plain; the task's own folder before the root."""
        return next((p for place in self.places for p in (place / name, place / f"{name}.gz") if p.is_file()), None)

    def read(self, name: str) -> SourceFile:
        """Read and unpack one file.

        Raises:
            PrerequisiteError: it is missing, or its gzip stream is damaged.
        """
        path = self.find(name)
        if path is None:
            looked = ", ".join(str(p) for p in self.places)
            raise PrerequisiteError(f"{self.task}: no {name} (or {name}.gz) in {looked}; docs/tasks.md says where to get it")
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (OSError, EOFError, zlib.error) as error:
            raise PrerequisiteError(f"{path}: damaged gzip file ({error}); get it again") from None
        return SourceFile(f"{self.task}/{name}", path, content)


def glue_rows(file: SourceFile, labelled: bool = True) -> Rows:
    """Rows of an SST-2 or RTE file in the hub's columns; unlabelled rows get label -1.

    Raises:
        PrerequisiteError: malformed; names file, line and what was expected.
    """
    task = file.name.split("/")[0]
    texts = ("sentence",) if task == "sst2" else ("sentence1", "sentence2")
    numbered = task == "rte" or not labelled
    header = (*(("index",) if numbered else ()), *texts, *(("label",) if labelled else ()))
    rows: Rows = []
    for line, fields in _table(file, header):
        row: dict[str, Any] = {name: fields[name] for name in texts}
        row["label"] = _label(file, line, task, fields["label"]) if labelled else -1
        row["idx"] = _number(file, line, fields["index"]) if numbered else line - 2
        rows.append(row)
    return rows


def mrpc_rows(file: SourceFile) -> tuple[Rows, list[tuple[str, str]]]:
    """Rows of an MRPC table in the hub's columns, `idx` the row's place in this file, and each row's pair of sentence ids."""
    rows: Rows = []
    ids = []
    for line, fields in _table(file, _PAIR):
        label = _label(file, line, "mrpc", fields["Quality"])
        rows.append({"sentence1": fields["#1 String"], "sentence2": fields["#2 String"], "label": label, "idx": line - 2})
        ids.append((fields["#1 ID"], fields["#2 ID"]))
    return rows, ids


def mrpc_dev_ids(file: SourceFile) -> set[tuple[str, str]]:
    """The id pairs that GLUE moved from training to validation."""
    pairs = set()
    for number, line in _lines(file):
        fields = line.split("\t")
        if len(fields) != 2 or not all(f.isdigit() for f in fields):
            raise _malformed(file, number, "two sentence ids separated by a tab", line)
        pairs.add((fields[0], fields[1]))
    return pairs


def squad_rows(file: SourceFile) -> Rows:
    """Questions of a SQuAD v2.0 file in the hub's columns, in file order.

    Raises:
        PrerequisiteError: not JSON, not version v2.0, or an article, paragraph, question or answer without its fields.
    """
    text = _text(file)
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise PrerequisiteError(f"{file.path}, line {error.lineno}: expected JSON ({error.msg})") from None
    if not isinstance(document, dict) or document.get("version") != "v2.0" or not isinstance(document.get("data"), list):
        found = document.get("version") if isinstance(document, dict) else type(document).__name__
        raise PrerequisiteError(f"{file.path}: expected a SQuAD file of version 'v2.0' with a list 'data', found version {found!r}")
    return [row for number, article in enumerate(document["data"]) for row in _article(file, number, article)]


def _article(file: SourceFile, number: int, article: Any) -> Iterator[dict[str, Any]]:
    place = f"data[{number}]"
    try:
        for p, paragraph in enumerate(article["paragraphs"]):
            for q, question in enumerate(paragraph["qas"]):
                place = f"data[{number}].paragraphs[{p}].qas[{q}]"
                answers = {
                    "text": [str(a["text"]) for a in question["answers"]],
                    "answer_start": [int(a["answer_start"]) for a in question["answers"]],
                }
                if bool(answers["text"]) == question["is_impossible"]:
                    raise PrerequisiteError(f"{file.path}, {place}: answers and is_impossible contradict each other")
                row = {"id": question["id"], "title": article["title"], "context": paragraph["context"], "question": question["question"]}
                yield row | {"answers": answers}
    except (KeyError, TypeError, ValueError) as error:
        raise PrerequisiteError(f"{file.path}, {place}: expected a SQuAD v2.0 entry, problem with {error}") from None


def _text(file: SourceFile) -> str:
    try:
        return file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = file.content[: error.start].count(b"\n") + 1
        byte = file.content[error.start]
        raise PrerequisiteError(f"{file.path}, line {line}: expected UTF-8 text, found byte 0x{byte:02x} at offset {error.start}") from None


def _lines(file: SourceFile) -> Iterator[tuple[int, str]]:
    """Line numbers (from 1) and lines without their ends; an empty last line is no line."""
    lines = _text(file).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        yield number, line.removesuffix("\r")


def _table(file: SourceFile, header: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and fields of every row below the expected header."""
    lines = _lines(file)
    number, first = next(lines, (1, ""))
    if tuple(first.split("\t")) != header:
        raise _malformed(file, number, f"the header {' | '.join(header)}", first)
    empty = True
    for number, line in lines:
        fields = line.split("\t")
        if len(fields) != len(header):
            raise _malformed(file, number, f"{len(header)} fields separated by tabs ({', '.join(header)}), got {len(fields)}", line)
        empty = False
        yield number, dict(zip(header, fields, strict=True))
    if empty:
        raise _malformed(file, number + 1, "at least one row", "")


def _label(file: SourceFile, line: int, task: str, text: str) -> int:
    labels = _GLUE_LABELS[task]
    if text not in labels:
        raise _malformed(file, line, f"a label out of {', '.join(labels)}", text)
    return labels[text]


def _number(file: SourceFile, line: int, text: str) -> int:
    if not text.isdigit():
        raise _malformed(file, line, "a row number in column 'index'", text)
    return int(text)


def _malformed(file: SourceFile, line: int, expected: str, found: str) -> PrerequisiteError:
    shown = found if len(found) <= 60 else found[:60] + "…"
    return PrerequisiteError(f"{file.path}, line {line}: expected {expected}, found '{shown}'")
