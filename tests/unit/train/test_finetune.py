"""Whole training steps on the sample data: resuming, determinism, what is written, and what goes wrong."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from transformers import TrainingArguments

from tunescope.data.prepare import prepare
from tunescope.errors import PrerequisiteError, StepError, StudyError
from tunescope.models.loading import resolve_model
from tunescope.models.lora_utils import load_finetuned, tensor_sha256
from tunescope.records import StepContext, StepResult
from tunescope.study.inputs import TrainInputs
from tunescope.study.schema import AdapterSpec, DataSpec, DriftSpec, Limits, MethodSpec, ModelSpec, TaskSpec, TrainingSpec
from tunescope.train import finetune
from tunescope.train.evaluate import read_predictions
from tunescope.train.finetune import run_train, warmup_length
from tunescope.train.precision import Precision
from tunescope.train.proofs import merged_in_bf16
from tunescope.train.red_flags import adapter_flags

SPROUT = ModelSpec(name="sprout-2m")


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program catches it."""


class Log:
    """A tracker that remembers, and dies at a given step."""

    def __init__(self, die_at: int | None = None):
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.histograms: list[str] = []
        self.die_at = die_at

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.rows.append((step, dict(values)))
        if self.die_at is not None and step >= self.die_at and "loss" in values:
            raise Killed

    def rewind(self, step: int) -> None: ...

    def histogram(self, name: str, values: Any, step: int) -> None:
        self.histograms.append(name)

    def summary(self, values: Mapping[str, Any]) -> None: ...


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare("sst2", DataSpec(source="sample"), Limits(train=64, selection=24, test=24), 24, folder)
    prepare("squad_v2", DataSpec(source="sample"), Limits(train=64, selection=24), 24, folder)
    return folder


def inputs(method: str, role: str = "final", task: str = "sst2", **changes: Any) -> TrainInputs:
    adapter = changes.pop("adapter", AdapterSpec() if method == "lora" else None)
    rate = changes.pop("learning_rate", 1e-3)
    length = changes.pop("max_length", 128)
    ratio = changes.pop("warmup_ratio", 0.1)
    drift = DriftSpec(probe_examples=24, every=4, early_steps=(1,), batch_size=24)
    training = {"max_steps": 10, "eval_every": 3, "checkpoint_every": 5, "log_every": 2, "eval_batch": 24} | changes
    return TrainInputs(
        task=task, model=SPROUT, method=method, method_spec=MethodSpec(adapter=adapter, warmup_ratio=ratio, learning_rates=(rate,)),
        role=role, seed=42, learning_rate=rate, batch_size=8, task_spec=TaskSpec(max_length=length), training=TrainingSpec(**training),
        drift=drift,
    )  # fmt: skip


def run(data: Path, folder: Path, method: str, log: Log | None = None, **changes: Any) -> StepResult:
    folder.mkdir(exist_ok=True)
    return run_train(inputs(method, **changes), StepContext(folder, data, {}, "cpu", log or Log()))


def digest(result: StepResult, folder: Path) -> dict[str, Any]:
    """Everything of a step that must not depend on how often it was interrupted."""
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in result.content}
    files |= (
        pd.read_parquet(folder / "drift.parquet").set_index(["step", "scored", "layer", "pooling", "measure", "block"])["value"].to_dict()
    )
    return {"metrics": [m.model_dump() for m in result.metrics], "outputs": result.outputs, "files": files}


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> dict[str, tuple[StepResult, Path, Log]]:
    """One uninterrupted run of each method (LoRA with its dropout of 0.05)."""
    runs = {}
    for method in ("full", "lora"):
        folder, log = tmp_path_factory.mktemp(method), Log()
        runs[method] = (run(data, folder, method, log), folder, log)
    return runs


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("die_at", [2, 8])
def test_a_killed_run_ends_bit_identical(data, finished, tmp_path, method, die_at):
    whole, folder, _ = finished[method]
    with pytest.raises(Killed):
        run(data, tmp_path, method, Log(die_at))
    result = run(data, tmp_path, method)
    assert digest(result, tmp_path) == digest(whole, folder)
    assert any("resumed at step" in note for note in result.notes) == (die_at == 8)


def test_a_damaged_checkpoint_is_not_trusted(data, finished, tmp_path):
    whole, folder, _ = finished["lora"]
    with pytest.raises(Killed):
        run(data, tmp_path, "lora", Log(10))
    last = max((tmp_path / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name.split("-")[1]))
    (last / "optimizer.pt").write_bytes(b"not what it was")
    result = run(data, tmp_path, "lora")
    assert not any(f"resumed at step {last.name.split('-')[1]}" in note for note in result.notes)
    assert digest(result, tmp_path) == digest(whole, folder)


def test_a_run_killed_while_scoring_does_not_train_again(data, finished, tmp_path, monkeypatch):
    from tunescope.train import outcome

    def die(*args: Any) -> None:
        raise Killed

    whole, folder, _ = finished["full"]
    with monkeypatch.context() as patch:
        patch.setattr(outcome, "_score", die)
        with pytest.raises(Killed):
            run(data, tmp_path, "full")
    log = Log()
    result = run(data, tmp_path, "full", log)
    assert not any("loss" in values for _, values in log.rows)
    assert digest(result, tmp_path) == digest(whole, folder)


def test_a_run_killed_before_its_result_is_written_does_not_train_again(data, finished, tmp_path):
    whole, folder, _ = finished["lora"]
    run(data, tmp_path, "lora")
    log = Log()
    result = run(data, tmp_path, "lora", log)
    assert not any("loss" in values for _, values in log.rows)
    assert digest(result, tmp_path) == digest(whole, folder)
    peaks = [{m.name for m in r.resources} & {"peak_rss_bytes", "wall_s"} for r in (whole, result)]
    assert peaks == [{"peak_rss_bytes", "wall_s"}, set()]  # this process never trained


def test_a_run_resumed_where_auto_is_another_precision_starts_anew(data, finished, tmp_path, monkeypatch):
    whole, folder, _ = finished["lora"]
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "resolve_precision", lambda wanted, device: Precision("bf16-mixed", device))
        with pytest.raises(Killed):
            run(data, tmp_path, "lora", Log(8))
    result = run(data, tmp_path, "lora")
    assert [note for note in result.notes if "anew" in note] == [
        "started anew: the checkpoint at step 6 is of precision bf16-mixed, not fp32"
    ]
    assert digest(result, tmp_path) == digest(whole, folder)


def test_same_seed_same_numbers(data, finished, tmp_path):
    whole, folder, _ = finished["lora"]
    assert digest(run(data, tmp_path, "lora"), tmp_path) == digest(whole, folder)


def test_methods_share_their_data_order(data, tmp_path, monkeypatch):
    seen: dict[str, list[int]] = {}
    for method in ("full", "lora"):
        prepared = finetune.prepare(inputs(method), StepContext(tmp_path, data, {}, "cpu", Log()))
        order = finetune._dataset(prepared)
        seen[method] = [order[i].input_ids for i in range(len(order))]
    assert seen["full"] == seen["lora"] and len(seen["full"]) == 80


@pytest.mark.parametrize("method", ["full", "lora"])
def test_records_of_a_final_run(finished, method):
    result, folder, log = finished[method]
    values = {m.name: m.value for m in result.metrics}
    assert {
        "accuracy",
        "selection_loss",
        "drift",
        "drift_block_4",
        "clipped_share",
        "best_step",
        "trainable_parameters",
    } <= values.keys()
    assert values["total_parameters"] - (values["trainable_parameters"] if method == "lora" else 0) == 2_156_160
    assert values["trainable_parameters"] == (21_504 if method == "lora" else 2_156_160)
    drift = pd.read_parquet(folder / "drift.parquet")
    assert not drift.duplicated(["step", "scored", "layer", "pooling", "measure", "block"]).any()
    assert sorted(drift.loc[~drift["scored"], "step"].unique()) == [0, 1, 4, 8]
    assert drift.loc[drift["scored"], "step"].unique().tolist() == [values["best_step"]]
    start = drift[(drift["step"] == 0) & (drift["measure"] == "cka_drift_debiased")]
    assert (start["value"] == 0).all() and len(start) >= 12
    assert values["drift"] > 0
    assert all((folder / name).is_file() for name in result.content)
    assert sorted(p.name for p in (folder / "probe").iterdir()) == ["scored.safetensors", "step-0.safetensors"]
    with safe_open(folder / "probe" / "scored.safetensors", "numpy") as states:
        assert states.metadata()["probe_sha256"] == result.outputs["probe_sha256"]
    names = {name for _, row in log.rows for name in row}
    assert {"loss", "learning_rate", "grad_norm", "clipped", "selection_loss", "tokens_per_s", "step_time_s", "drift"} <= names
    assert {"activation_rms/layer_6", "grad_norm/layer_6"} <= names
    assert bool(log.histograms) == (method == "lora")


def test_proofs_of_an_adapter_run(finished):
    result, _, _ = finished["lora"]
    values = {m.name: m.value for m in result.metrics}
    assert 0 < values["merge_max_abs_logit_difference"] <= 1e-4 and values["merge_label_agreement"] == 1
    assert values["merge_bf16_label_agreement"] >= 0.99 and values["merge_bf16_score_gap"] <= 0.005
    facts = result.outputs
    assert facts["merge_bf16_computed_in"] == "fp32"  # weights rounded to bf16: a CPU need not have its arithmetic
    assert facts["base_unchanged"] and facts["unload_restores_base"] and facts["reload_restores_adapter"]
    assert facts["base_sha256"]["before"] == facts["base_sha256"]["after"]
    assert len(facts["rank_utilisation"]) == 12 and 1 / 8 <= values["rank_utilisation"] <= 1
    assert not any("merged" in n or "base weights" in n for n in result.notes)


def test_a_merged_model_that_predicts_otherwise_raises_a_flag(data, finished, tmp_path):
    """The proof takes the merged model's own predictions: one whose head is turned round gives other labels."""
    prepared = finetune.prepare(inputs("lora"), StepContext(tmp_path, data, {}, "cpu", Log()))
    result, folder, _ = finished["lora"]
    merged = load_finetuned(resolve_model(SPROUT), folder, torch.float32, "cpu").merge_and_unload()
    stored = read_predictions(folder / "predictions.parquet")
    sound, computed_in = merged_in_bf16(prepared, merged, stored)
    assert sound == [m for m in result.metrics if m.name.startswith("merge_bf16")] and computed_in == "fp32"
    assert all(torch.equal(p, p.bfloat16().float()) for p in merged.parameters())
    merged.model.norm.weight.data.neg_()
    broken, _ = merged_in_bf16(prepared, merged, stored)
    assert broken[0].value < 0.5 and any("equal predictions" in flag for flag in adapter_flags(result.outputs, broken, 1e-4))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_is_saved_is_what_was_scored(data, finished, method):
    from tunescope.data import load_examples
    from tunescope.data.tasks import get_task
    from tunescope.models.loading import load_tokenizer
    from tunescope.train.evaluate import score_labels

    result, folder, _ = finished[method]
    base = resolve_model(SPROUT)
    model = load_finetuned(base, folder, torch.float32, "cpu")
    wanted = {n: p for n, p in model.named_parameters() if method == "full" or "lora_" in n}
    assert tensor_sha256(wanted) == result.outputs["weights_sha256"]
    again = score_labels(model, load_tokenizer(base), load_examples(data, "sst2", "test"), get_task("sst2"), 128, 24, "cpu")
    assert [p.prediction for p in again] == pd.read_parquet(folder / "predictions.parquet")["prediction"].tolist()
    if method == "lora":
        assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == "sprout-2m"


def test_a_search_run_keeps_no_weights_and_takes_no_early_probes(data, tmp_path):
    result = run(data, tmp_path, "lora", role="search")
    assert {p.name for p in tmp_path.iterdir()} == {"drift.parquet", "probe", "checkpoints"}  # these until its result is written
    drift = pd.read_parquet(tmp_path / "drift.parquet")
    assert drift.loc[~drift["scored"], "step"].unique().tolist() == [0]
    assert {"selection_loss", "drift"} <= {m.name for m in result.metrics}
    assert not any(m.split == "test" for m in result.metrics)


def test_questions_train_on_answer_and_end_token(data, tmp_path):
    result = run(data, tmp_path, "lora", task="squad_v2", max_steps=3, max_length=96)
    values = {m.name: m.value for m in result.metrics}
    assert {"f1", "exact_match", "no_ans_accuracy"} <= values.keys()
    cut = result.outputs["truncated"]["train"]
    assert cut["examples"] == 64 and cut["truncated"] > cut["answers_lost"] > 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16"])
def test_half_precision_variants_keep_the_adapter_proofs(data, tmp_path, precision):
    result = run(data, tmp_path, "lora", precision=precision, max_steps=3)
    facts, values = result.outputs, {m.name: m.value for m in result.metrics}
    assert facts["precision"] == precision and facts["base_unchanged"]
    assert facts["unload_restores_base"] and facts["reload_restores_adapter"]
    assert values["merge_max_abs_logit_difference"] <= 1e-4 and values["drift"] > 0


def test_early_stopping_keeps_the_best(data, tmp_path):
    result = run(data, tmp_path, "full", learning_rate=3e-2, max_steps=40, eval_every=2, early_stopping_patience=2, role="search")
    values = {m.name: m.value for m in result.metrics}
    assert values["steps_run"] == values["best_step"] + 4 < 40


def test_diverging_loss_stops_the_run_with_advice(data, tmp_path):
    with pytest.raises(StepError, match=r"lower (this method's|the) learning rate"):
        run(data, tmp_path, "full", learning_rate=1e18, role="search", max_grad_norm=1e30)


def test_out_of_memory_halves_the_micro_batch_and_says_so(data, tmp_path, monkeypatch):
    real, tried = finetune._train_once, []

    def short_of_memory(prepared: Any, micro: int) -> Any:
        tried.append(micro)
        if micro > 2:
            raise torch.OutOfMemoryError
        return real(prepared, micro)

    monkeypatch.setattr(finetune, "_train_once", short_of_memory)
    result = run(data, tmp_path, "lora", role="search", max_steps=2)
    assert tried == [8, 4, 2] and result.outputs["micro_batch"] == 2 and result.outputs["batch_size"] == 8
    assert sum("out of GPU memory" in note for note in result.notes) == 2


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"max_length": 8}, StudyError, "max_length 8"),
        ({"warmup_ratio": 1.0}, StudyError, "warmup_ratio 1.0"),
        ({"learning_rate": None}, StudyError, "not chosen yet"),
        ({"adapter": AdapterSpec(target_modules=("query",))}, StudyError, "matches no module"),
    ],
)
def test_bad_settings_are_named(data, tmp_path, changes, error, message):
    wanted = inputs("lora", **({k: v for k, v in changes.items() if k != "learning_rate"}))
    if "learning_rate" in changes:
        wanted = wanted.model_copy(update={"learning_rate": None})
    with pytest.raises(error, match=message):
        run_train(wanted, StepContext(tmp_path, data, {}, "cpu", Log()))


def test_missing_data_is_a_prerequisite(tmp_path):
    with pytest.raises(PrerequisiteError):
        run(tmp_path / "nothing", tmp_path, "full")


@pytest.mark.parametrize(
    ("ratio", "steps", "expected"), [(0.1, 60, 6), (0.06, 50, 3), (0.06, 40, 3), (0.06, 80, 5), (0.1, 5, 1), (0.0, 1, 0)]
)
def test_warm_up_is_whole_steps_as_the_stock_trainer_counts_them(ratio, steps, expected, tmp_path):
    assert warmup_length(ratio, steps) == expected
    assert TrainingArguments(output_dir=str(tmp_path), warmup_steps=ratio).get_warmup_steps(steps) == expected


def test_a_warm_up_fills_no_run_by_rounding_and_is_refused_where_it_is_asked_to():
    assert warmup_length(0.1, 1) == 0 and warmup_length(0.95, 5) == 4
    with pytest.raises(StudyError, match="5 warm-up steps are not shorter than the run of 5 steps"):
        warmup_length(1.0, 5)


def test_lost_best_checkpoint_is_an_error(tmp_path):
    from tunescope.train.outcome import load_weights

    shutil.rmtree(tmp_path / "checkpoint-3", ignore_errors=True)
    with pytest.raises(StepError, match="best checkpoint is gone"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "checkpoint-3")
