"""The whole quickstart at its smallest, used as its user would: run, run again, damage, change, kill."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from html import unescape

import jsonschema
import pandas as pd
import pytest

from tunescope.analysis.documents import DOCUMENTS

TASKS = ("mrpc", "sst2", "rte", "squad_v2")
pytestmark = pytest.mark.slow


def digests(cli, study):
    return {i: r["digest"] for i, r in cli.results(study).items() if i != "serve"}


def test_every_stage_left_its_result(quickstart, has_vllm):
    done = quickstart.results("quickstart")
    finals = [i for i in done if i.startswith("train/") and "/final/" in i]
    searches = [i for i in done if "/search-" in i]
    assert len(finals) == 4 * 2 * 2 and len(searches) == 4 * 2 * 2
    expected = {f"{kind}/{task}" for kind in ("data", "baseline", "base-probe", "drift") for task in TASKS} | {"correlate"}
    assert expected <= set(done)
    assert ("serve" in done) == has_vllm


def test_results_keep_to_their_schemas(quickstart):
    root = quickstart.folder / "runs/quickstart"
    for name, (place, _) in DOCUMENTS.items():
        validator = jsonschema.Draft202012Validator(json.loads((root / f"results/schemas/{name}.schema.json").read_text()))
        assert not [e.message for e in validator.iter_errors(json.loads((root / place).read_text()))], name


def test_named_results_exist(quickstart, has_vllm):
    root = quickstart.folder / "runs/quickstart"
    names = ["baseline_results.json", "drift_analysis_results.json"] + ["deployment_benchmark_results.json"] * has_vllm
    for name in names:
        assert json.loads((root / "results" / name).read_text())
    report = json.loads((root / "analysis/final_analysis_report.json").read_text())
    verdicts = {c["dimension"]: c["verdict"] for c in report["claims"]}
    assert verdicts["hypothesis"] in ("supported", "contradicted", "inconclusive")
    # one launch an arm can decide nothing
    assert verdicts["overhead"] == "inconclusive"
    html = (root / "results/report.html").read_text()
    assert "<svg" in html and "http://" not in html.replace("http://www.w3.org", "")
    assert list((root / "results/tables").glob("*.tex")) and list((root / "results/figures").glob("*.pdf"))


def test_commands_under_the_tables_of_the_report_work(quickstart):
    page = (quickstart.folder / "runs/quickstart/results/report.html").read_text()
    commands = [unescape(code) for code in re.findall(r"<code>(tunescope (?:report|run) [^<]*)</code>", page)]
    for name in ("claims", "master", "statistics_gate"):
        recompute = next(c for c in commands if c.endswith(f"--table {name}"))
        printed = quickstart(*shlex.split(recompute)[1:]).stdout
        assert printed == (quickstart.folder / f"runs/quickstart/results/tables/{name}.csv").read_text()
        rerun = commands[commands.index(recompute) + 1]
        done = quickstart(*shlex.split(rerun)[1:], "--display", "plain")
        assert rerun.startswith("tunescope run") and "nothing to run" in done.stdout + done.stderr


def test_predictions_of_every_final_run_are_stored(quickstart):
    steps = quickstart.folder / "runs/quickstart/steps/train"
    frames = {p.parent: pd.read_parquet(p) for p in steps.rglob("predictions.parquet") if "final" in str(p)}
    assert len(frames) == 16
    for folder, frame in frames.items():
        assert len(frame) == 24 and frame["correct"].between(0, 1).all()
        metrics = {m["name"]: m["value"] for m in json.loads((folder / "result.json").read_text())["metrics"] if m["split"] == "test"}
        name = "exact_match" if "squad_v2" in str(folder) else "accuracy"
        assert metrics[name] == pytest.approx(frame["correct"].mean())


def test_step_0_drift_is_exactly_zero_and_lora_leaves_the_base_alone(quickstart):
    steps = quickstart.folder / "runs/quickstart/steps/train"
    for path in steps.rglob("drift.parquet"):
        frame = pd.read_parquet(path)
        assert (frame.query("step == 0 and measure == 'cka_drift_debiased' and block == -1")["value"] == 0).all()
    for step_id, result in quickstart.results("quickstart").items():
        if "/lora/final/" in step_id:
            assert result["outputs"]["base_unchanged"] is True


def test_search_chose_one_batch_size_and_a_rate_of_the_grid(quickstart):
    done = quickstart.results("quickstart")
    for task in TASKS:
        rates = {i: done[i]["outputs"]["learning_rate"] for i in done if i.startswith(f"train/{task}/lora/final")}
        assert len(set(rates.values())) == 1 and set(rates.values()) <= {3e-3, 1e-2}


def test_wandb_wrote_real_offline_runs_into_both_projects(quickstart):
    runs = list((quickstart.folder / "runs/quickstart").rglob("run-*.wandb"))
    assert len(runs) >= 40
    text = b"".join(p.read_bytes() for p in runs)
    assert b"NLP-Phase1-Training" in text and b"NLP-Phase2-Analysis" in text


def test_local_record_is_complete_without_wandb(quickstart):
    steps = quickstart.folder / "runs/quickstart/steps/train"
    series = [json.loads(line) for line in (steps / "sst2/lora/final/seed-42/metrics.jsonl").read_text().splitlines()]
    assert {"loss", "learning_rate", "grad_norm"} <= set().union(*series)


def test_second_run_starts_nothing_and_is_quick(quickstart):
    before = digests(quickstart, "quickstart")
    start = time.monotonic()
    done = quickstart("run", "quickstart", "--display", "plain", *quickstart.smallest)
    seconds = time.monotonic() - start
    assert "nothing to run" in (done.stdout + done.stderr).lower()
    assert digests(quickstart, "quickstart") == before
    assert seconds < 3


def test_official_files_that_are_not_there_are_one_clear_error(quickstart, tmp_path):
    cli = type(quickstart)(tmp_path, [])
    done = cli("run", "pilot", "--display", "plain", "--set", "execution.paths.files=nowhere", code=3)
    assert "no folder nowhere" in done.stderr and "execution.paths.files" in done.stderr
    assert not cli.results("pilot")


def test_status_and_plan_import_no_torch(quickstart):
    code = (
        "import sys; from tunescope.cli import main\n"
        "try: main(['plan', 'quickstart'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=quickstart.folder, capture_output=True)


@pytest.fixture
def copy(quickstart, tmp_path):
    """A damaged or changed study needs a store of its own."""
    shutil.copytree(quickstart.folder, tmp_path / "copy", symlinks=True)
    return type(quickstart)(tmp_path / "copy", quickstart.smallest)


def test_a_lost_result_is_computed_again_with_the_same_content(copy):
    before = copy.results("quickstart")
    lost = "train/rte/lora/final/seed-1337"
    shutil.rmtree(copy.folder / "runs/quickstart/steps" / lost)
    copy("run", "quickstart", "--display", "plain", *copy.smallest)
    after = copy.results("quickstart")
    assert after[lost]["digest"] == before[lost]["digest"]
    rerun = {i for i in after if after[i]["finished"] != before[i]["finished"]}
    assert rerun == {lost}


def test_a_changed_learning_rate_is_named_and_reruns_what_depends_on_it(copy):
    before = copy.results("quickstart")
    change = copy.settings("tasks.rte.learning_rates={full: [5e-4, 1e-3], lora: [4e-3, 1e-2]}", "serving=null")
    done = copy("status", "quickstart", *copy.smallest, *change)
    assert "train/rte/lora/search-lr0.004-bs8/seed-42" in done.stdout
    copy("run", "quickstart", "--display", "plain", *copy.smallest, *change)
    after = copy.results("quickstart")
    rerun = {i for i in after if i not in before or after[i]["finished"] != before[i]["finished"]}
    assert "train/rte/lora/search-lr0.004-bs8/seed-42" in rerun and "drift/rte" in rerun
    assert not any(i.startswith(("train/sst2", "train/mrpc", "drift/sst2", "baseline", "data")) for i in rerun)


def test_a_changed_data_byte_is_a_clear_error(copy):
    victim = next((copy.folder / "data/quickstart/sst2").rglob("*.arrow"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(bytes(data))
    done = copy("run", "quickstart", "--display", "plain", *copy.smallest, code=3)
    assert victim.name in done.stderr and "expected sha256" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("after_steps", [1, 4])
def test_kill_9_in_the_middle_ends_with_the_same_results(quickstart, tmp_path, after_steps):
    only_sst2 = quickstart.settings("serving=null", "execution.tracking.wandb=off")
    cli = type(quickstart)(tmp_path, quickstart.smallest)
    command = ("run", "quickstart", "--display", "plain", *quickstart.smallest, *only_sst2, "--task", "sst2")
    process = cli.start(*command)
    deadline = time.monotonic() + 300
    while len([i for i in cli.results("quickstart") if i.startswith("train")]) < after_steps and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cli(*command)
    clean = digests(quickstart, "quickstart")
    mine = digests(cli, "quickstart")
    assert len([i for i in mine if i.startswith("train/sst2")]) == 8
    assert {i: mine[i] for i in mine if i != "correlate"} == {i: clean[i] for i in mine if i != "correlate"}
