"""The command line: exit codes, what goes where, what is imported, and every door."""

import contextlib
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

import fake_steps
import tunescope
from tunescope import doors, steps
from tunescope.cli import main
from tunescope.run import provenance, reporting
from tunescope.run.files import write_json
from tunescope.run.store import Store
from tunescope.study.load import load_study
from tunescope.study.schema import KINDS

REPO = Path(__file__).parents[2]
SAMPLE_FILES = Path(tunescope.__file__).parent / "data" / "sample"
SMALL = ["--set", "serving=null", "--set", "execution.retries=0"]


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Runs a command line in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        out, err = capfd.readouterr()
        return code, out, err

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def faked(monkeypatch):
    """Fake steps in this process, and a report that is one line of text."""
    fake_steps.guard(monkeypatch)
    monkeypatch.setattr("tunescope.run.session.LocalExecutor", lambda *a, **k: fake_steps.Inline())
    built: list[str] = []

    def build_report(study_file, plan, store, states) -> Path:
        path = store.root / "results" / "report.html"
        path.parent.mkdir(exist_ok=True)
        path.write_text("report")
        write_json(path.with_name("built_from.json"), {"digest": reporting.built_from(study_file, store, states)})
        built.append(study_file.study.name)
        return path

    monkeypatch.setattr(reporting, "build_report", build_report)
    return built


def test_reading_verbs_import_nothing_heavy_and_are_quick(tmp_path):
    code = (
        "import sys\nfrom tunescope.cli import main\ncode = main(sys.argv[1:])\n"
        "heavy = {'torch', 'pandas', 'scipy', 'numpy', 'transformers', 'wandb', 'matplotlib'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), code)"
    )

    def cpu_seconds(*arguments):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", *arguments], capture_output=True, text=True, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    for arguments in (["--help"], ["plan", "quickstart"], ["status", "quickstart"], ["schema"], ["show", "quickstart", "serve"]):
        # Beside what they cannot do without, measured at once: a slow machine is slow at both.
        (_, needed), (done, took) = cpu_seconds("import pydantic, typer, yaml, rich.console"), cpu_seconds(code, *arguments)
        assert done.stdout.splitlines()[-1] == "HEAVY [] 0", (arguments, done.stdout[-300:], done.stderr)
        assert took < 6 * needed, (arguments, took, needed)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "quikstart"], "did you mean 'quickstart'?"),
        (["plan", "nowhere.yaml"], "nowhere.yaml"),
        (["plan", "quickstart", "--set", "training.max_stepz=3"], "did you mean 'max_steps'?"),
        (["run", "quickstart", "--kind", "trian"], "did you mean 'train'?"),
        (["plan", "quickstart", "--only", "train/sst3/*"], "did you mean 'train/sst2/*'?"),
        (["plan", "quickstart", "--only", "train/*/lroa/final/*"], "did you mean 'train/*/lora/final/*'?"),
        (["plan", "quickstart", "--only", "drfit/*"], "did you mean 'drift/*'?"),
        (["export", "quickstart", "out", "--only", "drift/*"], "none of the 4 steps it names can be exported; only final training runs"),
        (["show", "quickstart", "drift/sst"], "did you mean 'drift/sst2'?"),
        (["run", "quickstart", "--jobs", "0"], "--jobs"),
        (["run"], "STUDY"),
        (["fly"], "fly"),
    ],
)
def test_wrong_usage_is_exit_2_on_stderr(cli, arguments, expected):
    code, out, err = cli(*arguments)
    assert (code, out) == (2, "")
    assert expected in re.sub(r"[│\s]+", " ", err)


def test_a_study_file_named_without_its_ending_is_hinted_at(cli, tmp_path):
    (tmp_path / "b3.yaml").write_text("")
    code, _, err = cli("status", "b3")
    assert code == 2 and err == "error: no study named 'b3': its file is given with its ending, b3.yaml\n"


def test_the_version(cli):
    assert cli("--version") == (0, f"tunescope {tunescope.__version__}\n", "")


def test_all_problems_of_a_command_line_at_once(cli):
    code, _, err = cli("run", "quickstart", "--kind", "x", "--task", "y", "--seed", "7")
    assert code == 2 and all(option in err for option in ("--kind x", "--task y", "--seed 7"))


def test_missing_things_are_exit_3(cli):
    code, _, err = cli("report", "quickstart")
    assert code == 3 and "run the study first" in err
    assert cli("validate", "quickstart")[0] == 3
    assert cli("export", "quickstart", "out")[0] == 3
    assert cli("run-step", "nowhere")[0] == 3
    code, _, err = cli("run", "quickstart", "--set", "execution.device=cuda")
    assert code == 3 and "execution.device" in err


def test_init_writes_a_study_once(cli, tmp_path):
    assert cli("init", "pilot", "--out", "mine.yaml")[0] == 0
    original = (REPO / "studies" / "pilot.yaml").read_text()
    expected = original.replace("\n  name: pilot", '\n  name: "mine"', 1).replace("data: data/pilot}", "data: data/mine}", 1)
    title = next(line for line in original.splitlines() if line.startswith("  title: "))
    assert (tmp_path / "mine.yaml").read_text() == expected.replace(title, '  title: "mine"  # heads the report') != original
    assert cli("init", "pilot", "--out", "mine.yaml")[0] == 2
    assert cli("plan", "mine.yaml")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--out", "My Study!.yaml"], "my-study"),
        (["--out", "2024.yaml"], "2024"),
        (["--out", "on.yaml"], "on"),
        (["--out", "quickstart.yaml"], "my-quickstart"),
        (["lora_vs_full", "--out", "deep/pilot.yaml"], "my-pilot"),
        (["--out", "mine.yaml", "--name", "other_2"], "other_2"),
        (["--name", "quickstart"], None),
        (["--name", "A b"], None),
    ],
)
def test_a_new_study_never_shares_the_runs_or_data_of_the_one_it_came_from(cli, tmp_path, arguments, name):
    code, _, err = cli("init", *arguments)
    written = list(tmp_path.rglob("*.yaml"))
    if name is None:
        assert code == 2 and "none of the built-in studies" in err and not written
    else:
        new = load_study(str(written[0]))
        assert code == 0 and f"study '{name}'" in err
        assert (new.study.name, new.execution.paths.data) == (name, f"data/{name}")


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        ("paths:\n    runs: runs\n    data: my_data  # mine\n    files: null", "data/new"),
        ("paths: {data: 'my data', runs: runs}", "data/new"),
        ("paths: {runs: runs}\n  tracking: {wandb: off}", "data"),
    ],
)
def test_a_new_study_has_its_own_data_folder_however_its_model_wrote_it(cli, tmp_path, paths, found):
    text = (REPO / "studies" / "pilot.yaml").read_text()
    (tmp_path / "old.yaml").write_text(text.replace("paths: {runs: runs, data: data/pilot}", paths))
    assert cli("init", "old.yaml", "--out", "new.yaml")[0] == 0
    assert load_study("new.yaml").execution.paths.data == found


def test_json_verbs(cli):
    plan = json.loads(cli("plan", "quickstart", "--json")[1])
    assert {row["kind"] for row in plan["steps"]} == set(KINDS)
    status = json.loads(cli("status", "quickstart", "--json")[1])
    assert [row["status"] for row in status["steps"]] == ["todo"] * len(plan["steps"])
    assert json.loads(cli("schema")[1])["title"] == "StudyFile"
    assert json.loads(cli("env", "--json")[1])["packages"]["torch"]
    shown = json.loads(cli("show", "quickstart", "serve", "--json")[1])
    assert shown["status"] == "todo" and shown["command"] == "tunescope run quickstart --only serve"


def test_plan_lists_the_ids_that_other_verbs_take(cli):
    lines = cli("plan", "quickstart", "--steps")[1].splitlines()
    ids = [line.split()[0] for line in lines]
    assert ids == [row["id"] for row in json.loads(cli("plan", "quickstart", "--json")[1])["steps"]] and len(set(ids)) == 58
    assert cli("show", "quickstart", ids[-1])[0] == 0
    found = cli("plan", "lora_vs_full", "--only", "train/sst2/*/final/seed-42")[1].splitlines()
    assert found == [f"train/sst2/{method}/final/seed-42  phase 1   vm1" for method in ("full", "lora")]
    rows = json.loads(cli("plan", "quickstart", "--only", "drift/*", "--json")[1])["steps"]
    assert [row["id"] for row in rows] == [i for i in ids if i.startswith("drift/")]
    code, out, err = cli("plan", "quickstart", "--only", "nothing")
    assert (code, out) == (2, "") and "`tunescope plan STUDY --steps` lists the steps" in err


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["init"], "next: venv/bin/tunescope plan study.yaml"),
        (["plan", "quickstart"], "`venv/bin/tunescope plan quickstart --steps`"),
        (["plan", "quickstart", "--only", "nothing"], "`venv/bin/tunescope plan STUDY --steps` lists"),
        (["status", "quickstart", "--kind", "train"], "`venv/bin/tunescope run quickstart --kind train` does what is left"),
        (["show", "quickstart", "serve"], "run it venv/bin/tunescope run quickstart --only serve"),
        (["report", "quickstart"], "`venv/bin/tunescope run quickstart`"),
        (["fly"], "Try 'venv/bin/tunescope --help'"),
    ],
)
def test_printed_commands_run_as_typed_where_no_path_leads_to_the_program(cli, tmp_path, monkeypatch, arguments, typed):
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "tunescope").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python"))
    _, out, err = cli(*arguments)
    assert typed in re.sub(r"\s+", " ", out + err)


def test_a_wrong_target_is_refused_before_any_work(cli, tmp_path):
    for verb in ("plan", "run"):
        code, out, err = cli(verb, "quickstart", "--set", "methods.lora.adapter.target_modules=[q_proj,v_porj]")
        assert (code, out) == (2, "")
        assert "study.methods.lora.adapter.target_modules 'v_porj' matches no module (did you mean 'v_proj'?)" in " ".join(err.split())
    assert not (tmp_path / "runs" / "quickstart" / "steps").exists()


@pytest.mark.parametrize(
    ("name", "said", "planned"),
    [
        ("./no_such_model", "no such folder", "warning: "),
        ("bare", "no config.json", "warning: "),
        ("nobody/nothing", "cannot be downloaded and is not in the local cache", ""),  # plan asks no hub
    ],
)
def test_a_missing_model_is_one_error_before_any_work(cli, faked, tmp_path, monkeypatch, name, said, planned):
    def no_network(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", no_network)
    (tmp_path / "bare").mkdir()
    code, out, err = cli("run", "quickstart", "--set", f"model.name={name}", *SMALL)
    assert (code, out) == (3, "") and said in err and len(err.splitlines()) == 1
    assert not (tmp_path / "runs").exists() and not (tmp_path / "data").exists()
    code, _, err = cli("plan", "quickstart", "--set", f"model.name={name}", *SMALL)
    assert code == 0 and err.startswith(planned) and len(err.splitlines()) == bool(planned)
    assert cli("run", "quickstart", "--kind", "data", "--set", f"model.name={name}", *SMALL)[0] == 0


def test_a_model_that_went_away_matters_only_to_steps_that_must_run(cli, faked, tmp_path):
    (tmp_path / "mine").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "mine" / name).write_text("{}")
    study = ("run", "quickstart", "--set", "model.name=mine", *SMALL)
    assert cli(*study)[0] == 0
    (tmp_path / "mine").rename(tmp_path / "away")
    assert cli(*study)[0] == 0
    (tmp_path / "data" / "quickstart" / "sst2" / "rows.txt").unlink()
    (tmp_path / "data" / "quickstart" / "sst2").rmdir()
    assert cli(*study)[0] == 0, "data alone are prepared again; what waits for them keeps its results"
    assert cli(*study, "--set", "training.max_steps=7")[0] == 3


def test_official_files_are_asked_for_before_finished_data_steps_move_to_the_attic(cli, faked, tmp_path):
    assert cli("run", "quickstart", "--kind", "data", *SMALL)[0] == 0
    changed = ("quickstart", "--kind", "data", "--set", "data.source=files", *SMALL)
    code, _, err = cli("run", *changed)
    assert code == 3 and err.startswith("error: execution.paths.files: no folder is named, and data/mrpc, data/rte,")
    assert not (tmp_path / "runs/quickstart/attic").exists()
    assert "4 done" in cli("status", "quickstart", "--kind", "data", *SMALL)[1]
    assert "warning: execution.paths.files: no folder is named" in cli("plan", "quickstart", "--set", "data.source=files")[2]


def test_plan_says_when_the_overhead_claim_cannot_be_decided(cli):
    lacking = ("serving.arms=[base,merged]", "serving.batch_sizes=[1,4]", "serving.prompt_lengths=[64]", "serving.sampling=[sampled]")
    changes = [part for item in (*lacking, "serving.launches=10") for part in ("--set", item)]
    (line,) = [line for line in cli("plan", "quickstart", *changes)[1].splitlines() if line.startswith("warning")]
    assert "lacks the registered arm adapters_2, batch size 2, prompt length 128, greedy sampling; add" in line
    assert "serving.launches is 2, and analysis.min_launches asks for 10" in cli("plan", "quickstart")[1]
    assert "will not be decided: the study has no serving part" in cli("plan", "quickstart", *SMALL)[1]
    assert "warning" not in cli("plan", "lora_vs_full")[1]
    assert len(json.loads(cli("plan", "quickstart", *changes, "--json")[1])["overhead_undecided"]) == 1


def test_power_is_that_of_the_test_parts_that_were_prepared(cli, tmp_path):
    def tests(*changes: str) -> tuple[int, list[str]]:
        found = json.loads(cli("plan", "pilot", "--json", *changes)[1])
        return next(row["examples"] for row in found["power"] if row["task"] == "squad_v2"), found["test_sizes_at_most"]

    unlimited = ("--set", "tasks.squad_v2.limits.test=null", "--set", f"execution.paths.files={SAMPLE_FILES}")
    assert tests(*unlimited) == (11_873, ["squad_v2"])
    assert "squad_v2: at most that many" in cli("plan", "pilot", *unlimited)[1]
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "dev-v2.0.json").write_bytes((SAMPLE_FILES / "squad_v2" / "train-v2.0.json").read_bytes())
    split = ("--set", "tasks.squad_v2.limits.test=null", "--set", "execution.paths.files=files")
    assert cli("data", "pilot", "--task", "squad_v2", *split)[0] == 0
    prepared = json.loads((tmp_path / "data/pilot/manifest.json").read_text())["tasks"]["squad_v2"]["parts"]["test"]
    assert 0 < prepared < 416 and tests(*split) == (prepared, [])
    assert tests(*split, "--set", "data.split_seed=7") == (11_873, ["squad_v2"])


def test_a_run_reports_and_a_second_run_does_nothing(cli, faked):
    code, out, err = cli("run", "quickstart", "--display", "plain", *SMALL)
    assert code == 0, err
    assert out == "report: runs/quickstart/results/report.html\n"
    assert err.count(" started  ") == err.count(" done     ") == 57
    assert len(faked) == 1
    code, out, err = cli("run", "quickstart", "--display", "plain", *SMALL)
    assert (code, out) == (0, "report: runs/quickstart/results/report.html\n")
    assert "nothing to run" in err and "report is current" in err
    assert len(faked) == 1


def test_a_changed_title_or_a_lost_report_is_reported_again(cli, faked, tmp_path):
    cli("run", "quickstart", *SMALL)
    cli("run", "quickstart", *SMALL, "--set", "title=Another")
    assert len(faked) == 2
    (tmp_path / "runs/quickstart/results/report.html").unlink()
    cli("run", "quickstart", *SMALL, "--set", "title=Another")
    assert len(faked) == 3


@pytest.mark.parametrize(
    ("trouble", "expected"),
    [
        ({"data/rte": "prerequisite"}, 3),
        ({"data/rte": "prerequisite", "baseline/sst2": "user"}, 1),
        ({"baseline/sst2": "user"}, 1),
    ],
)
def test_blocked_by_something_missing_alone_is_exit_3(cli, faked, tmp_path, trouble, expected):
    fake_steps.control(tmp_path / "data" / "quickstart", trouble=trouble)
    only = ("--kind", "data", "--kind", "baseline", *SMALL)
    code, _, err = cli("run", "quickstart", "--display", "none", *only)
    assert code == expected and ("needs data/rte, which is blocked" in err) == ("data/rte" in trouble)


def test_a_changed_byte_stops_a_run_with_exit_3_whether_its_step_has_finished_or_not(cli, faked, tmp_path):
    steps.FUNCTIONS["data"] = "tunescope.data.prepare:run_data"
    rte = ("quickstart", "--task", "rte", *SMALL)
    assert cli("data", *rte)[0] == 0
    parts = tmp_path / "data/quickstart/rte/parts.json"
    whole = parts.read_bytes()
    for _ in ("not finished", "finished"):
        parts.write_bytes(whole + b" ")
        code, _, err = cli("run", "quickstart", "--only", "baseline/rte", "--display", "none", *SMALL)
        assert code == 3 and "parts.json: changed, expected sha256" in err
        assert cli("data", *rte)[0] == 3
        parts.write_bytes(whole)
        assert cli("run", "quickstart", "--only", "baseline/rte", *SMALL)[0] == 0


def test_data_names_one_cause_once(cli):
    code, _, err = cli("data", "quickstart", "--source", "files")
    assert code == 3 and err.count("no folder is named") == 1


def test_partial_runs_write_no_report_and_phase_2b_does(cli, faked):
    code, out, _ = cli("run", "quickstart", "--phase", "1", *SMALL)
    assert (code, out, faked) == (0, "", [])
    assert cli("run", "quickstart", "--phase", "2b", *SMALL)[1].startswith("report: ")


def test_needs_of_another_machine_are_named(cli, faked):
    code, _, err = cli("run", "lora_vs_full", "--phase", "2a", "--machine", "vm1", *SMALL)
    assert code == 1
    assert "phase 1 on vm1, phase 1 on vm3" in err and "copy its folders" in err


def test_a_failed_step_is_exit_1_and_shown(cli, faked, tmp_path):
    fake_steps.control(tmp_path / "data" / "quickstart", trouble={"baseline/rte": "bug"})
    code, out, err = cli("run", "quickstart", "--display", "none", *SMALL)
    assert code == 1 and "report: " in out and "baseline/rte" in err and "ZeroDivisionError" in err
    out = cli("status", "quickstart", *SMALL)[1]
    lines = out.splitlines()
    assert lines[0] == "56 done · 1 failed" and lines[1].startswith("failed  baseline/rte  ")
    again = "`tunescope run quickstart --retry-failed --set serving=null --set execution.retries=0`"
    assert lines[2].startswith("next    `tunescope show quickstart baseline/rte ") and lines[2].endswith(f"says why; {again} tries again")
    assert lines[3].startswith("flags   28, the most severe first")
    assert [line.split()[:3] for line in lines[4:]] == [["broken", "records-missing", "24"], ["doubtful", "other", "4"]]
    assert cli("status", "quickstart", "--flags", *SMALL)[1].count("  flag of drift/") == 4
    shown = cli("show", "quickstart", "baseline/rte", *SMALL)[1]
    assert "Traceback" in shown and "--only baseline/rte --retry-failed --set serving=null" in shown


@pytest.fixture
def validating(cli, faked, tmp_path, monkeypatch):
    """A finished study over RTE whose reruns are fakes in this process; returns what `validate` printed, by line, and how it ended."""
    monkeypatch.setattr("tunescope.run.rerun.LocalExecutor", lambda *a, **k: fake_steps.Inline())
    monkeypatch.setattr("tunescope.run.validate.packages", lambda: {"torch": "0"})
    monkeypatch.setattr("tunescope.run.validate.sources", lambda inputs, root: provenance.sources(inputs, root))
    monkeypatch.setattr(reporting, "find", lambda *a, **k: (None, SimpleNamespace(claims=[])))
    monkeypatch.setattr("tunescope.analysis.payloads.final_report_json", lambda findings, study: {"claims": findings.claims})
    assert cli("run", "quickstart", "--task", "rte", *SMALL)[0] == 0

    def call(*arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
        code, out, err = cli("validate", "quickstart", *SMALL, *arguments, "--json")
        assert out, err
        return code, {line["name"]: line for line in json.loads(out)}

    return call


def ends(lines: dict[str, dict[str, str]], end: str) -> list[str]:
    return [name for name, line in lines.items() if line["status"] == end]


CLEAN = [
    "environment set-up identical", "data checksums match", "model, tokenizer and prompt template unchanged", "study file unchanged",
    "stored artefacts unchanged", "all statistical tests reproducible", "training rerun gives the same digest",
    "training curves overlap (KS p > 0.95)", "final metrics match", "baseline results within 1 % tolerance",
]  # fmt: skip
AGREE = "predictions agree on at least 99.5 % of the examples"


def test_export_of_sweeps_writes_the_chosen_ones(cli, tmp_path):
    code, out, _ = cli("export", "lora_vs_full", "sweeps", "--sweep", "--only", "train/rte/lora/*")
    assert (code, out) == (0, "sweeps/rte-lora.yaml\n") and [p.name for p in (tmp_path / "sweeps").iterdir()] == ["rte-lora.yaml"]
    code, _, err = cli("export", "lora_vs_full", "more", "--sweep", "--only", "data/*")
    assert code == 2 and "no search run is chosen" in err and not (tmp_path / "more").exists()


def test_validate_says_every_line_of_the_plan_under_its_tier(validating, cli):
    code, lines = validating()
    assert code == 0 and ends(lines, "PASS") == CLEAN
    assert lines[CLEAN[1]]["found"] == "1 of 4 tasks, every file hashed; not finished here: data/mrpc; data/squad_v2; data/sst2"
    assert ends(lines, "SKIP") == [AGREE, "new seed inside the prediction interval"]
    assert [lines[name]["tier"] for name in CLEAN] == ["R0"] * 5 + ["R1"] * 5
    assert all(line["supports"] for line in lines.values())
    _, out, err = cli("validate", "quickstart", *SMALL)
    assert "rerunning baseline/rte" in err and "rerunning train/rte" in err
    assert [line[:2] for line in out.splitlines() if line[0] == "R"] == ["R0", "R1", "R2", "R3"]
    assert out.splitlines()[-1] == "10 PASS · 2 SKIP"


def test_inputs_that_changed_fail_their_tier_and_nothing_else(validating, tmp_path, monkeypatch):
    """R0: each kind of input, one after the other."""
    store, data = tmp_path / "runs/quickstart", tmp_path / "data/quickstart"

    def failing() -> list[str]:
        code, lines = validating()
        assert code == (1 if ends(lines, "FAIL") else 0)
        return ends(lines, "FAIL")

    with monkeypatch.context() as patch:
        patch.setattr("tunescope.run.validate.packages", lambda: {"torch": "1"})
        assert failing() == CLEAN[:1]
    with monkeypatch.context() as patch:
        patch.setattr("tunescope.run.validate.sources", lambda inputs, root: {"model/weights": "1" * 64} if inputs.get("model") else {})
        assert failing() == CLEAN[2:3]
    rows, probe = data / "rte/rows.txt", store / "steps/base-probe/rte/out.txt"
    before = rows.read_text(), probe.read_text()
    rows.write_text("changed")
    assert CLEAN[1] in failing()
    rows.write_text(before[0])
    probe.write_text("x" * 64)
    assert failing() == CLEAN[4:5]
    probe.write_text(before[1])
    assert failing() == []
    code, lines = validating("--set", "training.weight_decay=0.5")
    assert code == 1 and "study file unchanged" in ends(lines, "FAIL")
    assert "training.weight_decay 0.01 → 0.5" in lines["study file unchanged"]["found"]


def test_a_rerun_that_differs_fails_the_same_machine_and_is_left_to_tolerance_on_another(validating, tmp_path, monkeypatch):
    """R1 and R2: noise in one training run and one baseline."""
    steps = tmp_path / "runs/quickstart/steps"
    train = json.loads(json.dumps(validating()[1]["final metrics match"]["found"])).split(":")[0]
    before = Store(tmp_path / "runs/quickstart").result("baseline/rte")[0]
    fake_steps.control(tmp_path / "data/quickstart", salt={train: "noise", "baseline/rte": "noise"})
    code, lines = validating()
    assert code == 1 and ends(lines, "FAIL") == CLEAN[6:]
    monkeypatch.setattr("tunescope.run.validate.machine", lambda: {"python": platform.python_version(), "cpu": "another", "gpus": []})
    code, lines = validating()
    assert code == 1 and CLEAN[6] in ends(lines, "SKIP") and "cpu" in lines[CLEAN[6]]["found"]
    assert {lines[name]["tier"] for name in (*CLEAN[8:], AGREE)} == {"R2"}
    assert Store(tmp_path / "runs/quickstart").result("baseline/rte")[0] == before and (steps / "baseline/rte/result.json").exists()


def test_a_full_test_trains_both_methods_at_a_new_seed(validating, tmp_path, monkeypatch):
    fake_steps.calls(tmp_path / "data/quickstart")
    code, lines = validating("--full-test")
    quality, drift = (line for line in lines.values() if line["tier"] == "R3")
    assert "rte, seed 2025: ratio" in quality["found"] and "from 3 seeds" in quality["found"]
    assert quality["status"] in ("PASS", "FAIL") and code == (quality["status"] == "FAIL")
    assert drift["status"] == "SKIP" and "drift is missing" in drift["found"]
    started = fake_steps.calls(tmp_path / "data/quickstart")
    assert {f"train/rte/{method}/final/seed-2025" for method in ("lora", "full")} < set(started)
    assert sum("/seed-2025" not in i and i.startswith("train/") for i in started) == 2, "one finished run of each method"
    assert not list((tmp_path / "runs").rglob("seed-2025")), "the study's own store is only read"


def test_statistics_that_give_other_numbers_than_the_kept_report_fail(validating, tmp_path, cli):
    """The second analysis agrees with the first; the kept report does not."""
    kept = tmp_path / "runs/quickstart/analysis/final_analysis_report.json"
    cli("report", "quickstart", *SMALL)
    write_json(kept, {"claims": [], "schema": 0})
    code, lines = validating()
    assert code == 1 and ends(lines, "FAIL") == ["all statistical tests reproducible"]
    assert "compared with the kept report, DIFFERENT" in lines["all statistical tests reproducible"]["found"]


def test_a_kept_report_of_an_older_form_is_not_compared_but_made_again(validating, cli, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("tunescope.analysis.documents.SCHEMA", 1)
        assert cli("report", "quickstart", *SMALL)[0] == 0
    _, lines = validating()
    assert lines["all statistical tests reproducible"]["found"].endswith("every table computed twice, equal")
    cli("report", "quickstart", *SMALL)
    _, lines = validating()
    assert "compared with the kept report" in lines["all statistical tests reproducible"]["found"]


def test_clean_asks_and_removes_the_attic(cli, faked, tmp_path):
    cli("run", "quickstart", "--only", "base-probe/rte", *SMALL)
    cli("run", "quickstart", "--only", "base-probe/rte", *SMALL, "--set", "drift.every=7")
    attic = tmp_path / "runs" / "quickstart" / "attic"
    assert attic.exists()
    assert cli("clean", "quickstart", "--yes")[1] == "removed 1 folders\n"
    assert not attic.exists() and (tmp_path / "runs/quickstart/steps/base-probe/rte/result.json").exists()
    assert cli("clean", "quickstart", "--yes")[0] == 0


def test_checkpoints_are_cleaned_without_undoing_the_step(cli, faked, tmp_path):
    cli("run", "quickstart", "--only", "base-probe/rte", *SMALL)
    checkpoint = tmp_path / "runs/quickstart/steps/base-probe/rte/checkpoints/checkpoint-3"
    checkpoint.mkdir(parents=True)
    (checkpoint / "w").write_text("w")
    cli("clean", "quickstart", "--yes")
    assert not checkpoint.exists()
    assert Store(tmp_path / "runs/quickstart").result("base-probe/rte")[0] is not None


DOORS = {
    "experiments/baselines.py": ["run", "--kind", "baseline"],
    "experiments/full_finetune.py": ["run", "--kind", "train", "--method", "full"],
    "experiments/lora_finetune.py": ["run", "--kind", "train", "--method", "lora"],
    "experiments/drift_analysis.py": ["run", "--kind", "base-probe", "--kind", "drift"],
    "experiments/deployment_bench.py": ["run", "--kind", "serve"],
    "analysis/statistical_analysis.py": ["report"],
    "validate_reproducibility.py": ["validate"],
    "scripts/download_datasets.py": ["data"],
}


@pytest.mark.parametrize("path", DOORS)
def test_every_python_door_leads_to_its_verb(path, monkeypatch):
    import runpy

    seen: list[list[str]] = []
    monkeypatch.setattr("tunescope.cli.main", lambda arguments: seen.append(list(arguments)) or 0)
    monkeypatch.chdir(REPO)
    for extra in ([], ["--study", "quickstart", "--task", "sst2"]):
        monkeypatch.setattr(sys, "argv", [path, *extra])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(REPO / path), run_name="__main__")
        assert end.value.code == 0
    verb, *fixed = DOORS[path]
    assert seen == [[verb, doors.DEFAULT_STUDY, *fixed], [verb, "quickstart", *fixed, "--task", "sst2"]]


@pytest.mark.parametrize("path", DOORS)
def test_every_python_door_has_a_check(path, monkeypatch):
    """`--check` demonstrates what the door does; every kind it names is one that `tunescope check` has."""
    import runpy

    from tunescope.checks.runner import ALIASES, KINDS

    seen: list[list[str]] = []
    monkeypatch.setattr("tunescope.cli.main", lambda arguments: seen.append(list(arguments)) or 0)
    monkeypatch.setattr(sys, "argv", [path, "--check", "--task", "sst2"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(REPO / path), run_name="__main__")
    verb, *fixed = DOORS[path]
    assert seen == [["check", "quickstart", *(fixed or doors.DEMONSTRATION[verb]), "--task", "sst2"]]
    named = [value for option, value in zip(seen[0], seen[0][1:], strict=False) if option == "--kind"]
    assert set(named) <= {*KINDS, *ALIASES} and (named or path == "validate_reproducibility.py")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--kind", "trian"], "did you mean 'train'?"),
        (["--task", "mnli"], "--task mnli: unknown; valid here: mrpc, sst2, rte, squad_v2"),
        (["--method", "loar", "--kind", "servee"], "did you mean 'lora'?"),
    ],
)
def test_check_names_what_it_does_not_know(cli, arguments, expected):
    code, out, err = cli("check", "quickstart", *arguments)
    assert code == 2 and out == "" and expected in " ".join(err.split())


@pytest.mark.parametrize("phase", ["phase1", "phase2a", "phase2b"])
@pytest.mark.parametrize("machine", ["vm1", "vm2", "vm3"])
def test_every_shell_door_starts_the_right_command(phase, machine, tmp_path):
    """With a stand-in `tunescope` found where the script looks first."""
    script = tmp_path / "scripts" / phase / f"{machine}.sh"
    script.parent.mkdir(parents=True)
    script.write_text((REPO / "scripts" / phase / f"{machine}.sh").read_text())
    program = tmp_path / ".venv" / "bin" / "tunescope"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    done = subprocess.run(["bash", str(script), "--jobs", "3"], capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr
    if phase == "phase2b" and machine != "vm1":
        assert "may be shut down" in done.stdout
    else:
        study = tmp_path / "studies" / "lora_vs_full.yaml"
        number = phase.removeprefix("phase")
        assert done.stdout.split() == ["run", str(study), "--phase", number, "--machine", machine, *["--display", "plain", "--jobs", "3"]]


def test_a_signal_whose_exception_was_lost_can_be_given_again(cli, faked, monkeypatch):
    """Python prints and drops what is raised in a finalizer or a callback of a C library."""

    class Deaf(fake_steps.Inline):
        def poll(self, timeout_s):
            with contextlib.suppress(BaseException):
                os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.6)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("went on after the second signal")

    monkeypatch.setattr("tunescope.run.session.LocalExecutor", lambda *a, **k: Deaf())
    code, _, errors = cli("run", "quickstart", *SMALL, "--only", "data/rte")
    assert code == 130 and "goes on where this stopped" in errors


def test_ctrl_c_and_a_kill_at_once_still_end_the_workers(cli, faked, monkeypatch):
    """The second one's exception came before the ending of workers had shut signals out: jobs of a cluster went on."""
    both, closed = {signal.SIGINT, signal.SIGTERM}, []

    class Stopped(fake_steps.Inline):
        def poll(self, timeout_s):
            signal.pthread_sigmask(signal.SIG_BLOCK, both)
            for number in both:
                os.kill(os.getpid(), number)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, both)

        def close(self):
            closed.append("all")

    monkeypatch.setattr("tunescope.run.session.LocalExecutor", lambda *a, **k: Stopped())
    assert cli("run", "quickstart", *SMALL, "--only", "data/rte")[0] == 130 and closed == ["all"]
