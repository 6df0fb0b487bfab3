"""The command under every table: it names the table, and the steps behind it."""

import re
import shlex
from html import unescape

import pytest

from tunescope.errors import StudyError
from tunescope.report.reproduce import all_tables, recompute_command, rerun_command, table_csv
from tunescope.run.selection import Selection, select
from tunescope.study.plan import build_plan

from .conftest import Published


def test_every_table_of_the_page_has_its_commands(published: Published) -> None:
    tables = all_tables(published.findings, "lora")
    found = [unescape(code) for code in re.findall(r"<details class=\"redo\">.*?<code>(.*?)</code>", published.page, flags=re.S)]
    assert sorted(found) == sorted(recompute_command("runs/simulated/study.yaml", name) for name in tables)


def test_a_table_computed_again_is_the_published_one(published: Published) -> None:
    for name in all_tables(published.findings, "lora"):
        text = (published.root / "results" / "tables" / f"{name}.csv").read_text(encoding="utf-8")
        assert table_csv(published.findings, "lora", name) == text


def test_an_unknown_table_is_refused_with_the_names_there_are(published: Published) -> None:
    with pytest.raises(StudyError, match=r"--table nope: no such table.*claims, master"):
        table_csv(published.findings, "lora", "nope")
    with pytest.raises(StudyError, match="did you mean 'claims'"):
        table_csv(published.findings, "lora", "clams")


def test_the_command_for_the_steps_behind_a_table_selects_them_all(published: Published) -> None:
    plan = build_plan(published.study)
    for table in all_tables(published.findings, "lora").values():
        if table.steps:
            words = shlex.split(rerun_command("my study.yaml", table.steps))
            assert words[:3] == ["tunescope", "run", "my study.yaml"] and words[3::2] == ["--only"] * (len(words[3:]) // 2)
            assert set(table.steps) <= select(plan, Selection(only=words[4::2])).named
