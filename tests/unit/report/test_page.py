"""The page: escaping, traceability, self-containment, partial studies."""

import re
from collections.abc import Callable
from html.parser import HTMLParser

import pytest

from tunescope.analysis.findings import Findings, Limitation, Missing, Reason, RedFlag, RegisteredPlan, Reservation
from tunescope.report.html import cards, strip

from .conftest import NOW, Published

Page = Callable[[Published], str]
VOID = {"meta", "link", "br", "img", "input", "hr"}
ATTACK = "<script>alert('x')</script> & \"quoted\""


class Reader(HTMLParser):
    """Collects what tests ask about, and checks that tags are balanced."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]


def test_untrusted_text_is_escaped_everywhere(published: Published, render_page: Page) -> None:
    f = published.findings
    shown = {
        "task": "sst2", "example_id": ATTACK, "label": ATTACK, "predictions": {"full": ATTACK, "lora": "`<b>`"},
        "agreement": {}, "right": {}, "steps": [],
    }  # fmt: skip
    said = {"reasons": [Reason(kind="no_variation", text=ATTACK)], "reservations": [Reservation(kind="plan", text=ATTACK)]}
    claims = [c.model_copy(update={"statement": ATTACK, "notes": [ATTACK], "estimate_name": ATTACK, **said}) for c in f.claims]
    statistics = {"x": {"title": ATTACK, "columns": [ATTACK], "rows": [[ATTACK]], "note": ATTACK, "steps": []}}
    page = render_page(
        published.with_findings(
            title=ATTACK, answer=[ATTACK] * 3, claims=claims, disagreements=[shown],
            limitations=[Limitation(text=ATTACK, steps=[])], statistics=statistics,
            red_flags=[RedFlag(step="serve", text=ATTACK)], missing=[Missing(step="serve", state="failed", why=ATTACK)],
        )
    )  # fmt: skip
    reader = Reader(page)
    assert "<script" not in page and not reader.all("script") and not reader.all("b")[0:0]
    assert page.count("&lt;script&gt;") >= 15
    assert ATTACK in " ".join(reader.text)


def test_needs_no_network_and_no_script(published: Published) -> None:
    reader = Reader(published.page)
    loads = [a[k] for _, a in reader.tags for k in ("src", "href", "srcset", "data", "action") if a.get(k)]
    assert not any(re.match(r"(?i)(https?:)?//|javascript:", str(x)) for x in loads)
    assert not re.search(r"@import|url\(\s*['\"]?(?:https?:)?//", published.page)
    assert not reader.all("script") and not reader.all("iframe") and not any(k.startswith("on") for _, a in reader.tags for k in a)
    assert reader.all("link") == [{"rel": "icon", "href": "data:,"}]


def test_every_reference_resolves_in_the_list_of_steps(published: Published) -> None:
    reader = Reader(published.page)
    ids = [a["id"] for _, a in reader.tags if a.get("id")]
    assert len(ids) == len(set(ids))
    targets = [str(a["href"])[1:] for a in reader.all("a") if str(a.get("href")).startswith("#")]
    assert set(targets) <= set(ids) and sum(t.startswith("step-") for t in targets) > 50
    folders = [str(a["href"]) for a in reader.all("a") if str(a.get("href")).startswith("../steps/")]
    assert len(folders) == len(published.frames.steps)
    assert all((published.root / "results" / f).resolve().is_dir() for f in folders)


def test_written_files_that_the_page_links_to_exist(published: Published) -> None:
    links = [str(a["href"]) for a in Reader(published.page).all("a") if re.match(r"(tables|figures)/", str(a.get("href")))]
    assert len(links) > 40 and all((published.root / "results" / link).is_file() for link in links)


def test_every_table_row_every_card_and_sentence_is_traceable(published: Published) -> None:
    sections = published.page.split("<section")[1:]
    body = [s for s in sections if not re.match(r' id="(reproduce|steps)"', s)]
    for table in re.findall(r"<table>.*?</table>", "".join(body), flags=re.S):
        caption = re.search(r"<caption>(.*?)</caption>", table, flags=re.S)
        assert caption
        if "step-" in caption[1] or "before the runs" in caption[1]:
            continue
        rows = re.findall(r"<tr.*?</tr>", table.split("<tbody>")[1], flags=re.S)
        assert rows and all("#step-" in row for row in rows), caption[1]
    for card in re.findall(r"<article.*?</article>", published.page, flags=re.S):
        assert "#step-" in card
    answer = re.search(r'<div class="answer">(.*?)</div>', published.page, flags=re.S)
    assert answer and all("#step-" in p for p in re.findall(r"<p>.*?</p>", answer[1], flags=re.S))
    assert len(re.findall(r"<figure", published.page)) == len(re.findall(r"<figcaption>(?=.*?#step-)", published.page))


def test_order_and_headings(published: Published) -> None:
    reader = Reader(published.page)
    order = [a["id"] for a in reader.all("section")]
    assert order == [
        "answer", "completeness", "quality", "drift", "serving", "statistics", "disagreements", "flags", "limits", "provenance",
        "reproduce", "steps",
    ]  # fmt: skip
    assert len(reader.all("h1")) == 1 and len(reader.all("h2")) == len(order)
    assert len(re.findall("<table", published.page)) == len(re.findall("<caption", published.page))


def test_page_tells_what_the_findings_say(published: Published) -> None:
    text = re.sub(r"\s+", " ", " ".join(Reader(published.page).text)).replace("\u00a0", " ")
    assert "22 of 22" in text or f"{published.findings.steps_done} of {published.findings.steps_planned}" in text
    assert "not measured here" in text and "say nothing about GPUs" in text and "eager" in text
    assert "2025-01-02 03:04 UTC" in text and "tunescope report runs/simulated/study.yaml" in text
    for claim in published.findings.claims:
        assert claim.verdict in text


def test_dark_print_and_narrow_are_styled(published: Published) -> None:
    for wanted in ("prefers-color-scheme: dark", "@media print", "overflow-x: auto", 'name="viewport"'):
        assert wanted in published.page


def test_same_input_same_page(published: Published, render_page: Page) -> None:
    assert render_page(published) == render_page(published)


def test_partial_findings_render_and_name_what_is_missing(published: Published, render_page: Page) -> None:
    gone = {s for s in published.frames.steps.step_id if s == "serve" or "/lora/final/" in s}
    partial = Published(published.root, published.study, published.frames.without(gone), published.findings, "")
    missing = [Missing(step=s, state="failed", why="out of memory") for s in sorted(gone)]
    page = render_page(partial.with_findings(missing=missing, complete=False, serving=[], steps_done=3))
    reader = Reader(page)
    assert "partial report" in page and page.count("out of memory") == len(gone)
    assert "No serving cell has been measured" in page
    links = [a.get("href") for a in reader.all("a")]
    assert "../steps/serve/" not in links, "a step without a result has no link to a folder"


def test_an_empty_study_renders(published: Published, render_page: Page) -> None:
    empty = Findings(
        study="s", title="", generated=NOW, complete=False, steps_done=0, steps_planned=0, missing=[], answer=[], table=[],
            registered_plan=RegisteredPlan(sha256="0", registered=None, changes=[], added_seeds=[]), claims=[],
        baselines=[], costs=[], serving=[], statistics={}, disagreements=[], red_flags=[], limitations=[],
    )  # fmt: skip
    frames = published.frames.without(set(published.frames.steps.step_id))
    page = render_page(Published(published.root, published.study, frames, empty, ""))
    Reader(page)
    assert "Nothing can be said yet" in page


def test_strip_places_margin_estimate_and_interval(published: Published) -> None:
    claim = next(c for c in published.findings.claims if c.id == "overhead")
    exact = claim.model_copy(update={"estimate": 0.1, "margin": 0.3, "interval": (0.05, 0.15)})
    found = strip(exact)
    assert found and found.low < found.estimate < found.high < found.margin
    assert (found.holds_from, found.holds_to) == (0.0, found.margin)
    assert found.estimate - found.low == pytest.approx(found.high - found.estimate, abs=0.02)
    open_end = strip(exact.model_copy(update={"interval": (0.05, None)}))
    assert open_end and open_end.high == 100.0
    assert strip(exact.model_copy(update={"estimate": None})) is None


def test_cards_follow_the_question(published: Published) -> None:
    assert [c.claim.dimension for c in cards(published.findings.claims)] == ["quality", "drift", "overhead", "hypothesis"]
