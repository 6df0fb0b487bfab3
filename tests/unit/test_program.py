"""The printed command runs as typed, wherever the program was installed and however it was started."""

import os
import subprocess
import sys

import pytest

from tunescope.program import command, program


@pytest.fixture
def venv(tmp_path, monkeypatch):
    """An environment that no PATH leads to, in the working folder."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", "tunescope", "wandb"):
        (folder / name).write_text("#!/bin/sh\necho started $0 $@\n")
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    return folder


def test_an_environment_that_is_not_active_is_named_by_its_path(venv, tmp_path, monkeypatch):
    assert command("plan", "my study.yaml") == ".venv/bin/tunescope plan 'my study.yaml'"
    done = subprocess.run(command("plan", "my.yaml"), shell=True, capture_output=True, text=True, check=True)
    assert done.stdout == "started .venv/bin/tunescope plan my.yaml\n"
    assert program("wandb") == ".venv/bin/wandb"
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path / "elsewhere", venv):
        monkeypatch.chdir(folder)
        assert program() == str(venv / "tunescope")


def test_an_active_environment_or_a_link_to_it_needs_the_name_only(venv, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(venv))
    assert command("run", "quickstart") == "tunescope run quickstart"
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "tunescope").symlink_to(venv / "tunescope")
    monkeypatch.setenv("PATH", str(tmp_path / "links"))
    assert program() == "tunescope"


def test_another_installation_on_the_path_is_not_this_program(venv, tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    (venv / "tunescope").rename(tmp_path / "other" / "tunescope")
    (venv / "tunescope").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path / "other"))
    assert program() == ".venv/bin/tunescope"


def test_without_an_installed_command_python_starts_it(venv):
    (venv / "tunescope").unlink()
    (venv / "wandb").unlink()
    assert command("run", "x") == ".venv/bin/python -m tunescope run x"
    assert program("wandb") == "wandb"
