"""Statistics, figures and report: `tunescope report STUDY` with `--study`."""

import sys


def main() -> int:
    from tunescope.doors import verb

    return verb("report", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
