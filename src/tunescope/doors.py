"""What the scripts in experiments/, analysis/ and scripts/ share: `--study` and `--check` in front of the command line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

DEFAULT_STUDY = "studies/lora_vs_full.yaml"
"""In a checkout; elsewhere the built-in study of the same name."""
DEMONSTRATION = {"report": ("--kind", "statistics"), "data": ("--kind", "data"), "validate": ()}
"""What `--check` shows for verbs other than `run`."""


def run(arguments: Sequence[str], *fixed: str) -> int:
    """`tunescope run STUDY <fixed> <further options>`; with `--check` a demonstration of the same kinds. Returns the exit code."""
    return verb("run", arguments, *fixed)


def verb(name: str, arguments: Sequence[str], *fixed: str) -> int:
    """`tunescope <name> STUDY <fixed> <further options>`; `--help` shows the verb's own options."""
    from tunescope.cli import main

    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--study")
    parser.add_argument("--check", action="store_true")
    known, rest = parser.parse_known_args(list(arguments))
    if known.check:
        return main(["check", known.study or "quickstart", *(fixed or DEMONSTRATION[name]), *rest])
    default = DEFAULT_STUDY if Path(DEFAULT_STUDY).is_file() else Path(DEFAULT_STUDY).stem
    return main([name, known.study or default, *fixed, *rest])
