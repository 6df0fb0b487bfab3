"""The columns of every frame read from a store, with their pandas types."""

_RUN = {"step_id": "str", "task": "str", "method": "str", "role": "str", "seed": "Int64"}
_PREDICTION = {
    "example_id": "str", "group": "str", "article": "str", "label": "str", "prediction": "str", "correct": "float64", "f1": "float64",
    "no_answer_probability": "float64", "label_logprobs": "object",
}  # fmt: skip
COLUMNS: dict[str, dict[str, str]] = {
    "steps": {
        **_RUN, "kind": "str", "fingerprint": "str", "machine": "str", "started": "float64", "finished": "float64", "inputs": "object",
        "outputs": "object", "notes": "object",
    },
    "metrics": {
        **_RUN, "kind": "str", "source": "str", "name": "str", "value": "float64", "unit": "str", "split": "str", "n": "Int64",
        "higher_is_better": "boolean",
    },
    "predictions": {**_RUN, **_PREDICTION},
    "baselines": {"step_id": "str", "task": "str", "system": "str", **_PREDICTION},
    "drift": {
        **_RUN, "step": "int64", "scored": "bool", "layer": "int64", "pooling": "str", "measure": "str", "block": "int64",
        "value": "float64", "n": "int64",
    },
    "series": {
        **_RUN, "step": "int64", "time_s": "float64", "loss": "float64", "learning_rate": "float64", "grad_norm": "float64",
        "clipped": "float64", "selection_loss": "float64", "tokens_per_s": "float64", "step_time_s": "float64", "drift": "float64",
        "adapter_norm": "float64",
    },
    "launches": {
        "step_id": "str", "arm": "str", "launch": "int64", "order": "int64", "batch_size": "int64", "prompt_length": "int64",
        "output_tokens": "int64", "sampling": "str", "adapters_active": "int64", "requests": "int64", "seconds": "float64",
        "ms_per_token": "float64", "tokens_per_s": "float64", "note": "str",
        **{f"{name}_p{q}": "float64" for name in ("ttft_ms", "tpot_ms", "latency_ms") for q in (50, 95, 99)},
    },
    "engines": {
        "step_id": "str", "arm": "str", "launch": "int64", "order": "int64", "ok": "bool", "error": "str", "adapters": "object",
        "max_loras": "Int64", "max_lora_rank": "Int64", "enforce_eager": "boolean", "dtype": "str", "cold_start_s": "float64",
        "engine_start_s": "float64", "kv_blocks": "float64", "weight_bytes": "float64", "compiled_during_inference": "boolean",
        "versions": "object", "switching": "object", "load_s": "object",
    },
    "noise": {
        "step_id": "str", "task": "str", "condition": "str", "layer": "int64", "pooling": "str", "measure": "str", "value": "float64",
    },
}  # fmt: skip
"""Columns every frame has, also when empty, with their pandas types. `step_id` is always the step the row came from."""
