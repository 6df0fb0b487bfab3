"""Sanity of training: it can learn ten examples by heart, gradients flow where they should, and equal settings give equal numbers."""

import json
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from tunescope.records import Metric
from tunescope.study.identity import fingerprint
from tunescope.study.schema import TaskName, Tracking

from .bench import TEN, Bench, Ran
from .outcome import Check, judge, timed

EPOCHS = 50
OVERFIT_BATCH = 5
FLOW_STEPS = 4
CLIP_AT = 1e-3
"""Gradient norm that every step exceeds."""
NO_CLIPPING = 1e9
TOLERANCE = {"fp32": 1e-3, "bf16-mixed": 0.1, "bf16": 0.1}
"""Largest relative difference of a gradient between micro-batch sizes: rounding, in the precision of the run."""


def sanity(bench: Bench, tasks: Sequence[TaskName], methods: Sequence[str], note: Callable[[str], None]) -> Iterator[Check]:
    """All checks of one study's training, in order; each is a short real run or several."""
    short = "sst2" if "sst2" in tasks else tasks[0]
    varied = "squad_v2" if "squad_v2" in tasks else short
    yield from timed("data", lambda: data(bench, tasks))
    for task in tasks:
        for method in methods:
            note(f"overfitting ten examples of {task} with {method}")
            yield from timed(f"overfit {task} {method}", lambda t=task, m=method: overfit(bench, t, m))  # type: ignore[misc]
    note("gradients")
    flows: dict[str, Ran] = {}
    for method in methods:
        yield from timed(f"gradient flow {method}", lambda m=method: flow(bench, short, m, flows))  # type: ignore[misc]
    if flows:
        yield Check("gradient norms side by side", "PASS", "first step, before clipping", tuple(norm_table(flows)))
    for method, run in flows.items():
        yield from timed(f"clipping {method}", lambda m=method, r=run: clipping(m, r))  # type: ignore[misc]
    for method in methods:
        note(f"accumulation and reproducibility with {method}")
        yield from timed(f"accumulation {method}", lambda m=method: accumulation(bench, varied, m))  # type: ignore[misc]
        yield from timed(f"reproducibility {method}", lambda m=method: reproducibility(bench, short, m))  # type: ignore[misc]
    yield from timed("W&B logging", lambda: wandb_logging(bench.root / "wandb-check"))


def data(bench: Bench, tasks: Sequence[TaskName]) -> Check:
    """Every task loads and verifies, with labels in every scored part."""
    from tunescope.data import load_examples

    problems, sizes = [], []
    for task in tasks:
        folder = bench.data(task)
        parts = {p: load_examples(folder, task, p) for p in ("train", "selection", "test", "probe")}  # type: ignore[arg-type]
        problems += [f"{task}: no {name} examples" for name, rows in parts.items() if not rows]
        problems += [f"{task}: {e.id} has no label" for p in ("train", "selection", "test") for e in parts[p] if e.completion is None][:3]
        sizes.append(f"{task} {'/'.join(str(len(rows)) for rows in parts.values())}")
    return judge("data", problems, f"train/selection/test/probe examples, checksums verified: {', '.join(sizes)}")


def overfit(bench: Bench, task: TaskName, method: str) -> Check:
    """Ten examples learnt by heart: every one of them right after at most EPOCHS epochs."""
    steps = EPOCHS * TEN // OVERFIT_BATCH
    folder = bench.ten_examples(task)
    run = bench.train(task, method, folder, role="final", batch=OVERFIT_BATCH, max_epochs=EPOCHS, log_every=steps // 10)
    return overfit_verdict(task, method, run, bench.rate(task, method))


def overfit_verdict(task: str, method: str, run: Ran, rate: float) -> Check:
    """PASS only when the exact score of the ten training examples is 1."""
    name = "exact_match" if task == "squad_v2" else "accuracy"
    score, losses = run.metric(name), run.log.series("loss")
    right = round(score * TEN)
    problems = [] if score == 1 else [f"only {right} of {TEN} right"]
    if losses[-1] >= losses[0]:
        problems.append("the loss did not fall")
    trend = " → ".join(f"{loss:.3g}" for loss in losses)
    measured = f"{right} of {TEN} right ({name}) after {EPOCHS} epochs, {run.metric('steps_run'):.0f} steps, learning rate {rate:g}"
    return judge(f"overfit {task} {method}", problems, measured, (f"loss {trend}",))


def flow(bench: Bench, task: TaskName, method: str, flows: dict[str, Ran]) -> Check:
    """Gradients reach all that is trained and nothing else; the run is kept in `flows` for what follows."""
    run = bench.train(task, method, bench.data(task), max_steps=FLOW_STEPS, max_grad_norm=CLIP_AT)
    flows[method] = run
    return flow_verdict(method, run, adapter=bench.study.methods[method].adapter is not None)


def flow_verdict(method: str, run: Ran, *, adapter: bool) -> Check:
    """Every trained tensor gets a gradient within a few steps (LoRA's A from the second, as B starts at zero); the base stays."""
    trained, total, facts = run.metric("trainable_parameters"), run.metric("total_parameters"), run.result.outputs
    given = run.updates[0].elements
    reached = [any(u.tensor_norms[k] > 0 for u in run.updates) for k in range(len(run.updates[0].tensor_norms))]
    problems = [] if all(reached) else [f"{reached.count(False)} of {len(reached)} trained tensors never get a gradient"]
    if not all(torch.isfinite(u.sample).all() for u in run.updates):
        problems.append("some gradients are no numbers")
    if adapter:
        base = total - given
        problems += [] if facts["base_unchanged"] else ["the base weights changed"]
        problems += [] if given == trained < base else [f"the optimizer holds {given:,} weights, the adapter has {trained:,.0f}"]
        measured = f"all {len(reached)} adapter tensors ({given:,} weights) get gradients; base of {base:,.0f} weights hashes as before"
    else:
        problems += [] if given == total else [f"the optimizer holds {given:,} of {total:,.0f} weights"]
        measured = f"all {len(reached)} tensors ({given:,} weights) get gradients"
    return judge(f"gradient flow {method}", problems, measured if not problems else f"{sum(reached)} of {len(reached)} tensors reached")


def norm_table(flows: dict[str, Ran]) -> Iterator[str]:
    """Gradient norms of the first step, by layer (layer 0: what lies outside the decoder layers) and in total."""
    rows = {m: next({k: v for k, v in row.items() if k.startswith("grad_norm")} for _, row in run.log.rows if "grad_norm" in row)
            for m, run in flows.items()}  # fmt: skip
    names = sorted({k for row in rows.values() for k in row}, key=lambda k: (k == "grad_norm", len(k), k))
    yield f"{'':<12}" + "".join(f"{method:>12}" for method in flows)
    for name in names:
        label = "total" if name == "grad_norm" else name.removeprefix("grad_norm/").replace("_", " ")
        yield f"{label:<12}" + "".join(f"{row[name]:>12.3g}" if name in row else f"{'-':>12}" for row in rows.values())


def clipping(method: str, run: Ran) -> Check:
    """What the optimizer gets has the norm that was logged before clipping, or the limit where that is smaller."""
    return clip_verdict(method, run.log.series("grad_norm"), [u.norm for u in run.updates], CLIP_AT, run.metric("clipped_share"))


def clip_verdict(method: str, before: Sequence[float], after: Sequence[float], limit: float, share: float) -> Check:
    """Norms before and after clipping, one a step, against the limit."""
    wrong = [k + 1 for k, (b, a) in enumerate(zip(before, after, strict=True)) if abs(a - min(b, limit)) > 5e-3 * min(b, limit)]
    above = sum(b > limit for b in before)
    problems = [f"steps {wrong} were not clipped to {limit:g}"] if wrong else []
    problems += [] if above else [f"no step had a gradient above {limit:g}"]
    problems += [] if abs(share - above / len(before)) < 1e-9 else [f"the recorded share of clipped steps is {share:.2f}"]
    spread = f"norms {min(before):.3g} to {max(before):.3g} before, {min(after):.3g} to {max(after):.3g} after"
    return judge(f"clipping {method}", problems, f"{above} of {len(before)} steps above the limit {limit:g}; {spread}")


def accumulation(bench: Bench, task: TaskName, method: str) -> Check:
    """One batch of 8 at once, as 4 x 2 and as 8 x 1 rows: the same gradients and losses. Without dropout, whose masks differ by design."""
    folder, runs = bench.data(task), {}
    for micro in (8, 2, 1):
        runs[micro] = bench.train(
            task, method, folder, max_steps=3, micro_batch=micro, max_grad_norm=NO_CLIPPING, dropout=0.0, early_stopping_patience=99
        )
    return accumulation_verdict(method, runs, task)


def accumulation_verdict(method: str, runs: dict[int, Ran], task: str) -> Check:
    """First-step gradients (before any difference of weights) and all losses of each micro-batch size against the whole batch."""
    whole, *parts = runs.values()
    precision = whole.result.outputs["precision"]
    limit = TOLERANCE[precision]
    gradient = max(_relative(run.updates[0].sample, whole.updates[0].sample) for run in parts)
    losses = torch.tensor([run.log.series("loss") for run in runs.values()])
    loss = float(((losses - losses[0]).abs() / losses[0]).max())
    used = [run.result.outputs["micro_batch"] for run in runs.values()]
    problems = [f"{name} differs by {value:.2g}" for name, value in (("the gradient", gradient), ("the loss", loss)) if not value <= limit]
    if used != list(runs):
        problems.append(f"micro-batches {list(runs)} were asked for, {used} were used")
    measured = f"{task}, batch 8 as {', '.join(f'{8 // m}x{m}' for m in runs)}: largest relative difference of gradients {gradient:.1g}, "
    return judge(f"accumulation {method}", problems, measured + f"of losses {loss:.1g} (allowed {limit:g} in {precision})")


def _relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def reproducibility(bench: Bench, task: TaskName, method: str) -> Check:
    """The same seed three times, and another seed once, in one process."""
    folder, seed = bench.data(task), bench.study.training.search_seed
    runs = [bench.train(task, method, folder, max_steps=FLOW_STEPS, seed=s) for s in (seed, seed, seed, seed + 1)]
    return reproducibility_verdict(method, runs[:3], runs[3], seed)


def reproducibility_verdict(method: str, same: Sequence[Ran], other: Ran, seed: int) -> Check:
    """Equal numbers, facts, losses and weights at equal seed; other weights at another seed (or the seed does nothing)."""
    marks = [_mark(run) for run in same]
    differing = sorted({k for mark in marks[1:] for k in mark if mark[k] != marks[0][k]})
    problems = [f"runs of one seed differ in {', '.join(differing[:5])}"] if differing else []
    first, last = same[0].result.outputs["weights_sha256"], other.result.outputs["weights_sha256"]
    problems += [f"seed {seed + 1} gives the weights of seed {seed}"] if first == last else []
    measured = (
        f"{len(same)} runs at seed {seed}: weights {first[:12]}…, digest {fingerprint(marks[0])[:12]}…; seed {seed + 1}: {last[:12]}…"
    )
    return judge(f"reproducibility {method}", problems, measured)


def _mark(run: Ran) -> dict[str, Any]:
    """All that a result says, less its timings."""
    metrics: dict[str, Any] = {f"{m.split}/{m.name}": m.value for m in run.result.metrics if isinstance(m, Metric)}
    return metrics | {k: json.dumps(v, sort_keys=True) for k, v in run.result.outputs.items()}


def wandb_logging(folder: Path) -> Check:
    """Log through the real tracker, offline, and read the W&B file back."""
    from importlib.util import find_spec

    if find_spec("wandb") is None:
        return Check("W&B logging", "SKIP", "wandb is not installed; local records do not need it")
    from tunescope.tracking import open_tracker, resolve_mode

    if resolve_mode("offline", os.environ) == "off":
        return Check("W&B logging", "SKIP", "switched off by WANDB_MODE or WANDB_DISABLED; local records do not need it")
    folder.mkdir(parents=True, exist_ok=True)
    values = [3.0, 2.0, 1.0]
    with open_tracker(
        folder, tracking=Tracking(wandb="offline"), project="tunescope-check", group="check", job_type="check", name="check", config={}
    ) as tracker:
        for step, value in enumerate(values):
            tracker.log({"loss": value}, step)
    local = [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    remote = [value for path in files for value in _logged(path, "loss")]
    problems = [] if local == values else [f"metrics.jsonl holds {local}"]
    problems += [] if remote == values else [f"the offline W&B run holds {remote}"]
    return judge("W&B logging", problems, f"{len(values)} records logged, in metrics.jsonl and in {len(files)} offline W&B run")


def _logged(path: Path, name: str) -> Iterator[float]:
    """Values of one logged name in a .wandb file, in order: a 7-byte head, then LevelDB's log format in blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    record_type: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]

    data, position, whole = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        room = 32_768 - position % 32_768
        if room < 7:
            position += room
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])  # checksum, length, kind of fragment
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last fragment of one
            record = record_type()
            record.ParseFromString(whole)
            whole = b""
            yield from (float(json.loads(i.value_json)) for i in record.history.item if name in (i.key, *i.nested_key))
