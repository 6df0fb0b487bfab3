"""The serving benchmark: `tunescope run STUDY --kind serve` with `--study`, `--task`, `--seed` and more."""

import sys


def main() -> int:
    from tunescope.doors import run

    return run(sys.argv[1:], "--kind", "serve")


if __name__ == "__main__":
    sys.exit(main())
