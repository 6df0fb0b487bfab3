"""Sentences in the manner of film reviews, positive and negative, from templates and a sentiment vocabulary."""

import json
import random
from collections.abc import Callable
from pathlib import Path

WORDS = json.loads(Path(__file__).with_name("vocabulary.json").read_text(encoding="utf-8"))
_SIDE = ("negative", "positive")
Rng = random.Random


def sentences(count: int, rng: Rng) -> list[tuple[str, int]]:
    """`count` different sentences with labels, half of each, in random order. About a fifth need more than one word to be judged."""
    found: dict[str, int] = {}
    while len(found) < count:
        label = len(found) % 2
        text = rng.choices(_SHAPES, weights=_WEIGHTS)[0](rng, label)
        found.setdefault(" ".join(text.split()), label)
    rows = list(found.items())
    rng.shuffle(rows)
    return rows


def _words(kind: str, label: int) -> list[str]:
    """The vocabulary of one kind and one side."""
    words: list[str] = WORDS[kind][_SIDE[label]]
    return words


def _adjective(rng: Rng, label: int) -> str:
    return rng.choice(_words("adjectives", label))


def _aspect(rng: Rng) -> str:
    return rng.choice(WORDS["aspects"])


def _verb(rng: Rng, label: int) -> str:
    return rng.choice(_words("verbs", label))


def _article(adjective: str) -> str:
    return f"an {adjective}" if adjective[0] in "aeiou" else f"a {adjective}"


def _pair(rng: Rng, label: int) -> str:
    first, second = rng.sample(_words("adjectives", label), 2)
    return f"{_article(first)} and {second} {rng.choice(WORDS['genres'])} ."


def _about(rng: Rng, label: int) -> str:
    return f"{_article(_adjective(rng, label))} {rng.choice(WORDS['genres'])} about {rng.choice(WORDS['topics'])} ."


def _is(rng: Rng, label: int) -> str:
    return f"the {_aspect(rng)} is {rng.choice(WORDS['adverbs'])} {_adjective(rng, label)} ."


def _verbal(rng: Rng, label: int) -> str:
    return f"this {rng.choice(WORDS['genres'])} about {rng.choice(WORDS['topics'])} {_verb(rng, label)} ."


def _remark(rng: Rng, label: int) -> str:
    return f"the {_aspect(rng)} is {_adjective(rng, label)} : {rng.choice(_words('remarks', label))} ."


def _list(rng: Rng, label: int) -> str:
    one, two, three = rng.sample(_words("adjectives", label), 3)
    return f"{one} , {two} and {rng.choice(WORDS['adverbs'])} {three} ."


def _qualities(rng: Rng, label: int) -> str:
    one, two = rng.sample(_words("qualities", label), 2)
    return f"{rng.choice(['full of', 'a mix of', 'rich in', 'nothing but'])} {one} and {two} from start to finish ."


def _lacks(rng: Rng, label: int) -> str:
    one, two = rng.sample(_words("qualities", 1 - label), 2)
    return f"the {rng.choice(WORDS['genres'])} {rng.choice(['lacks', 'is free of', 'has no trace of'])} {one} and {two} ."


def _not(rng: Rng, label: int) -> str:
    shape = rng.choice(["there is not {} moment in this {}", "hardly {} scene in the whole {}", "nobody could call this {} {}"])
    return shape.format(_article(_adjective(rng, 1 - label)), rng.choice(WORDS["genres"])) + " ."


def _though(rng: Rng, label: int) -> str:
    one, two = rng.sample(WORDS["aspects"], 2)
    end = ["sinks", "saves"][label]
    return f"though the {one} is {_adjective(rng, 1 - label)} , the {two} is {_adjective(rng, label)} , and that {end} it ."


def _but(rng: Rng, label: int) -> str:
    topic, genre = rng.choice(WORDS["topics"]), rng.choice(WORDS["genres"])
    return f"{topic} may sound {_adjective(rng, 1 - label)} , but the {genre} {_verb(rng, label)} ."


def _despite(rng: Rng, label: int) -> str:
    return f"despite its {_adjective(rng, 1 - label)} {_aspect(rng)} , it {_verb(rng, label)} ."


_SHAPES: list[Callable[[Rng, int], str]] = [_pair, _about, _is, _verbal, _remark, _list, _qualities, _lacks, _not, _though, _but, _despite]
_WEIGHTS = [4, 5, 5, 4, 5, 3, 3, 1, 1, 2, 2, 2]
