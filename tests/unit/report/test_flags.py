"""Red flags on the page: by severity, one row a kind, the single ones folded in; the CSV has them all."""

import re
from collections.abc import Callable

from tunescope.analysis.findings import RedFlag
from tunescope.analysis.flag_groups import SEVERITIES
from tunescope.report.tables_gaps import flags_table

from .conftest import Published

RUNS = [f"train/sst2/{m}/final/seed-{s}" for m in ("full", "lora") for s in (42, 1337)]
HIGH = [RedFlag(step=step, text=f"training loss is 0.{k + 2}00 at the end, above 0.1") for k, step in enumerate(RUNS)]
EDGE = RedFlag(step=RUNS[0], text="full on sst2: the selected learning rate 0.001 is on the edge of its grid (0.0005, 0.001)")
NOTE = RedFlag(step="data/sst2", text="scored on 10 of 20 test examples")
LOST = RedFlag(step=RUNS[1], text="missing records: predictions")


def test_flags_come_by_severity_in_groups_with_counts(published: Published) -> None:
    found = published.with_findings(red_flags=[NOTE, *HIGH, EDGE, LOST]).findings
    table = flags_table(found, [*RUNS, "data/sst2", "data/rte"])
    assert [row.cells[:3] for row in table.rows] == [
        ("broken", "records-missing", "1 of 4 training runs"), ("doubtful", "rate-on-edge", "1 flag"),
        ("doubtful", "loss-high", "4 of 4 training runs"), ("note", "part-of-the-data", "1 of 2 data steps"),
    ]  # fmt: skip
    high = table.rows[2]
    assert high.cells[3] == f"{HIGH[0].text} (and 3 more)" and high.steps == tuple(RUNS)
    assert high.more == tuple((flag.step, flag.text) for flag in HIGH) and table.rows[0].more == ()
    assert all(meaning in table.note.lower() for meaning in SEVERITIES.values())
    assert list(table.data.severity) == ["broken", "doubtful", *["doubtful"] * 4, "note"] and len(table.data) == 7


def test_a_flag_on_every_run_is_said_to_tell_none_apart(published: Published) -> None:
    all_of_them, some = (published.with_findings(red_flags=flags).findings for flags in (HIGH, HIGH[:3]))
    assert "tells none of them apart" in flags_table(all_of_them, RUNS).note
    assert "tells none of them apart" not in flags_table(some, RUNS).note
    assert flags_table(some).rows[0].cells[2] == "3 flags", "without the finished steps there is nothing to count against"


def test_the_page_folds_single_flags_each_with_its_step(published: Published, render_page: Callable[[Published], str]) -> None:
    page = render_page(published.with_findings(red_flags=[*HIGH, NOTE]))
    section = page.split('<section id="flags"')[1].split("</section>")[0]
    (folded,) = re.findall(r'<details class="more"><summary>All 4</summary>(.*?)</details>', section, flags=re.S)
    items = re.findall(r"<li>.*?</li>", folded, flags=re.S)
    assert [all(part in item for part in ("#step-T", flag.step, flag.text)) for item, flag in zip(items, HIGH, strict=True)] == [True] * 4
    assert section.count("<tr") == 3 and section.count(HIGH[1].text) == 1
