"""Peak memory of whole training steps (start-up, probes, training, scoring) in the profile for small GPUs, through the real `run_train`."""

import fnmatch
import json
import multiprocessing
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SETTINGS = {"micro_batch": 1, "eval_batch": 2, "max_steps": 40, "eval_every": 20, "log_every": 5, "deterministic": False}
"""Profile `small` (docs/training.md), for a few steps."""

VARIANTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "full": ("full", {}, ""),
    "lora": ("lora", {}, ""),
    "full-expandable": ("full", {}, "expandable_segments:True"),
    "full-plain": ("full", {"capture": "never"}, ""),
    "full-plain-expandable": ("full", {"capture": "never"}, "expandable_segments:True"),
    "lora-plain": ("lora", {"capture": "never"}, ""),
}
"""Name -> method, changed settings, and settings of PyTorch's allocator (as PYTORCH_ALLOC_CONF takes them)."""


class Silent:
    """A tracker that keeps nothing."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def histogram(self, name: str, values: Any, step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def rewind(self, step: int) -> None: ...


def save_random_model(folder: Path, shape: dict[str, int], device: str) -> None:
    """A bf16 checkpoint of random weights with the tokenizer of the embedded model."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from tunescope.models.loading import load_tokenizer, resolve_model
    from tunescope.study.schema import ModelSpec

    tokenizer = load_tokenizer(resolve_model(ModelSpec(name="sprout-2m")))
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = LlamaForCausalLM(LlamaConfig(**(shape | {"vocab_size": max(shape["vocab_size"], len(tokenizer))})))
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_once(folder: Path, method: str, task: str, device: str, changes: dict[str, Any], allocator: str) -> None:
    """One run; writes its memory beside it."""
    import torch

    if allocator:
        torch.cuda.memory._set_allocator_settings(allocator)
    from tunescope.records import StepContext
    from tunescope.study.inputs import TrainInputs
    from tunescope.study.schema import AdapterSpec, DriftSpec, MethodSpec, ModelSpec, TaskSpec, TrainingSpec
    from tunescope.train.finetune import run_train

    adapter = AdapterSpec() if method == "lora" else None
    inputs = TrainInputs(
        task=task, model=ModelSpec(name=str(folder / "model")), method=method, role="final", seed=42, learning_rate=1e-5, batch_size=8,
        method_spec=MethodSpec(adapter=adapter, warmup_ratio=0.1, learning_rates=(1e-5,)), task_spec=TaskSpec(max_length=512),
        training=TrainingSpec(**(SETTINGS | changes)), drift=DriftSpec(probe_examples=40, every=20, early_steps=(1,), batch_size=2),
    )  # fmt: skip
    step = folder / "step"
    shutil.rmtree(step, ignore_errors=True)
    step.mkdir()
    result = run_train(inputs, StepContext(step, folder / "data", {}, device, Silent()))
    (folder / "result.json").write_text(json.dumps({m.name: m.value for m in result.resources}))


def profile_small(device: str, shape: dict[str, int], only: Sequence[str], budget_s: float) -> None:
    """Print a markdown table: variant, peaks by phase in GiB. Starts no further variant when the budget is spent."""
    from tunescope.data.prepare import prepare
    from tunescope.study.schema import DataSpec, Limits

    started, context = time.monotonic(), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tunescope.train.finetune"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = context.Process(target=save_random_model, args=(folder / "model", shape, device))
        maker.start()
        prepare("mrpc", DataSpec(source="sample"), Limits(train=400, selection=40, test=40), 40, folder / "data")
        maker.join()
        print("| variant | numbers |\n|---|---|", flush=True)
        for variant in (v for v in VARIANTS if any(fnmatch.fnmatch(v, pattern) for pattern in only)):
            if time.monotonic() - started > budget_s:
                print(f"| {variant} | not measured: the budget of {budget_s:.0f} s is spent |", flush=True)
                continue
            method, changes, allocator = VARIANTS[variant]
            process = context.Process(target=train_once, args=(folder, method, "mrpc", device, changes, allocator))
            process.start()
            process.join()
            path = folder / "result.json"
            found = json.loads(path.read_text()) if path.exists() else {}
            path.unlink(missing_ok=True)
            shown = {k: round(v / 2**30, 2) if k.endswith("bytes") else round(v, 3) for k, v in found.items() if v is not None}
            print(f"| {variant} | {shown or 'failed'} |", flush=True)
