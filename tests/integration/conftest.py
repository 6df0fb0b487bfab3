"""The quickstart at its smallest, run once for all integration tests, through the installed command as a user would."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tunescope.run.files import files_below

SMALLEST = (
    "training.max_steps=6",
    "tasks.sst2.max_steps=6",
    "training.eval_every=3",
    "training.checkpoint_every=3",
    "training.log_every=1",
    "seeds=[42,1337]",
    "drift.probe_examples=24",
    "drift.every=3",
    "drift.early_steps=[1]",
    "serving.arms=[base,full,merged,adapters_2]",
    "serving.prompt_lengths=[32]",
    "serving.output_tokens=4",
    "serving.prompts_per_cell=4",
    "serving.batch_sizes=[2]",
    "serving.launches=1",
    "analysis.overhead_batch_sizes=[2]",
    "analysis.overhead_prompt_length=32",
    "analysis.bootstrap_draws=200",
    *(f"tasks.{task}.limits={{train: 48, selection: 24, test: 24}}" for task in ("mrpc", "sst2", "rte", "squad_v2")),
)


@dataclass
class Cli:
    """Runs `tunescope` in a working folder of its own."""

    folder: Path
    smallest: list[str]
    """Options that make the quickstart as small as it gets."""

    def __call__(self, *args: str, code: int | None = 0, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "tunescope", *args], cwd=self.folder, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        assert code is None or done.returncode == code, f"exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done

    def start(self, *args: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tunescope", *args], cwd=self.folder, env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    @property
    def env(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if not k.startswith("WANDB")} | {"WANDB_MODE": "offline"}

    def results(self, study: str) -> dict[str, dict]:
        """Step id -> result.json of every finished step."""
        root = self.folder / "runs" / study / "steps"
        found = [p for p in files_below(root) if p.name == "result.json"]
        return {str(p.parent.relative_to(root)): json.loads(p.read_text()) for p in found}

    @staticmethod
    def settings(*items: str) -> list[str]:
        return [part for item in items for part in ("--set", item)]


@pytest.fixture(scope="session")
def has_vllm() -> bool:
    return find_spec("vllm") is not None


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory, has_vllm) -> Cli:
    """A finished smallest quickstart; without vLLM its serve step is left out."""
    smallest = Cli.settings(*SMALLEST, *(() if has_vllm else ("serving=null",)))
    cli = Cli(tmp_path_factory.mktemp("quickstart"), smallest)
    cli("run", "quickstart", "--display", "plain", *smallest)
    return cli


@pytest.fixture
def cli(tmp_path) -> Cli:
    """The command in an empty folder."""
    return Cli(tmp_path, [])
