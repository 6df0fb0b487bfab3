"""The report as one HTML file: no network, no script, every text escaped by Jinja2's autoescape."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tunescope import __version__
from tunescope.analysis.findings import Claim, Findings
from tunescope.analysis.frames import Frames
from tunescope.analysis.tasks_apart import tasks_apart
from tunescope.analysis.verdicts import comparable, said
from tunescope.study.schema import Execution, Study

from . import provenance, reproduce
from . import wording as w
from .drawing import inline_svg
from .figures import Drawn
from .first_page import advice, asked
from .references import MEANING, References
from .tabular import Table

DIMENSIONS = ("quality", "drift", "overhead", "hypothesis")
CARD_TITLES = {"quality": "Quality kept", "drift": "Drift avoided", "overhead": "Serving overhead", "hypothesis": "The hypothesis"}
VERDICT_MARKS = {"supported": "✓", "contradicted": "✕", "inconclusive": "○"}


@dataclass(frozen=True)
class Strip:
    """Where margin, estimate and interval lie on a card's scale, in per cent of its width."""

    margin: float
    estimate: float
    low: float
    high: float
    holds_from: float
    """The shaded side, where the claim holds: from here ..."""
    holds_to: float


@dataclass(frozen=True)
class Card:
    """One verdict, ready to print."""

    title: str
    mark: str
    claim: Claim
    strip: Strip | None
    facts: tuple[tuple[str, str], ...]
    notes: list[str]


def render(
    findings: Findings, frames: Frames, tables: Mapping[str, Table], drawn: Drawn, root: Path, study: Study, execution: Execution
) -> str:
    """The page; relative links lead from `<root>/results/report.html` to step folders, tables and figures.

    Drawings go in as they are: they are ours, and the XML writer has escaped their texts.
    """
    references = all_references(findings, frames, tables, study)
    environment = Environment(
        loader=PackageLoader("tunescope.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plural": w.plural, "prose": prose, "moment": w.moment}
    finished = [r.step for r in references if r.finished]
    return environment.get_template("report.html.j2").render(
        f=findings, study=study, version=__version__, tables=tables, charts=drawn.charts, undrawn=drawn.missing,
        svgs={name: Markup(inline_svg(chart)) for name, chart in drawn.charts.items()},
        cards=cards(findings.claims), answer=answer(findings), apart=tasks_apart(findings.claims, study.analysis), asked=asked(findings),
        advice=advice(findings), references=references, meaning=MEANING, refs=references.spans,
        serving=serving_facts(frames), machines=provenance.machines(root, finished), model=provenance.model_line(study, frames),
        sources=provenance.data_sources(frames, study, execution), argument=provenance.study_argument(study, execution),
        example=_example(finished), task_name=w.task_name, recompute=reproduce.recompute_command, rerun=reproduce.rerun_command,
        model_steps=provenance.model_steps(study, frames), serve_steps=frames.of_kind("serve"),
        p_phrase=w.p_phrase,
    )  # fmt: skip


def prose(text: str) -> Markup:
    """Escaped text with the page's signs; what stands between backticks becomes code."""
    return Markup(re.sub(r"`([^`<>]+)`", r"<code>\1</code>", str(escape(w.prose(text)))))


def all_references(findings: Findings, frames: Frames, tables: Mapping[str, Table], study: Study) -> References:
    """References to every step the report could name: planned, finished, or named by a claim, a table, a flag or a gap."""
    finished = list(frames.steps.step_id)
    named = {s for table in tables.values() for s in table.steps} | {s for c in findings.claims for s in c.steps}
    named |= {m.step for m in findings.missing} | {flag.step for flag in findings.red_flags}
    named |= {str(s) for name, frame in frames.tables().items() if name != "steps" for s in frame.step_id.unique()}
    return References([*frames.planned, *finished, *sorted(named - {""})], finished, study.tasks)


def cards(claims: Sequence[Claim]) -> list[Card]:
    """The claims on the whole study, one card each, in the order of the question."""
    found = []
    for dimension in DIMENSIONS:
        claim = next((c for c in claims if c.dimension == dimension and c.task is None), None)
        if claim is not None:
            shown = comparable(claim, claims)
            facts = _facts(claim) if shown else (("Estimate", f"none: {w.not_comparable(claim)}"),)
            told = claim if shown else claim.model_copy(update={"weakest_task": None})
            mark = VERDICT_MARKS[claim.verdict]
            found.append(Card(CARD_TITLES[dimension], mark, claim, strip(claim) if shown else None, facts, said(told)))
    return found


def _facts(claim: Claim) -> tuple[tuple[str, str], ...]:
    """Name and value pairs of a card; absent ones are left out."""
    size = [(claim.n_seeds, "seed"), (claim.n_examples, "example"), (claim.n_launches, "launch")]
    said = ", ".join(w.plural(n, word, "launches" if word == "launch" else None) for n, word in size if n)
    side = "at most" if claim.dimension == "overhead" else "at least"
    level = f"{claim.interval_level:.0%} interval".replace("%", f"{w.SPACE}%")
    rows = [
        ("Estimate", w.percent(claim.estimate)), (level, w.percent_interval(claim.interval)),
        ("Margin", w.NONE if claim.margin is None else f"{side} {w.margin_percent(claim.margin)}"),
        ("p", w.p_value(claim.p)), ("p against it", w.p_value(claim.p_opposite)), ("Smallest attainable p", w.p_value(claim.attainable_p)),
        ("df", w.number(claim.df)), ("Measured on", said or w.NONE),
    ]  # fmt: skip
    return tuple((name, value) for name, value in rows if value != w.NONE)


def strip(claim: Claim) -> Strip | None:
    """Places of a claim's numbers on a scale that holds them all; None without an estimate or a margin."""
    if claim.estimate is None or claim.margin is None:
        return None
    low, high = claim.interval or (None, None)
    known = [x for x in (claim.estimate, claim.margin, low, high) if x is not None]
    middle, half = (max(known) + min(known)) / 2, max((max(known) - min(known)) / 2, 1e-6)
    bottom, width = middle - 1.25 * half, 2.5 * half

    def place(x: float) -> float:
        return round(100 * (x - bottom) / width, 2)

    margin, below = place(claim.margin), claim.dimension == "overhead"
    edges = (0.0 if low is None else place(low), 100.0 if high is None else place(high)) if claim.interval else (place(claim.estimate),) * 2
    return Strip(margin, place(claim.estimate), edges[0], edges[1], 0.0 if below else margin, margin if below else 100.0)


_SPEAKS_OF = {"Quality": "quality", "Drift": "drift", "Serving": "hypothesis"}
"""First word of a sentence of the answer -> the claim it tells; the serving sentence ends with the hypothesis."""


def answer(findings: Findings) -> list[tuple[str, list[str]]]:
    """The answer's sentences, each with the steps of the claim it tells (of all claims when that cannot be told)."""
    whole = {c.dimension: c.steps for c in findings.claims if c.task is None}
    everything = sorted({s for steps in whole.values() for s in steps})
    return [(text, whole.get(_SPEAKS_OF.get(text.split(":")[0], ""), everything)) for text in findings.answer]  # type: ignore[call-overload]


def serving_facts(frames: Frames) -> list[str]:
    """What qualifies the serving figures: device and eager mode, as the serve step says."""
    said = []
    for step in frames.of_kind("serve"):
        outputs = frames.outputs(step)
        cpu, eager = outputs.get("cpu_figures") or outputs.get("device") == "cpu", outputs.get("eager")
        if cpu:
            said.append("Measured on a CPU: the figures compare arms on this machine and say nothing about GPUs.")
        if eager:
            said.append("Engines ran in eager mode: no compiled graphs, so absolute times are longer than in production.")
    return [*dict.fromkeys(said)]


def _example(finished: Iterable[str]) -> str:
    """A step to show commands with: a final run when there is one."""
    steps = list(finished)
    return next((s for s in steps if "/final/" in s), steps[0] if steps else "data/sst2")
