"""Majority, random and zero-shot baselines: `tunescope run STUDY --kind baseline` with `--study`, `--task`, `--seed` and more."""

import sys


def main() -> int:
    from tunescope.doors import run

    return run(sys.argv[1:], "--kind", "baseline")


if __name__ == "__main__":
    sys.exit(main())
