"""Slurm through submitit: the sbatch text, its debug executor, and a real cluster where there is one."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tunescope.errors import PrerequisiteError
from tunescope.run.driver import Policy
from tunescope.run.selection import Selection
from tunescope.run.slurm import SlurmExecutor
from tunescope.study.schema import SlurmSpec

TESTS = Path(__file__).parents[2]
needs_submitit = pytest.mark.skipif(
    importlib.util.find_spec("submitit") is None, reason="submitit is not installed (requirements/cluster.txt)"
)
FULL = SlurmSpec(partition="gpu", account="nlp", mem_gb=48, time_min=600, setup=("module load cuda",), options={"constraint": "h100"})


@pytest.fixture
def fakes_in_children(monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(TESTS / "fake_site"), str(TESTS), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


def debug(root: Path, spec: SlurmSpec = FULL, device: str = "cpu") -> SlurmExecutor:
    return SlurmExecutor(spec, 3, 1, device, root / "runs", cluster="debug")


@needs_submitit
def test_each_step_is_a_job_that_starts_its_worker(bench, tmp_path, fakes_in_children, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chosen = Selection(only=("drift/sst2",))
    plain = {i: s.digest for i, s in bench.run(chosen).items()}
    shutil.rmtree(tmp_path / "runs")
    bench.calls()
    states = bench.run(chosen, executor=debug(tmp_path))
    assert {i: s.digest for i, s in states.items()} == plain
    assert len(bench.calls()) == sum(s.status == "done" for s in states.values()) > 5
    assert (tmp_path / "runs" / "slurm").stat().st_mode & 0o777 == 0o700


@needs_submitit
def test_a_killed_job_is_tried_again_then_reported(bench, tmp_path, fakes_in_children, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bench.control(trouble={"base-probe/rte": "kill", "baseline/rte": "user"})
    only = Selection(only=("base-probe/rte", "baseline/rte"))
    states = bench.run(only, policy=Policy(retries=1), executor=debug(tmp_path))
    assert bench.calls().count("base-probe/rte") == 2
    assert states["base-probe/rte"].status == "failed" and "signal 9" in states["base-probe/rte"].why
    assert states["baseline/rte"].status == "failed" and "non-finite loss" in states["baseline/rte"].why


@needs_submitit
@pytest.mark.parametrize(("name", "kind"), [("train/sst2/lora/final/seed-42", "train"), ("serve", "serve")])
def test_the_sbatch_text_is_as_written_down(tmp_path, monkeypatch, name, kind):
    from submitit.slurm import slurm

    executor = debug(tmp_path, device="auto")
    monkeypatch.setattr(slurm.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    executor._cluster = "slurm"
    queue = executor.queue()
    queue.update_parameters(**executor.parameters(name, kind))
    text = queue._executor._make_submission_file_text("COMMAND", "uid").replace(str(tmp_path), "ROOT")
    assert text == (TESTS / "golden" / f"sbatch-{kind}.sh").read_text()


def test_a_host_without_slurm_and_a_missing_gpu_are_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(PrerequisiteError, match="gpus_per_step is 0"):
        SlurmExecutor(SlurmSpec(gpus_per_step=0), None, 1, "cuda", tmp_path)
    if importlib.util.find_spec("submitit"):
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(PrerequisiteError, match="no host of a Slurm cluster"):
            SlurmExecutor(SlurmSpec(), None, 1, "cpu", tmp_path)


@pytest.mark.slow
@needs_submitit
@pytest.mark.skipif(shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode != 0, reason="no Slurm here")
def test_a_real_cluster_gives_the_same_digests_and_survives_a_cancelled_job(bench, tmp_path, fakes_in_children, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tunescope.run.slurm.QUEUE_S", 1.0)
    chosen = Selection(only=("drift/sst2",))
    plain = {i: s.digest for i, s in bench.run(chosen).items()}
    shutil.rmtree(tmp_path / "runs")
    bench.calls()
    bench.control(sleep_s=1)
    executor = SlurmExecutor(SlurmSpec(), 3, 1, "cpu", tmp_path / "runs")
    cancelled: list[str] = []
    poll = executor.poll

    def cancelling(timeout_s: float) -> list[Any]:
        if not cancelled and (step_id := next((i for i in executor._running if not executor.waiting(i)), None)):
            cancelled.append(step_id)
            executor.cancel(step_id)
        return poll(timeout_s)

    monkeypatch.setattr(executor, "poll", cancelling)
    states = bench.run(chosen, policy=Policy(retries=1), executor=executor)
    assert {i: s.digest for i, s in states.items()} == plain
    assert cancelled and [n for n in bench.notes if n.startswith(cancelled[0]) and "trying again" in n]
