"""Two runs of one step, or a new run and the finished ones, side by side: the numbers behind the lines of `validate`."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tunescope.records import FinishedStep

TOLERANCE = 0.01
"""Largest difference of a metric, relative to the recorded value."""
AGREEMENT = 0.995
"""Smallest share of equal predictions on another machine."""
KS = 0.95
"""The plan's bound on the Kolmogorov-Smirnov p of two loss curves."""
LEVEL = 0.95
"""Of the prediction interval."""
DIGEST = "training rerun gives the same digest"
CURVES = "training curves overlap (KS p > 0.95)"
FINAL = "final metrics match"
AGREE = "predictions agree on at least 99.5 % of the examples"
Row = tuple[Literal["R0", "R1", "R2", "R3"], str, Literal["PASS", "FAIL", "SKIP"], str]
"""Tier, name, outcome, what was found."""
Pair = tuple[FinishedStep, FinishedStep]
"""Candidate and reference at one seed."""


def training(old: FinishedStep, new: FinishedStep, moved: str) -> Iterator[Row]:
    """A training run against its rerun.

    Args:
        moved: how this machine differs from the one that ran `old`; "" on the same one. Equal digests are claimed of one machine only.
    """
    same = old.result["digest"] == new.result["digest"]
    yield "R1", DIGEST, "SKIP" if moved and not same else _word(same), f"{old.id}: {_digests(old, new, moved)}"
    yield _curves(old, new, same, moved)
    yield _final(old, new, moved)
    yield _agreement(old, new, moved)


def _digests(old: FinishedStep, new: FinishedStep, moved: str) -> str:
    """Losses, weights and predictions by name, then whatever else differs."""
    parts = {"losses": _fact("loss_digest"), "weights": _fact("weights_sha256"), "predictions": _artefact("predictions.parquet")}
    known = {name: (read(old), read(new)) for name, read in parts.items() if read(old) is not None}
    words = ", ".join(f"{name} {'equal' if a == b else 'DIFFERENT'}" for name, (a, b) in known.items())
    if old.result["digest"] == new.result["digest"]:
        return f"digest {old.result['digest'][:16]}… again" + (f" ({words})" if words else "")
    metrics = [m["name"] for m in old.result["metrics"] if new.metric(m["name"], m["split"]) != m["value"]]
    changed = [p for p, sha in old.result["content"].items() if new.result["content"].get(p) != sha]
    machine = f"; another machine ({moved}), R2 decides" if moved else ""
    return f"digests differ: {words}; metrics {metrics[:5] or 'equal'}, artefacts {changed[:5] or 'equal'}{machine}"


def _fact(name: str) -> Any:
    return lambda step: step.outputs.get(name)


def _artefact(name: str) -> Any:
    return lambda step: step.result["content"].get(name)


def _curves(old: FinishedStep, new: FinishedStep, same: bool, moved: str) -> Row:
    """Kolmogorov-Smirnov on the loss values, as the plan asks. It would also pass curves that differ; the digest is the real check.

    Its p is uniform over two independent runs of one recipe, so asking for more than 0.95 raises a false alarm on 95 % of them.
    """
    from scipy.stats import ks_2samp

    first, second = losses(old.folder), losses(new.folder)
    if not first or not second:
        return "R1", CURVES, "FAIL", f"{old.id}: no loss was recorded"
    p = float(ks_2samp(first, second).pvalue)
    exact = "value for value" if first == second else "not value for value"
    found = f"{old.id}: KS p = {p:.3f} over {len(first)} points, equal {exact}; digest {'equal' if same else 'different'}"
    found += "; two sound runs that are not bit-identical miss 0.95 in 95 % of cases, so the digest decides"
    return "R1", CURVES, "SKIP" if moved and not same else _word(p > KS), found


def losses(folder: Path) -> list[float]:
    """Training losses of a step's own record, in order."""
    path = folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row["loss"] for row in rows if row.get("loss") is not None]


def _final(old: FinishedStep, new: FinishedStep, moved: str) -> Row:
    """Every metric equal on the same machine; the test scores within tolerance on another."""
    found = gaps(old, new, "test") if moved else gaps(old, new)
    if not found:
        return "R2" if moved else "R1", FINAL, "FAIL", f"{old.id} recorded no {'test score' if moved else 'metric'}"
    worst, differ = max(found, key=lambda k: found[k]), sum(gap > 0 for gap in found.values())
    said = f"{old.id}: {len(found)} {'test scores' if moved else 'metrics'}, {differ} differ"
    said += f", at most by {found[worst]:.2%} ({worst.split()[-1]})" if differ else ""
    if moved:
        return "R2", FINAL, _word(found[worst] <= TOLERANCE), f"{said}; tolerance {TOLERANCE:.0%} on another machine"
    return "R1", FINAL, _word(differ == 0), said


def _agreement(old: FinishedStep, new: FinishedStep, moved: str) -> Row:
    share, n = agreement(old.folder, new.folder)
    if share is None:
        return "R2", AGREE, "SKIP", f"{old.id}: a search run stores no predictions; finish a final run"
    found = f"{old.id}: {share:.2%} of {n} predictions equal"
    if not moved:
        # Said of one machine it would claim what was not tested.
        return "R2", AGREE, "SKIP", f"{found}, on the same machine: R1 is the stricter test; run validate on another machine for R2"
    return "R2", AGREE, _word(share >= AGREEMENT), f"{found}, on another machine ({moved})"


def agreement(old: Path, new: Path) -> tuple[float | None, int]:
    """Share of examples with equal predictions, and how many there are; None when either folder stores none.

    An example that only one side has counts as unequal.
    """
    import pandas as pd

    paths = [folder / "predictions.parquet" for folder in (old, new)]
    if not all(path.exists() for path in paths):
        return None, 0
    first, second = (pd.read_parquet(path, columns=["example_id", "prediction"]) for path in paths)
    both = first.merge(second, on="example_id", how="outer", suffixes=("_old", "_new"))
    return float((both.prediction_old == both.prediction_new).mean()), len(both)


def gaps(old: FinishedStep, new: FinishedStep, split: str | None = None) -> dict[str, float]:
    """`step name` -> difference of each metric (of a split), relative to the old value; infinite when one side lacks it."""
    rows = [m for m in old.result["metrics"] if split in (None, m["split"])]
    return {f"{old.id} {m['name']}": _relative(m["value"], new.metric(m["name"], m["split"])) for m in rows}


def _relative(old: float | None, new: float | None) -> float:
    if old is None or new is None:
        return 0.0 if old is new else float("inf")
    return abs(new - old) / max(abs(old), 1e-12) if new != old else 0.0


def paired(finished: Mapping[str, FinishedStep], task: str, methods: Sequence[str]) -> dict[int, Pair]:
    """Seed -> the finished final runs of both methods on a task."""
    runs = [{s.inputs["seed"]: s for i, s in finished.items() if i.startswith(f"train/{task}/{method}/final/")} for method in methods]
    return {seed: (runs[0][seed], runs[1][seed]) for seed in sorted(runs[0].keys() & runs[1].keys())}


def predicted(pairs: Sequence[Pair], new: Pair, metric: str, split: str, where: str) -> Row:
    """Whether the new candidate-to-reference ratio lies where one more draw from the finished ones would with 95 % probability.

    The interval is mean ± t(0.975, n - 1) · s · √(1 + 1/n) over the n seeds' ratios (Meeker, Hahn and Escobar, Statistical Intervals).
    """
    name = f"new seed's {metric} ratio inside the {LEVEL:.0%} prediction interval"
    old = [_ratio(pair, metric, split) for pair in pairs]
    now = _ratio(new, metric, split)
    if now is None or None in old:
        return "R3", name, "SKIP", f"{where}: the reference's {metric} is missing or 0, so there is no ratio"
    low, high = prediction_interval([r for r in old if r is not None])
    found = f"{where}: ratio {now:.4f}, interval [{low:.4f}, {high:.4f}] from {len(old)} seeds; by chance 1 in 20 falls outside"
    return "R3", name, _word(low - 1e-12 <= now <= high + 1e-12), found


def prediction_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval for one more draw of a normal sample of at least two."""
    from scipy.stats import t

    n = len(values)
    mean = sum(values) / n
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(t.ppf((1 + LEVEL) / 2, n - 1)) * spread * math.sqrt(1 + 1 / n)
    return mean - half, mean + half


def _ratio(pair: Pair, metric: str, split: str) -> float | None:
    candidate, reference = (step.metric(metric, split) for step in pair)
    return candidate / reference if candidate is not None and reference else None


def _word(passed: bool) -> Literal["PASS", "FAIL"]:
    return "PASS" if passed else "FAIL"
