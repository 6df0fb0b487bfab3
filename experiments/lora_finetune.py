"""LoRA fine-tuning: search and final runs: `tunescope run STUDY --kind train --method lora` with `--study`, `--task`, `--seed` and more."""

import sys


def main() -> int:
    from tunescope.doors import run

    return run(sys.argv[1:], "--kind", "train", "--method", "lora")


if __name__ == "__main__":
    sys.exit(main())
