"""Sentence pairs made by rules from encyclopedic text: paraphrases and claims, and near misses of both.

Near misses go through the same rewriting as true pairs, so that the rewriting itself does not give the label away.
"""

import calendar
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .reviews import WORDS

Rng = random.Random
Edit = Callable[[str, Rng, "Article"], str | None]
_SENTENCE = re.compile(r"(?<=[a-z0-9)][.])(?<! St[.])\s+(?=[A-Z])")
_NAME = re.compile(r"\b[A-Z][a-z]{2,}(?: (?:[A-Z][a-z]{2,}|[IVX]+))*\b")
_SUBJECT = r"(?=(?:(?:the|it|he|she|they|there|a|an|this|these|many|some|most)\b|[A-Z]))"
_HEAD = r"^((?:In|On|At|During|After|Before|By|From|Until|Since|Under|For|Despite|Because|Although|When|As|With)\b[^,]{3,60}), "
_OPENING = rf"{_HEAD}({_SUBJECT}.*)\.$"
_UNFIT = re.compile(r"[()\[\]\"/;:]|\b[A-Z][a-z]{0,2}\.|\b(?:i\.e|e\.g|etc|al|no)\.|\b[A-Z] \d")
_MONTHS = frozenset(calendar.month_name[1:])
_NUMBER = re.compile(r"\b\d[\d,]*\b")
_SYNONYMS: dict[str, str] = WORDS["synonyms"]
_NEGATIONS: list[tuple[str, str]] = [(f" {a} ", f" {b} ") for a, b in WORDS["negations"]]


@dataclass(frozen=True)
class Article:
    """One article as paragraphs of usable sentences."""

    title: str
    paragraphs: list[list[str]]

    @property
    def sentences(self) -> list[str]:
        return [s for paragraph in self.paragraphs for s in paragraph]

    @property
    def names(self) -> list[str]:
        """Names that occur inside sentences, each once."""
        return sorted({name for s in self.sentences for name in _names(s)})


def article(title: str, contexts: list[str]) -> Article:
    """Cut contexts into sentences of 8 to 24 words without brackets or quotes."""
    return Article(title, [list(_usable(c)) for c in contexts])


def paraphrases(source: Article, count: int, rng: Rng) -> list[tuple[str, str, int]]:
    """Up to `count` pairs (first, second, same), three in five the same."""
    return _pairs(source, count, rng, share=0.6, edits=_MEANING, rewrite=_reworded)


def claims(source: Article, count: int, rng: Rng) -> list[tuple[str, str, int]]:
    """Up to `count` pairs (text, claim, supported), half of them supported; a text is one or two neighbouring sentences."""
    made = []
    for first, second, same in _pairs(source, count, rng, share=0.5, edits=[*_MEANING, _neighbour], rewrite=_simplified):
        made.append((_with_context(source, first, second, rng), second, same))
    return made


def _usable(context: str) -> Iterator[str]:
    for sentence in _SENTENCE.split(" ".join(context.split())):
        fits = 8 <= len(sentence.split()) <= 24 and sentence.isascii() and not _UNFIT.search(sentence)
        if fits and sentence[-1] == "." and sentence[0].isupper():
            yield sentence


def _pairs(source: Article, count: int, rng: Rng, share: float, edits: list[Edit], rewrite: Edit) -> list[tuple[str, str, int]]:
    pool = source.sentences
    rng.shuffle(pool)
    made: list[tuple[str, str, int]] = []
    for sentence in pool:
        if len(made) == count:
            break
        same = int(sum(m[2] for m in made) < share * (len(made) + 1))
        changed = sentence if same else _edited(sentence, rng, source, edits)
        other = rewrite(changed, rng, source) if changed else None
        if other and other != sentence:
            made.append((sentence, other, same))
    return made


def _edited(sentence: str, rng: Rng, source: Article, edits: list[Edit]) -> str | None:
    """The first edit that applies, in random order."""
    return next((done for edit in rng.sample(edits, len(edits)) if (done := edit(sentence, rng, source))), None)


def _names(sentence: str) -> list[str]:
    """Names after the first word; months are no names."""
    return [name for name in _NAME.findall(sentence.partition(" ")[2]) if name not in _MONTHS]


def _other_name(sentence: str, rng: Rng, source: Article) -> str | None:
    inside = _names(sentence)
    others = [n for n in source.names if n not in sentence and not any(n in i or i in n for i in inside)]
    if not inside or not others:
        return None
    old = rng.choice(inside)
    return sentence.replace(old, rng.choice(others))


def _other_number(sentence: str, rng: Rng, source: Article) -> str | None:
    numbers = _NUMBER.findall(sentence)
    if not numbers:
        return None
    old = rng.choice(numbers)
    value = int(old.replace(",", ""))
    new = value + rng.choice([-1, 1]) * rng.choice([3, 7, 12, 25]) if value > 30 else value + rng.choice([1, 2, 4])
    return re.sub(rf"(?<![\d,.]){re.escape(old)}(?![\d,.]\d)", f"{new:,}" if "," in old else str(new), sentence, count=1)


def _negated(sentence: str, rng: Rng, source: Article) -> str | None:
    already = re.search(r"\b(?:not|never|cannot|no)\b", sentence) is not None
    return next((sentence.replace(a, b, 1) for a, b in _NEGATIONS if a in sentence and (" not " in a) == already), None)


def _swapped(sentence: str, rng: Rng, source: Article) -> str | None:
    """Two names of the sentence change places."""
    names = list(dict.fromkeys(_names(sentence)))
    if len(names) < 2 or any(a in b for a in names for b in names if a != b):
        return None
    first, second = rng.sample(names, 2)
    return sentence.replace(first, "\0").replace(second, first).replace("\0", second)


def _neighbour(sentence: str, rng: Rng, source: Article) -> str | None:
    paragraph = next(p for p in source.paragraphs if sentence in p)
    place = paragraph.index(sentence)
    return next((paragraph[i] for i in (place + 2, place - 2) if 0 <= i < len(paragraph)), None)


def _reworded(sentence: str, rng: Rng, source: Article) -> str | None:
    """Move the opening phrase to the end, turn a plain list of two around, drop a hedge, exchange words for synonyms."""
    text, changes = sentence, 0
    for edit in (_moved, _turned, _synonyms):
        done = edit(text, rng)
        changes += done != text
        text = done
    return text if changes and text != sentence else None


def _simplified(sentence: str, rng: Rng, source: Article) -> str | None:
    """Leave out an opening phrase, a relative clause or a trailing participle, then reword half of the time."""
    text = re.sub(_HEAD + _SUBJECT, "", sentence) if rng.random() < 0.7 else sentence
    text = re.sub(r", (which|who|where|including|such as|as well as)\b[^,]*(?=[,.])", "", text)
    text = re.sub(r", [a-z]+ing\b[^,]*\.$", ".", text)
    text = re.sub(r"^(However|Therefore|Thus|Moreover|Furthermore|Instead), ", "", text)
    text = text[0].upper() + text[1:]
    text = _synonyms(text, rng) if text == sentence or rng.random() < 0.5 else text
    return text if len(text.split()) >= 5 else None


def _moved(text: str, rng: Rng) -> str:
    match = re.match(_OPENING, text)
    if not match:
        return text
    head, rest = match.groups()
    return f"{rest[0].upper()}{rest[1:]} {head[0].lower()}{head[1:]}."


def _turned(text: str, rng: Rng) -> str:
    match = re.search(r"(?<=[a-z,] )([a-z]+) and ([a-z]+)(?=[.,])", text)
    return text if not match else text[: match.start()] + f"{match.group(2)} and {match.group(1)}" + text[match.end() :]


def _synonyms(text: str, rng: Rng) -> str:
    words = [w for w in rng.sample(list(_SYNONYMS), len(_SYNONYMS)) if re.search(rf"\b{re.escape(w)}\b", text)]
    for word in words[: rng.choice([1, 2, 2, 3])]:
        text = re.sub(rf"\b{re.escape(word)}\b", _SYNONYMS[word], text, count=1)
    text = re.sub(r"\b([Aa])n (?=[bcdfgj-np-tv-z])", r"\1 ", text)
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def _with_context(source: Article, sentence: str, claim: str, rng: Rng) -> str:
    """The sentence, half of the time with the one before it or after it (which is never the claim)."""
    paragraph = next(p for p in source.paragraphs if sentence in p)
    place = paragraph.index(sentence)
    choices = [sentence]
    if place > 0:
        choices.append(f"{paragraph[place - 1]} {sentence}")
    if place + 1 < len(paragraph):
        choices.append(f"{sentence} {paragraph[place + 1]}")
    fitting = [c for c in choices if len(c.split()) <= 36 and claim not in c] or [sentence]
    return rng.choice(fitting)


_MEANING: list[Edit] = [_other_name, _other_number, _negated, _swapped]
