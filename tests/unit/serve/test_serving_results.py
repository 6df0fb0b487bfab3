"""Sessions of one serving benchmark put together for publishing."""

import json
import shutil
from pathlib import Path

import pytest

PUBLISHED = Path(__file__).parents[3] / "docs" / "results"


def session(folder, arms, launches, digest="a", failed=()):
    folder.mkdir()
    (folder / "asked.json").write_text(
        json.dumps({"command": f"bench {folder.name}", "model": "m", "serving": {"arms": arms, "launches": launches}})
    )
    rows = [
        {"arm": arm, "launch": n, "ok": (arm, n) not in failed, "digest": f"{digest}-{arm}", "from": folder.name}
        for n in range(launches)
        for arm in arms
    ]
    (folder / "launches.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def joined_rows(results, tmp_path, outs):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    folder = results.joined(outs, scratch)
    return json.loads((folder / "asked.json").read_text()), results.read_rows(folder / "launches.jsonl")


def test_launches_of_sessions_are_numbered_on_and_stay_paired(results, tmp_path):
    outs = [session(tmp_path / "one", ["base", "merged"], 3, failed={("base", 2)}), session(tmp_path / "two", ["merged", "base"], 2)]
    asked, rows = joined_rows(results, tmp_path, outs)
    numbers = {arm: sorted(r["launch"] for r in rows if r["arm"] == arm) for arm in ("base", "merged")}
    assert numbers == {"base": [0, 1, 3, 4], "merged": [0, 1, 2, 3, 4]}
    source = {(r["launch"], r["from"]) for r in rows}
    assert source == {(0, "one"), (1, "one"), (2, "one"), (3, "two"), (4, "two")}  # a pair never spans two sessions
    assert asked["serving"] == {"arms": ["base", "merged"], "launches": 5, "open_loop": None} and asked["command"] == "bench one\nbench two"


def test_sessions_stay_known_when_a_published_folder_is_joined_again(results, tmp_path):
    outs = [session(tmp_path / "one", ["merged"], 3), session(tmp_path / "two", ["merged"], 2)]
    (tmp_path / "first").mkdir()
    published = results.joined(outs, tmp_path / "first")
    asked, _ = joined_rows(results, tmp_path, [published, session(tmp_path / "three", ["merged"], 4)])
    assert asked["first_launches"] == [0, 3, 5]


def test_the_baseline_is_told_for_each_session(results):
    def row(launch, ms, arm="merged"):
        cell = {"batch_size": 2, "prompt_length": 256, "output_tokens": 8, "sampling": "greedy", "adapters_active": 0, "note": ""}
        cell |= {"requests": 4, "ms_per_token": ms, "tokens_per_s": 1.0} | {key: [1.0] * 3 for key in ("ttft_ms", "tpot_ms", "latency_ms")}
        return {"arm": arm, "launch": launch, "ok": True, "adapters": [], "cells": [cell]}

    text = results.by_session([row(0, 1.0), row(1, 3.0), row(1, 9.0, "adapters_2"), row(2, 4.0)], [0, 2], "merged")
    assert "| 0 to 1 | merged, adapters_2 | 256 | greedy | 2.00 |" in text  # the median of merged alone
    assert "| 2 | merged | 256 | greedy | 4.00 |" in text


def test_each_session_speaks_for_itself(results):
    """What two sessions say together may be their difference; the ratio within one is not."""

    def row(launch, ms, arm):
        cells = [cell(size, ms) for size in (2, 4, 8, 16)]
        return {"arm": arm, "launch": launch, "ok": True, "cells": cells, "adapters": ["a"] * (arm != "merged")}

    def cell(size, ms):
        return {"batch_size": size, "prompt_length": 256, "sampling": "greedy", "ms_per_token": ms}

    times = {"merged": (2.0, 2.0, 4.0), "adapters_2": (3.0, 3.0, 5.0), "adapters_2_narrow": (2.4, 2.4)}
    rows = [row(n, ms, arm) for arm, each in times.items() for n, ms in enumerate(each)]
    study = results.load_study("lora_vs_full").study
    text = results.within_sessions(rows, {"first_launches": [0, 2]}, study)
    assert "| 0 to 1 | adapters_2 | +50.0% | [+50.0%, +50.0%] | 2 |" in text
    assert "| 0 to 1 | adapters_2_narrow | +20.0% | [+20.0%, +20.0%] | 2 |" in text
    assert "| 2 | adapters_2 | +25.0% | – | 1 |" in text and "| 2 | adapters_2_narrow" not in text
    assert "| adapters_2_narrow | adapters_2 | -20.0% | [-20.0%, -20.0%] | 2 |" in results.against_each_other(rows, study)
    assert results.against_each_other([r for r in rows if r["arm"] != "adapters_2_narrow"], study) == ""


def test_sessions_of_other_set_ups_are_refused(results, tmp_path):
    outs = [session(tmp_path / "one", ["base"], 1), session(tmp_path / "two", ["base"], 1, digest="b")]
    with pytest.raises(ValueError, match=r"two/launches\.jsonl: arm 'base' was not set up as in the sessions before"):
        joined_rows(results, tmp_path, outs)


def test_a_launch_given_twice_is_not_two_samples(results, tmp_path):
    outs = [session(tmp_path / "one", ["base", "merged"], 2), session(tmp_path / "two", ["base", "merged"], 2)]
    (tmp_path / "first").mkdir()
    published = results.joined(outs, tmp_path / "first")
    with pytest.raises(ValueError, match=r"two/launches\.jsonl: launch 0 of 'base' is in a folder before too"):
        joined_rows(results, tmp_path, [published, outs[1]])


def test_sessions_of_another_model_or_grid_are_refused_also_without_a_shared_arm(results, tmp_path):
    outs = [session(tmp_path / "one", ["base"], 1), session(tmp_path / "two", ["merged"], 1)]
    asked = json.loads((outs[1] / "asked.json").read_text())
    (outs[1] / "asked.json").write_text(json.dumps(asked | {"model": "another"}))
    with pytest.raises(ValueError, match=r"two/asked\.json: another model than in .*one"):
        joined_rows(results, tmp_path, outs)


def opened(folder, **other):
    asked = json.loads((folder / "asked.json").read_text())
    asked["serving"]["open_loop"] = {"arms": ["base"], "launches": 2, "requests": 500} | other
    (folder / "asked.json").write_text(json.dumps(asked))
    return folder


def test_sessions_with_and_without_an_open_loop_are_one_benchmark(results, tmp_path):
    outs = [session(tmp_path / n, ["base"], 1) for n in ("one", "two", "three")]
    opened(outs[1]), opened(outs[2], arms=["merged"], launches=1)
    asked, _ = joined_rows(results, tmp_path, outs)
    assert asked["serving"]["open_loop"] == {"arms": ["base", "merged"], "launches": 3, "requests": 500}


def test_open_loops_of_other_loads_are_refused(results, tmp_path):
    outs = [session(tmp_path / n, ["base"], 1) for n in ("one", "two", "three")]
    opened(outs[1]), opened(outs[2], requests=100)
    with pytest.raises(ValueError, match=r"three/asked\.json: another open_loop\.requests"):
        joined_rows(results, tmp_path, outs)


def test_one_session_that_serves_something_else_shows(results, tmp_path):
    outs = [session(tmp_path / "one", ["base"], 1), session(tmp_path / "two", ["base"], 1)]
    for out, ok in zip(outs, (True, False), strict=True):
        (out / "correctness.json").write_text(json.dumps({"ok": ok}))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert json.loads((results.joined(outs, scratch) / "correctness.json").read_text()) == {"ok": False}


def test_the_page_warns_of_other_outputs(results, tmp_path):
    published, changed = PUBLISHED / "serving-h100", tmp_path / "changed"
    shutil.copytree(published, changed)
    checked = json.loads((changed / "correctness.json").read_text())
    (changed / "correctness.json").write_text(json.dumps(checked | {"ok": False}))
    results.publish([changed], tmp_path / "page")
    assert "**Served outputs differ from their references" in (tmp_path / "page" / "README.md").read_text()
    assert "Served outputs differ" not in (published / "README.md").read_text()


@pytest.mark.parametrize("folder", sorted(p for p in PUBLISHED.iterdir()), ids=lambda p: p.name)
def test_a_published_page_is_what_its_launches_give(results, tmp_path, folder):
    results.publish([folder], tmp_path)
    for name in ("README.md", "cells.csv", "launches.jsonl"):
        assert (tmp_path / name).read_text() == (folder / name).read_text(), f"publish {folder.name} again: {name} is not of its launches"
