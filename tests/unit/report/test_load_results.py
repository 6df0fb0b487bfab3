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


def test_an_empty_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PrerequisiteError, match="tunescope report"):
        tunescope.load_results(tmp_path)
