"""Do all arms compute what they should: served log-probabilities against each other and against Hugging Face and PEFT."""

from collections.abc import Mapping, Sequence
from typing import Any

MINIMUM_DIFFERENCE = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 2e-3}
"""Nats by which an adapter must move some log-probability to count as applied."""
LOW_PRECISION_TOLERANCE = {"bfloat16": 0.1, "float16": 0.02}
"""Nats, on the mean absolute difference. bf16 rounds logits near 16 in steps of 0.125, so single tokens differ by more than that."""


def compare(a: Sequence[float], b: Sequence[float]) -> dict[str, float]:
    """Largest and mean absolute difference of two lists of log-probabilities (nats)."""
    gaps = [abs(x - y) for x, y in zip(a, b, strict=True)]
    return {"max": max(gaps), "mean": sum(gaps) / len(gaps)}


def within(gap: Mapping[str, float], dtype: str, merge_tolerance_fp32: float) -> bool:
    """Whether a difference is rounding.

    fp32: the largest is at most twice the logit tolerance, since |Δ log-softmax| <= 2 max |Δ logit|. Lower precisions: the mean.
    """
    if dtype == "float32":
        return gap["max"] <= 2 * merge_tolerance_fp32
    return gap["mean"] <= LOW_PRECISION_TOLERANCE[dtype]


def correctness(
    rows: Sequence[Mapping[str, Any]], references: Mapping[str, Sequence[float]], task: str, dtype: str, merge_tolerance_fp32: float
) -> dict[str, Any]:
    """Compare the checks of the finished launches.

    Per adapter: `differs_from_base` (largest difference, nats), its difference to PEFT and, for the served task, to the merged arm. Per
    served model (base, full, merged): its difference to Hugging Face. Takes each arm's first finished launch; `spread` is the largest
    difference between launches of one arm.
    """
    first: dict[str, Mapping[str, Any]] = {}
    spread: dict[str, float] = {}
    for row in rows:
        if not row["ok"]:
            continue
        seen = first.setdefault(row["arm"], row["check"])
        spread[row["arm"]] = max(spread.get(row["arm"], 0.0), compare(seen["model"], row["check"]["model"])["max"])
    judge = _Judge(dtype, merge_tolerance_fp32)
    models = {
        arm: {"reference": source, **judge.verdict(first[arm]["model"], references[ref])}
        for arm, ref, source in (
            ("base", "base", "Hugging Face"),
            ("full", "full", "Hugging Face"),
            ("merged", task, "the adapter in PEFT"),
        )
        if arm in first and ref in references
    }
    merged = first["merged"]["model"] if "merged" in first else None
    adapters: dict[str, Any] = {}
    for arm, check in first.items():
        for name, values in check["adapters"].items():
            against = {"peft": references.get(name), "merged": merged if name == task else None}
            adapters[f"{arm}/{name}"] = _adapter(check["model"], values, against, judge)
    every = [*models.values(), *adapters.values()]
    return {
        "unit": "nats",
        "dtype": dtype,
        "ok": all(entry["ok"] for entry in every) and bool(every),
        "models": models,
        "adapters": adapters,
        "spread_between_launches": spread,
    }


class _Judge:
    def __init__(self, dtype: str, merge_tolerance_fp32: float):
        self.dtype, self.tolerance = dtype, merge_tolerance_fp32

    def verdict(self, served: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
        gap = compare(served, reference)
        return {"max_difference": gap["max"], "mean_difference": gap["mean"], "ok": within(gap, self.dtype, self.tolerance)}


def _adapter(
    base: Sequence[float], values: Sequence[float], against: Mapping[str, Sequence[float] | None], judge: _Judge
) -> dict[str, Any]:
    effect = compare(values, base)["max"]
    entry: dict[str, Any] = {"differs_from_base": effect, "ok": effect > MINIMUM_DIFFERENCE[judge.dtype]}
    for name, reference in against.items():
        if reference is None:
            continue
        verdict = judge.verdict(values, reference)
        entry[f"max_difference_to_{name}"], entry[f"mean_difference_to_{name}"] = verdict["max_difference"], verdict["mean_difference"]
        entry["ok"] = entry["ok"] and verdict["ok"]
    return entry


def problems(found: Mapping[str, Any]) -> list[str]:
    """What is wrong, in words."""
    outside = "served log-probabilities are outside tolerance"
    wrong = [f"{name}: {outside} of {e['reference']} ({_numbers(e)}; nats)" for name, e in found["models"].items() if not e["ok"]]
    return wrong + [f"{name}: {outside} ({_numbers(e)}; nats)" for name, e in found["adapters"].items() if not e["ok"]]


def _numbers(entry: Mapping[str, Any]) -> str:
    return ", ".join(f"{k.replace('_', ' ')} {v:.2g}" for k, v in entry.items() if isinstance(v, float))
