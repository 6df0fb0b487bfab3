"""Download or read the four tasks and prepare them: `tunescope data STUDY` with `--study`."""

import sys


def main() -> int:
    from tunescope.doors import verb

    return verb("data", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
