"""The first screen: what was asked, the answer, what to do and when that holds."""

import re
from collections.abc import Callable
from html import unescape

from tunescope.analysis.findings import Findings, Reason
from tunescope.report.first_page import advice

from .conftest import Published

Page = Callable[[Published], str]
HELD = "a small model, three seeds"


def first_screen(page: str) -> tuple[str, str]:
    """Its HTML before the cards, and its text with plain spaces and without step links."""
    html = page.split('<div class="cards">')[0]
    text = re.sub(r"<[^>]+>", "", re.sub(r"<sup.*?</sup>", "", html))
    return html, re.sub(r"\s+", " ", unescape(text)).replace("−", "-").replace(" %", "%")


def advised(findings: Findings, *rows: tuple[str, str, str, str]) -> Findings:
    return findings.model_copy(update={"statistics": {"advice": {"rows": [list(row) for row in rows]}}})


def test_it_asks_answers_and_advises_with_conditions_before_the_cards(published: Published) -> None:
    html, text = first_screen(published.page)
    whole = next(c for c in published.findings.claims if c.id == "hypothesis")
    assert f"does it hold that {whole.statement.replace(' %', '%')}?" in text
    rows = [row for row in published.findings.statistics["advice"]["rows"] if row[0] != "Serving in detail"]
    assert {row[3] for row in rows} == {"quality/sst2", "quality/squad_v2", "drift/all", "overhead"}
    for _, told, held, _ in rows:
        assert told.replace(" %", "%") in text and f"Holds for {held}." in text
    lines = re.findall(r"<li>.*?</li>", html.split('<div class="advice">')[1], flags=re.S)
    assert len(lines) == len(rows) and all("#step-" in line for line in lines)


def test_tasks_with_the_same_advice_share_a_line_with_the_steps_of_both(published: Published) -> None:
    f = published.findings
    sst2, squad = ("Which method for SST-2?", "neither", HELD, "quality/sst2"), ("Which?", "neither", HELD, "quality/squad_v2")
    drift = ("Drift?", "no ground", HELD, "drift/all")
    serving = [("Merge?", "not decided", "a CPU", "overhead"), ("Serving in detail", "more", "a CPU", "overhead")]
    both, alone = advice(advised(f, sst2, squad, drift, *serving))
    assert [line[:2] for line in both.lines] == [["Which method for SST-2, SQuAD v2?", "neither"], ["Drift?", "no ground"]]
    steps = {s for c in f.claims if c.id in ("quality/sst2", "quality/squad_v2") for s in c.steps}
    assert set(both.lines[0][2]) == steps and both.holds_for == HELD
    assert [line[1] for line in alone.lines] == ["not decided"], "details stay in the table"
    assert len(advice(advised(f, sst2, (*squad[:1], "use lora", *squad[2:])))[0].lines) == 2


def test_a_study_without_anything_to_compare_gives_no_advice(published: Published, render_page: Page) -> None:
    assert "No advice yet" in render_page(published.with_findings(statistics={}))


def test_a_task_apart_from_the_whole_is_explained_where_it_happens(published: Published, render_page: Page) -> None:
    assert '<p class="apart">' not in published.page, "here all verdicts of a dimension agree"
    changed = [
        c.model_copy(update={"verdict": "inconclusive", "reasons": [Reason(kind="gate_failed", text="no", task="squad_v2")]})
        if c.id in ("quality/all", "quality/squad_v2") else c.model_copy(update={"verdict": "supported"})
        for c in published.findings.claims
    ]  # fmt: skip
    html, text = first_screen(render_page(published.with_findings(claims=changed)))
    (told,) = re.findall(r'<p class="apart">.*?</p>', html, flags=re.S)
    assert "#step-" in told and "Quality, task by task: the claim is supported for SST-2" in text and "SQuAD v2 cannot" in text


def test_cards_show_no_numbers_where_nothing_can_be_compared(published: Published, render_page: Page) -> None:
    failed = [Reason(kind="gate_failed", text="the gate failed", task="sst2")]
    changed = [c.model_copy(update={"reasons": failed}) if c.dimension == "quality" else c for c in published.findings.claims]
    page = render_page(published.with_findings(claims=changed))
    card = page.split("<article")[1].split("</article>")[0]
    assert (
        "Quality kept" in card
        and "none: gate failed" in card
        and "interval" not in card
        and 'class="strip"' not in card
        and "weakest task" not in card
    )
    assert 'class="strip"' in page.split("<article")[2]
