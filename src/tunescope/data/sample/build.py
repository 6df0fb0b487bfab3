"""Make the embedded sample again: `python -m tunescope.data.sample.build dev-v2.0.json[.gz]`. Same input, same bytes."""

import gzip
import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from . import pairs, reviews

SEED = 20
MAX_WORDS = 90
"""Longest SQuAD paragraph kept: the quickstart runs on a CPU."""
SQUAD_ARTICLES = {"train": 21, "validation": 8}
QUESTIONS_PER_ARTICLE = 20
SIZES = {"train": 512, "validation": 128, "test": 160}
REVIEW_SIZES = {"train": 512, "validation": 160, "test": 160}
_PAIR_HEADER = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")


def main(source: Path, target: Path) -> None:
    """Write all sample files below `target`."""
    content = source.read_bytes()
    document = json.loads(gzip.decompress(content) if source.suffix == ".gz" else content)
    write_squad(document, target / "squad_v2")
    articles = {a["title"]: pairs.article(a["title"], [p["context"] for p in a["paragraphs"]]) for a in document["data"]}
    split = _divided(list(articles))
    write_mrpc({name: [articles[t] for t in titles] for name, titles in split.items()}, target / "mrpc")
    write_rte({name: [articles[t] for t in titles] for name, titles in split.items()}, target / "rte")
    write_reviews(target / "sst2")


def write_squad(document: dict[str, Any], folder: Path) -> None:
    """Short paragraphs with up to QUESTIONS_PER_ARTICLE questions an article, answerable and not; whole articles in one file."""
    titles = [a["title"] for a in document["data"]]
    random.Random(f"{SEED} squad").shuffle(titles)
    sampled = {a["title"]: _sampled(a) for a in document["data"]}
    full = [t for t in titles if sum(len(p["qas"]) for p in sampled[t]["paragraphs"]) >= QUESTIONS_PER_ARTICLE - 4]
    start = 0
    for split, name in (("train", "train-v2.0.json"), ("validation", "dev-v2.0.json")):
        chosen = full[start : start + SQUAD_ARTICLES[split]]
        start += len(chosen)
        if len(chosen) < SQUAD_ARTICLES[split]:
            raise ValueError(f"only {len(full)} articles have enough questions on short paragraphs")
        _write(folder / name, json.dumps({"version": "v2.0", "data": [sampled[t] for t in chosen]}, ensure_ascii=False, indent=0) + "\n")


def _sampled(article: dict[str, Any]) -> dict[str, Any]:
    """At most six questions from each short paragraph, half of them unanswerable, until the article has enough."""
    kept, left = [], QUESTIONS_PER_ARTICLE
    for paragraph in sorted(article["paragraphs"], key=lambda p: (len(p["context"].split()), p["context"])):
        if left == 0 or not 25 <= len(paragraph["context"].split()) <= MAX_WORDS:
            continue
        known = [q for q in paragraph["qas"] if not q["is_impossible"]][:3]
        unknown = [q for q in paragraph["qas"] if q["is_impossible"]][:3]
        chosen = (known + unknown)[:left]
        left -= len(chosen)
        keys = ("question", "id", "answers", "is_impossible")
        kept.append({"qas": [{k: q[k] for k in keys} for q in chosen], "context": paragraph["context"]})
    return {"title": article["title"], "paragraphs": [p for p in kept if p["qas"]]}


def write_mrpc(articles: dict[str, list[pairs.Article]], folder: Path) -> None:
    """MSR tables: train, dev and a labelled test."""
    for split, name in (("train", "train.tsv"), ("validation", "dev.tsv"), ("test", "msr_paraphrase_test.txt")):
        made = _gather(articles[split], SIZES[split], pairs.paraphrases, f"{SEED} mrpc {split}")
        rows = [(label, 2 * n + 1, 2 * n + 2, first, second) for n, (first, second, label) in enumerate(made)]
        _write(folder / name, "\ufeff" + _table(_PAIR_HEADER, rows))


def write_rte(articles: dict[str, list[pairs.Article]], folder: Path) -> None:
    """GLUE tables: train and dev, and a test without labels."""
    for split, name in (("train", "train.tsv"), ("validation", "dev.tsv"), ("test", "test.tsv")):
        made = _gather(articles[split], SIZES[split], pairs.claims, f"{SEED} rte {split}")
        rows = [(n, text, claim, "entailment" if label else "not_entailment") for n, (text, claim, label) in enumerate(made)]
        header = ("index", "sentence1", "sentence2", "label")
        width = 3 if split == "test" else 4
        _write(folder / name, _table(header[:width], [row[:width] for row in rows]))


def write_reviews(folder: Path) -> None:
    """GLUE tables: train and dev, and a test without labels."""
    made = reviews.sentences(sum(REVIEW_SIZES.values()), random.Random(f"{SEED} sst2"))
    a, b = REVIEW_SIZES["train"], REVIEW_SIZES["train"] + REVIEW_SIZES["validation"]
    _write(folder / "train.tsv", _table(("sentence", "label"), made[:a]))
    _write(folder / "dev.tsv", _table(("sentence", "label"), made[a:b]))
    _write(folder / "test.tsv", _table(("index", "sentence"), [(n, text) for n, (text, _) in enumerate(made[b:])]))


def _divided(titles: list[str]) -> dict[str, list[str]]:
    """Whole articles to each split, so that no sentence is in two."""
    titles = sorted(titles)
    random.Random(f"{SEED} articles").shuffle(titles)
    return {"train": titles[:21], "validation": titles[21:27], "test": titles[27:]}


def _gather(articles: list[pairs.Article], count: int, make: Any, seed: str) -> list[tuple[str, str, int]]:
    """At most one and a half times an equal share from each article, in random order."""
    rng = random.Random(seed)
    each = count * 3 // (2 * len(articles))
    made = [pair for article in articles for pair in make(article, each, rng)]
    if len(made) < count:
        raise ValueError(f"{seed}: only {len(made)} of {count} pairs")
    rng.shuffle(made)
    return made[:count]


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    return "".join("\t".join(map(str, row)) + "\n" for row in [header, *rows])


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
