"""What the scripts in experiments/, analysis/ and scripts/ share: a `--study` option in front of the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

DEFAULT_STUDY = "studies/lora_vs_full.yaml"
"""In a checkout; elsewhere the built-in study of the same name."""


def run(arguments: Sequence[str], *fixed: str) -> int:
    """`tunescope run STUDY <fixed> <further options>`; returns its exit code."""
    return verb("run", arguments, *fixed)


def verb(name: str, arguments: Sequence[str], *fixed: str) -> int:
    """`tunescope <name> STUDY <fixed> <further options>`; `--help` shows the verb's own options."""
    from tunescope.cli import main

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--study", default=DEFAULT_STUDY if Path(DEFAULT_STUDY).is_file() else Path(DEFAULT_STUDY).stem)
    known, rest = parser.parse_known_args(list(arguments))
    return main([name, known.study, *fixed, *rest])
