"""The page in a real headless browser; skipped where none is installed."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import NAMES, SIZES, Tab, browser, find_browser

from .conftest import Published

PROGRAM = find_browser()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=f"no browser on the PATH ({', '.join(NAMES)}): apt install chromium"),
]
LOOKS = [("desktop", "light"), ("desktop", "dark"), ("narrow", "light"), ("narrow", "dark")]
UNSOURCED = """
[...document.querySelectorAll('main section:not(#reproduce):not(#steps) :is(p, li, tbody tr, figure)')]
  .filter(e => /[0-9]/.test(e.textContent) && !e.closest('.note, .jump, .redo, .absent, .definition, #table-statistics_planned_power'))
  .filter(e => !(e.closest('article, table') || e).querySelector('a[href^="#step"]'))
  .map(e => e.textContent.trim().slice(0, 80))
"""
"""Texts with a number and no step: in their own element or, for a card's notes and a table of one source, beside it."""
CONTRAST = """
(() => {
  const light = c => { const [r, g, b] = c.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)|transparent/.test(c)) return c; } return 'rgb(255, 255, 255)'; };
  const low = [];
  for (const e of document.querySelectorAll('body *:not(svg *)')) {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const [a, b] = [light(getComputedStyle(e).color), light(behind(e))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.push(`${e.tagName}.${e.className}: ${e.textContent.trim().slice(0, 40)}`);
  }
  return [...new Set(low)];
})()
"""


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    assert PROGRAM
    with browser(PROGRAM) as found:
        yield found


@pytest.fixture(scope="module")
def page(published: Published) -> Path:
    return published.root / "results" / "report.html"


@pytest.mark.parametrize(("size", "scheme"), LOOKS)
def test_the_page_is_quiet_fits_and_can_be_read(tab: Tab, page: Path, size: str, scheme: str) -> None:
    tab.open(page, size, scheme)
    assert tab.complaints() == [] and tab.requests() == []
    assert tab.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], "the body scrolls sideways"
    assert tab.evaluate("[...document.querySelectorAll('svg.chart')].filter(e => e.getBoundingClientRect().height < 80).length") == 0
    assert tab.evaluate(CONTRAST) == [], "text below 4.5:1"
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")


def test_the_answer_comes_first_and_is_seen_without_scrolling(tab: Tab, page: Path) -> None:
    for size, (_, height) in SIZES.items():
        tab.open(page, size)
        assert tab.evaluate("document.querySelector('.answer p').getBoundingClientRect().bottom") < height
    tab.open(page, "desktop")
    for part in (".answer", ".advice"):
        assert tab.evaluate(f"document.querySelector('{part}').getBoundingClientRect().bottom") < SIZES["desktop"][1], part
    assert tab.evaluate("document.querySelector('.back').getBoundingClientRect().top") > SIZES["desktop"][1], "it would cover the answer"


def test_what_has_numbers_links_to_steps(tab: Tab, page: Path) -> None:
    tab.open(page)
    assert tab.evaluate(UNSOURCED) == []
    links = "[...document.querySelectorAll('a[href^=\"#\"]')].filter(a => !document.getElementById(a.hash.slice(1))).length"
    assert tab.evaluate(links) == 0


def test_every_figure_and_region_has_a_name(tab: Tab, page: Path) -> None:
    tab.open(page)
    named = "[...document.querySelectorAll('svg.chart, [role=region]')].map(e => (e.getAttribute('aria-label') || '').length)"
    assert min(tab.evaluate(named)) > 3


def test_print_hides_no_row_and_no_note(tab: Tab, page: Path, tmp_path: Path) -> None:
    visible = "[...document.querySelectorAll('tbody tr, ul.notes li')].filter(e => e.checkVisibility({contentVisibilityAuto: true})).length"
    tab.open(page, media="print")
    everything = tab.evaluate("document.querySelectorAll('tbody tr, ul.notes li').length")
    assert tab.evaluate(visible) == everything > 100
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    tab.printed(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_references_work_with_the_keyboard_and_without_script(tab: Tab, page: Path) -> None:
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.open(page)
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    assert tab.evaluate("document.querySelectorAll('svg.chart').length") >= 10
    first = "document.querySelector('.answer sup a')"
    tab.evaluate(f"{first}.click()")
    assert tab.evaluate(f"location.hash === {first}.hash && document.querySelector(':target').matches('tr')") is True
