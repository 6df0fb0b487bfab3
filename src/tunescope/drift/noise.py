"""The base-probe step: the untuned model's states, and how far they move for reasons that are not training."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch

from tunescope.data import load_examples
from tunescope.drift.probe import Probe
from tunescope.drift.states import ProbeStates, save_states
from tunescope.drift.table import drift_table
from tunescope.models.loading import load_model, load_tokenizer, resolve_model
from tunescope.records import Metric, StepContext, StepResult, store_root
from tunescope.study.inputs import BaseProbeInputs

CONDITIONS = ("batch_size", "padding_side", "dtype")
NOISE_MEASURES = ("cka_drift_debiased", "cka_drift_plain", "cosine_raw", "relative_displacement")


def run_base_probe(inputs: BaseProbeInputs, ctx: StepContext) -> StepResult:
    """Probe the untuned model: `probe/base.safetensors`, `noise.parquet` (base against base) and `activations.parquet`."""
    path = resolve_model(inputs.model, store_root(ctx.folder))
    model = load_model(path, dtype=torch.float32, device=ctx.device)
    examples = load_examples(ctx.data_dir, inputs.task, "probe")
    probe = Probe(inputs.task, examples, load_tokenizer(path), inputs.max_length, inputs.drift, ctx.device)
    ctx.progress(0, 5, "base states")
    base = probe.states(model, internals=False, name="base")
    save_states(ctx.folder / "probe" / "base.safetensors", base, extras=False)
    ctx.progress(1, 5, "massive activations")
    activations = probe.activations(model)
    activations.to_parquet(ctx.folder / "activations.parquet", index=False)
    noise = pd.concat(list(_noise(probe, model, base, ctx)), ignore_index=True)
    noise.to_parquet(ctx.folder / "noise.parquet", index=False)
    metrics = [
        Metric(name=f"noise_floor/{c}", value=v, unit="1 - CKA", split="probe", n=base.n, higher_is_better=False)
        for c, v in scalar_floors(noise, inputs.drift.primary_pooling).items()
    ]
    ratios = [float(v) for v in activations["max_over_median"]]
    metrics.append(Metric(name="massive_activations", value=max(ratios), unit="max |h| / median |h|", split="probe", n=base.n))
    ctx.tracker.log({m.name: m.value for m in metrics if m.value is not None}, step=0)
    outputs = {
        "probe_sha256": base.probe_sha256,
        "convention": base.convention,
        "n_layers": base.n_layers,
        "n": base.n,
        "truncated": probe.truncated,
        "massive_activations": ratios,  # by layer from 0
    }
    return StepResult(metrics=metrics, outputs=outputs, content=["probe/base.safetensors", "noise.parquet", "activations.parquet"])


def _noise(probe: Probe, model: torch.nn.Module, base: ProbeStates, ctx: StepContext) -> Iterator[pd.DataFrame]:
    """Base against base under each condition; bf16 comes last because it changes the model."""
    size = probe.spec.batch_size
    for step, condition in enumerate(CONDITIONS, start=2):
        ctx.progress(step, 5, f"noise floor: {condition}")
        if condition == "batch_size":
            states = probe.states(model, internals=False, batch_size=size // 2 if size > 1 else 2, name=condition)
        elif condition == "padding_side":
            states = probe.states(model, internals=False, padding="left", name=condition)
        else:
            for parameter in model.parameters():  # not model.to(): rotary frequencies are buffers, fp32 in a model loaded as bf16 too
                parameter.data = parameter.data.bfloat16()
            states = probe.states(model, internals=False, name=condition)
        table = drift_table(base, states, probe.spec, scored=False)
        table = table[table["measure"].isin(NOISE_MEASURES) & (table["layer"] >= 0)]
        yield table.assign(condition=condition)[["condition", "layer", "pooling", "measure", "value"]]


def scalar_floors(noise: pd.DataFrame, pooling: str) -> dict[str, float]:
    """Per condition, the registered scalar of base against base: mean over layers 1..L of debiased-CKA drift."""
    chosen = noise[(noise["measure"] == "cka_drift_debiased") & (noise["pooling"] == pooling) & (noise["layer"] > 0)]
    return {str(c): float(v) for c, v in chosen.groupby("condition", sort=True)["value"].mean().items()}


def layer_floors(noise: pd.DataFrame) -> dict[tuple[int, str], float]:
    """The largest debiased-CKA drift over conditions, per (layer, pooling)."""
    chosen = noise[noise["measure"] == "cka_drift_debiased"]
    return {(int(k), str(p)): float(v) for (k, p), v in chosen.groupby(["layer", "pooling"])["value"].max().items()}


def read_noise(folder: Path) -> pd.DataFrame:
    """The noise table of a finished base-probe step."""
    return pd.read_parquet(folder / "noise.parquet")
