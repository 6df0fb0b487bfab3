"""The search as W&B sweeps: what the files say, whether W&B takes them, and whether its agent can run them."""

import itertools
import json
import os
import queue
import sys
from pathlib import Path

import pytest
import yaml

from tunescope.errors import StudyError
from tunescope.study.load import load_study
from tunescope.study.plan import build_plan
from tunescope.study.sweep import search_step, sweeps


def exported(name, *overrides):
    file = load_study(name, overrides)
    plan = build_plan(file.study)
    return file, plan, sweeps(file, plan.steps, name, overrides)


def points(config):
    names = list(config["parameters"])
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*(config["parameters"][n]["values"] for n in names))]


@pytest.mark.parametrize("name", ["lora_vs_full", "ablations", "peft_variants", "quickstart"])
def test_the_points_are_the_search_runs_in_equal_budgets(name):
    file, plan, found = exported(name)
    meant = []
    for config in found.values():
        command = config["command"]
        task, method = (command[command.index(option) + 1] for option in ("--task", "--method"))
        meant += [search_step(plan, task, method, **point).id for point in points(config)]
    assert sorted(meant) == sorted(s.id for s in plan.steps if s.role == "search")
    sizes = {(key.split("-")[0], len(points(config))) for key, config in found.items()}
    assert len(sizes) == len(file.study.tasks)


def test_one_file_in_full():
    _, _, found = exported("lora_vs_full", "training.max_epochs=1")
    assert found["squad_v2-full.yaml"] == {
        "name": "lora_vs_full squad_v2 full",
        "project": "NLP-Phase1-Training",
        "program": "tunescope",
        "command": [
            "${env}", "${interpreter}", "-m", "${program}", "search", "lora_vs_full", "--task", "squad_v2", "--method", "full",
            "--set", "training.max_epochs=1", "${args}",
        ],
        "method": "grid",
        "metric": {"name": "selection_loss", "goal": "minimize"},
        "parameters": {"learning_rate": {"values": [5e-6, 1e-5]}, "batch_size": {"values": [8, 16]}},
    }  # fmt: skip


def test_wandbs_own_schema_and_grid_take_every_file():
    """The validator of `wandb sweep --controller`, which the server's follows: no violation, and its grid search visits our points."""
    engine = pytest.importorskip("sweeps", reason="W&B's sweep engine: pip install --no-deps sweeps jsonref")
    for name in ("lora_vs_full", "ablations", "peft_variants"):
        for config in exported(name)[2].values():
            config = yaml.safe_load(yaml.safe_dump(config, sort_keys=False))
            assert engine.schema_violations_from_proposed_config(config) == []
            runs = []
            while (proposed := engine.next_run(config, runs)) is not None:
                runs.append(proposed)
            visited = [(run.config["learning_rate"]["value"], run.config["batch_size"]["value"]) for run in runs]
            assert sorted(visited) == sorted((p["learning_rate"], p["batch_size"]) for p in points(config))
    assert engine.schema_violations_from_proposed_config({**config, "metric": {"goal": "minimize"}})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (("sst2", "lora", 1e-3, 8), r"at learning rate 0.001, batch size 8; sst2 lora has lr0.003-bs16, lr0.01-bs16"),
        (("sst2", "lorra", 1e-3, 8), r"searched are mrpc full, mrpc lora"),
    ],
)
def test_a_setting_outside_the_grid_is_named(setting, message):
    with pytest.raises(StudyError, match=message):
        search_step(build_plan(load_study("quickstart").study), *setting)


def test_nothing_to_search_is_an_error():
    one = ["methods.full.learning_rates=[1e-3]", "methods.lora.learning_rates=[1e-3]", "tasks.sst2.batch_sizes=[8]"]
    with pytest.raises(StudyError, match="nothing to search"):
        exported("quickstart", *one)


TINY = """
study:
  name: tiny
  model: {name: sprout-2m}
  data: {source: sample}
  tasks: {sst2: {max_length: 96, limits: {train: 32, selection: 16, test: 16}}}
  methods:
    full: {warmup_ratio: 0.1, learning_rates: [1e-3, 2e-3]}
    lora: {warmup_ratio: 0.06, learning_rates: [3e-3, 1e-2], adapter: {r: 4}}
  seeds: [42]
  training: {batch_sizes: [8], max_steps: 2, eval_every: 1, log_every: 1}
  drift: {probe_examples: 24}
  serving: null
"""


@pytest.mark.slow
def test_wandbs_agent_runs_a_point_without_a_server(tmp_path, monkeypatch):
    """`wandb agent`'s own code substitutes the values and starts the command; the training step becomes the agent's run."""
    from wandb.wandb_agent import Agent

    from tunescope.cli import main

    for key, value in {"WANDB_MODE": "offline", "WANDB_SWEEP_ID": "sweep123", "WANDB_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(key, value)
    for key in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # the agent sets them in this process
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text(TINY)
    assert main(["export", "tiny.yaml", "sweeps", "--sweep"]) == 0
    config = yaml.safe_load(Path("sweeps/sst2-lora.yaml").read_text())
    agent = Agent(None, queue.Queue(), sweep_id="sweep123")
    agent._sweep_command = config["command"]
    point = points(config)[1]
    agent._command_run({"run_id": "run00042", "program": config["program"], "args": {k: {"value": v} for k, v in point.items()}})
    assert agent._run_processes["run00042"].wait(timeout=400) == 0
    folder = Path("runs/tiny/steps/train/sst2/lora/search-lr0.01-bs8/seed-42")
    result = json.loads((folder / "result.json").read_text())
    assert result["outputs"]["learning_rate"] == 0.01 and result["outputs"]["batch_size"] == 8
    offline = [p.name.rsplit("-", 1)[1] for p in folder.glob("wandb/offline-run-*")]
    assert offline == ["run00042"]
    data = [p.name.rsplit("-", 1)[1] for p in Path("runs/tiny/steps/data").glob("**/wandb/offline-run-*")]
    assert len(data) == 1 and data != offline
    assert not Path("runs/tiny/steps/train/sst2/full").exists()
