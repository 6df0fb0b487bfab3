"""The ablation studies at their smallest: every method trains, and the report sets them beside full fine-tuning."""

import csv

import pytest

from tunescope.study.load import load_study

pytestmark = pytest.mark.slow
SMALL = (
    "model.name=sprout-2m", "data.source=sample", "seeds=[42]", "training.max_steps=4", "training.eval_every=2",
    "training.checkpoint_every=4", "training.log_every=1", "training.batch_sizes=[8]", "drift.probe_examples=24", "drift.every=4",
    "drift.early_steps=[1]", "analysis.bootstrap_draws=200", "analysis.permutation_draws=1000", "execution.threads=1",
    "execution.tracking.wandb=off", "tasks.sst2.limits={train: 48, selection: 24, test: 24}",
)  # fmt: skip


@pytest.mark.parametrize("name", ["ablations", "peft_variants"])
def test_a_study_of_many_methods_ends_in_its_tables(cli, name):
    methods = load_study(name).study.methods
    rates = [f"methods.{m}.learning_rates=[{max(spec.learning_rates)}]" for m, spec in methods.items()]  # nothing to search
    settings = cli.settings(*SMALL, *rates)
    cli("run", name, "--task", "sst2", "--display", "plain", *settings)
    cli("report", name, *settings)  # a part of a study is run without one
    finals = {i.split("/")[2] for i in cli.results(name) if i.startswith("train/")}
    assert finals == set(methods)
    results = cli.folder / "runs" / name / "results"
    for table in ("ablation", "convergence", "merge"):
        rows = list(csv.DictReader((results / "tables" / f"statistics_{table}.csv").open()))
        assert {row["method"] for row in rows} == set(methods) - ({"full"} if table == "merge" else set()), table
    page = (results / "report.html").read_text()
    assert "Methods and ablations" in page and "Convergence against the reference method" in page
    assert all(f"train/sst2/{m}/final/seed-42" in page for m in methods)
