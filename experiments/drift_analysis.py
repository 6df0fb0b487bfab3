"""Base representations and drift of all runs: `tunescope run STUDY --kind base-probe --kind drift`.

Takes `--study`, `--task`, `--seed` and more.
"""

import sys


def main() -> int:
    from tunescope.doors import run

    return run(sys.argv[1:], "--kind", "base-probe", "--kind", "drift")


if __name__ == "__main__":
    sys.exit(main())
