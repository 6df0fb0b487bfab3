"""Parts of a study: training, selection, test and probe, drawn by group with a fixed seed.

Every draw orders ids by a hash of (seed, purpose, id). So draws depend on no random generator and no library version, and a smaller limit
takes a subset of what a larger one takes.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from tunescope.errors import PrerequisiteError
from tunescope.study.schema import DataSpec, Limits, TaskName

from .leakage import input_key, normalised
from .sources import Raw, Rows

PartName = Literal["train", "selection", "test", "probe"]
PARTS: tuple[PartName, ...] = ("train", "selection", "test", "probe")
LINK_TOKENS = 4
"""Shortest phrase that links two SST-2 sentences: shorter ones ("the film", "a bit of") belong to the language, not to a sentence. On
the real file 1.8 % of phrases of four tokens occur in several sentences, but 19 % of two; linking by two would put 60 % of rows in one
group, linking by four leaves 6,664 groups, the largest of 201 rows."""
ARTICLE_SHARES = {"test": 8 / 35, "selection": 4 / 35}
"""Article split of SQuAD dev: 23 / 4 / 8 of its 35 articles."""
T = TypeVar("T", bound=str)


@dataclass(frozen=True)
class Parts:
    """Ids (`<split>/<row>`) of each part, and what scores on the test part mean."""

    ids: dict[PartName, list[str]]
    test_split: str
    comparable: bool
    notes: list[str] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    """Cluster of selection rows that share one (SST-2 source sentences)."""

    def document(self) -> dict[str, Any]:
        """The content of `parts.json`."""
        ids = {str(name): ids for name, ids in self.ids.items()}
        note = "; ".join(self.notes)
        return {**ids, "test_split": self.test_split, "comparable": self.comparable, "note": note, "groups": self.groups}


def make_parts(task: TaskName, raw: Raw, spec: DataSpec, limits: Limits, probe_examples: int) -> Parts:
    """Draw all parts of a task.

    MRPC selects on validation and is scored on its labelled test split. The others carve the selection part out of train, by group
    (SST-2 source sentence, RTE premise, SQuAD article): `selection_share` of it, at most `limits.selection` examples; they are scored on
    validation. Without SQuAD's train file the articles of dev are divided.
    """
    seed = spec.split_seed
    groups: dict[str, str] = {}
    if task == "mrpc":
        whole = {"train": ids_of(raw, "train"), "selection": ids_of(raw, "validation"), "test": ids_of(raw, "test")}
        inputs = [ids_of(raw, "validation"), ids_of(raw, "test")]
    elif "train" not in raw.splits:
        whole = _article_parts(raw.splits["validation"], seed)
        inputs = [whole["test"], whole["selection"]]
    else:
        whole, groups = _carved(task, raw, spec, limits)
        inputs = [ids_of(raw, split) for split in ("validation", "test") if split in raw.splits]
    parts: dict[PartName, list[str]] = {}
    for name in PARTS[:3]:
        parts[name] = limited(whole[name], getattr(limits, name), seed, f"limit {name}")
        if not parts[name]:
            raise PrerequisiteError(f"{task}: the {name} part is empty; rows found: { {k: len(v) for k, v in raw.splits.items()} }")
    parts["probe"] = _probe(task, raw, inputs, set(whole["train"]), probe_examples, seed)
    notes = list(raw.notes)
    whole_test = len(parts["test"]) == len(whole["test"])
    if not whole_test:
        notes.append(f"scored on {len(parts['test'])} of {len(whole['test'])} test examples")
    shared = {i: groups[i] for i in parts["selection"] if groups.get(i, i) != i}
    return Parts(parts, "test" if task == "mrpc" else "validation", raw.comparable and whole_test, notes, shared)


def ids_of(raw: Raw, split: str) -> list[str]:
    """Ids of all rows of a publisher's split."""
    return [f"{split}/{i}" for i in range(len(raw.splits[split]))]


def ordered(names: Iterable[T], seed: int, purpose: str) -> list[T]:
    """Names in the fixed pseudo-random order of (seed, purpose)."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest())


def limited(ids: Sequence[str], limit: int | None, seed: int, purpose: str) -> list[str]:
    """At most `limit` ids, in their original order."""
    if limit is None or limit >= len(ids):
        return list(ids)
    kept = set(ordered(ids, seed, purpose)[:limit])
    return [i for i in ids if i in kept]


def groups_of(task: TaskName, rows: Rows) -> list[str]:
    """The group of every row: rows of one group never part. MRPC rows are their own groups."""
    if task == "sst2":
        return phrase_groups([row["sentence"] for row in rows])
    if task == "rte":
        return [normalised(row["sentence1"]) for row in rows]
    return [row["title"] for row in rows] if task == "squad_v2" else [str(i) for i in range(len(rows))]


def phrase_groups(sentences: Sequence[str]) -> list[str]:
    """Group phrases that come from one sentence. Returns a group name per phrase.

    SST-2 train holds the labelled constituents of parse trees. Two constituents of one tree are nested or disjoint, so a phrase belongs
    to a sentence when its (normalised) tokens occur in a row in a longer phrase. Phrases that no longer one contains stand for
    sentences: every span of theirs is looked up in a table of all phrases (1.4 million look-ups for the real file, about a second). A
    phrase of LINK_TOKENS tokens or more that lies in several sentences joins them (union-find), so no such phrase has a containing
    sentence in another group; a shorter one goes with the first of them. Constituents of a sentence that was itself left out (neutral
    ones were) cannot be linked to each other.
    """
    texts = [normalised(s) for s in sentences]
    owners = _owners(texts)
    parent = {text: text for text in texts}
    for text, sources in owners.items():
        if len(sources) > 1 and text.count(" ") + 1 >= LINK_TOKENS:
            for other in sources[1:]:
                parent[_root(parent, other)] = _root(parent, sources[0])
    return [_root(parent, owners[text][0] if text in owners else text) for text in texts]


def _owners(texts: Sequence[str]) -> dict[str, list[str]]:
    """Phrase -> the maximal phrases that contain it; maximal ones are absent."""
    known = set(texts)
    owners: dict[str, list[str]] = {}
    for text in sorted(known, key=lambda t: (-t.count(" "), t)):
        if text in owners:
            continue
        for span in (_spans(text.split(" ")) & known) - {text}:
            owners.setdefault(span, []).append(text)
    return owners


def _spans(tokens: list[str]) -> set[str]:
    return {" ".join(tokens[i:j]) for i in range(len(tokens)) for j in range(i + 1, len(tokens) + 1)}


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        parent[name] = parent[parent[name]]
        name = parent[name]
    return name


def carve(groups: Sequence[str], target: int, seed: int) -> set[int]:
    """Row numbers of whole groups, in the seed's order of groups, that together hold at most `target` rows; larger groups are passed by."""
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    chosen: set[int] = set()
    for group in ordered(members, seed, "carve"):
        if len(chosen) + len(members[group]) <= target:
            chosen.update(members[group])
    return chosen


def _carved(task: TaskName, raw: Raw, spec: DataSpec, limits: Limits) -> tuple[dict[str, list[str]], dict[str, str]]:
    rows, ids = raw.splits["train"], ids_of(raw, "train")
    groups = groups_of(task, rows)
    share = round(spec.selection_share * len(rows))
    chosen = carve(groups, min(share, limits.selection or share), spec.split_seed)
    if not chosen:
        raise PrerequisiteError(
            f"{task}: no group of train fits into a selection part of {share} rows; raise data.selection_share or limits.selection"
        )
    whole = {
        "train": [i for n, i in enumerate(ids) if n not in chosen],
        "selection": [ids[n] for n in sorted(chosen)],
        "test": ids_of(raw, "validation"),
    }
    first: dict[str, str] = {}
    named = {ids[n]: first.setdefault(group, ids[n]) for n, group in enumerate(groups)} if task == "sst2" else {}
    return whole, named


def _article_parts(rows: Rows, seed: int) -> dict[str, list[str]]:
    articles = ordered(dict.fromkeys(row["title"] for row in rows), seed, "articles")
    if len(articles) < 3:
        raise PrerequisiteError(f"squad_v2: an article split needs at least 3 articles, found {len(articles)}")
    tests, selections = (max(1, round(ARTICLE_SHARES[p] * len(articles))) for p in ("test", "selection"))
    part_of = dict.fromkeys(articles, "train")
    part_of.update(dict.fromkeys(articles[:tests], "test"))
    part_of.update(dict.fromkeys(articles[tests : tests + selections], "selection"))
    whole: dict[str, list[str]] = {"train": [], "selection": [], "test": []}
    for n, row in enumerate(rows):
        whole[part_of[row["title"]]].append(f"validation/{n}")
    return whole


def _probe(task: TaskName, raw: Raw, inputs: list[list[str]], train: set[str], size: int, seed: int) -> list[str]:
    """Up to `size` distinct inputs, from the first list, then from the next, none equal to a training input; in mixed order.

    Repeated inputs would correlate the probe's rows; the mixed order makes consecutive blocks of it alike. Limits do not enter.
    """
    rows = {f"{split}/{n}": row for split, all_rows in raw.splits.items() for n, row in enumerate(all_rows)}
    seen = {input_key(task, rows[i]) for i in rows if i in train or i.startswith("train/")}
    chosen: list[str] = []
    for ids in inputs:
        for i in ordered(ids, seed, "probe"):
            key = input_key(task, rows[i])
            if len(chosen) < size and key not in seen:
                seen.add(key)
                chosen.append(i)
    return ordered(chosen, seed, "probe order")
