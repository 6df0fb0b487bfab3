"""Published frames, read back in one line."""

from pathlib import Path

import pandas as pd
import pytest

import tunescope
from tunescope.errors import PrerequisiteError

from .conftest import Published


def test_frames_come_back_as_they_were_published(published: Published) -> None:
    for path in (published.root, str(published.root / "results")):
        read = tunescope.load_results(path)
        for name, frame in published.frames.tables().items():
            pd.testing.assert_frame_equal(read.tables()[name].reset_index(drop=True), frame.reset_index(drop=True), check_dtype=False)
        assert read.planned == published.frames.planned


def test_a_prompt_shows_study_counts_and_verdicts_in_five_lines(published: Published) -> None:
    read = tunescope.load_results(published.root)
    lines = repr(read).splitlines()
    assert len(lines) == 5 and all(len(line) < 250 for line in lines)
    assert lines[0] == f"tunescope results of 'simulated' ({published.findings.generated})"
    for claim in published.findings.claims:
        assert (f"{claim.id} {claim.verdict}" in lines[1]) == (claim.task is None)
    assert lines[2] == f"steps: {len(read.steps)} of {len(read.planned)} finished"
    assert f"metrics {len(read.metrics):,}, " in lines[3]
    assert repr(published.frames).startswith("tunescope tables\nsteps: ")


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="tunescope report"):
        tunescope.load_results(tmp_path)


def test_the_name_of_a_study_is_answered_with_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrerequisiteError, match="did you mean 'runs/mine'"):
        tunescope.load_results("mine")
    for elsewhere in ("other", tmp_path / "runs" / "mine"):
        with pytest.raises(PrerequisiteError, match=r"^(?!.*did you mean)"):
            tunescope.load_results(elsewhere)
