"""The pinned lists that `make` installs."""

from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def names(listed):
    lines = (line.split("#")[0].strip() for line in (ROOT / listed).read_text().splitlines())
    found = [Requirement(line) for line in lines if line]
    assert all(len(pin.specifier) == 1 and str(pin.specifier).startswith("==") for pin in found), f"{listed}: not every package is pinned"
    return {canonicalize_name(pin.name) for pin in found}


def test_lists_that_are_installed_at_once_share_no_package():
    """Two pips that write the same package's files at the same time would leave either, or a mixture."""
    study, serve = names("requirements.txt"), names("requirements/serve-cpu.txt")
    assert len(study) > 50 and len(serve) > 50 and not study & serve
