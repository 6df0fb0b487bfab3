"""Reproducibility checks: `tunescope validate STUDY [--full-test]` with `--study`."""

import sys


def main() -> int:
    from tunescope.doors import verb

    return verb("validate", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
