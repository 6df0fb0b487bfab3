"""One small demonstration of each kind of step: planned, run and stored as in a study, then looked at."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import FinishedStep
from tunescope.run.data_folder import DataFolder
from tunescope.run.driver import Policy
from tunescope.run.selection import Chosen, Selection, select
from tunescope.run.session import Session
from tunescope.run.state import States, StepState
from tunescope.run.store import Store
from tunescope.study.plan import Step, build_plan
from tunescope.study.schema import Kind, Limits, ServingSpec, Study, TaskName

from .outcome import Check, judge

EXAMPLES = 100
PROBES = 50
PROMPTS = 10
LOGPROB_TOLERANCE = 1e-6
"""Nats between a score as stored and by the model loaded again: the same kernels on the same weights."""


class Quiet:
    """A display that says nothing."""

    def started(self, step: Step) -> None: ...

    def finished(self, state: StepState, seconds: float) -> None: ...

    def note(self, text: str) -> None: ...

    def update(self, states: States, running: dict[str, float]) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Demo:
    """A small study of its own, in a folder that goes away."""

    session: Session
    """The study that was asked for."""
    root: Path
    tasks: Sequence[TaskName]
    methods: Sequence[str]

    @property
    def task(self) -> TaskName:
        """SST-2 where the study has it: the shortest texts."""
        return "sst2" if "sst2" in self.tasks else self.tasks[0]

    def open(self, name: str, tasks: Sequence[TaskName], serving: ServingSpec | None = None, **training: Any) -> Session:
        """A study of few examples, one seed and one learning rate an arm (the largest of its grid), 1 epoch, W&B off."""
        file, given = self.session.file, self.session.file.study
        seed = given.training.search_seed
        small = Limits(train=EXAMPLES, selection=24, test=EXAMPLES)
        cut = {"limits": small, "learning_rates": {}, "batch_sizes": None, "max_steps": None, "expect": {}}
        kept = dict.fromkeys((*self.methods, given.analysis.reference_method, given.analysis.candidate_method))
        quiet = {"batch_sizes": (8,), "max_epochs": 1.0, "max_steps": None, "eval_every": 10, "checkpoint_every": 10**9, "log_every": 1}
        probes = {"probe_examples": PROBES, "every": 10, "early_steps": (1,), "internals": False}
        study = given.model_copy(
            update={
                "name": f"check-{name}", "title": f"Check of {name}", "seeds": (seed,), "serving": serving,
                "tasks": {t: given.tasks[t].model_copy(update=cut) for t in tasks},
                "methods": {m: given.methods[m].model_copy(update={"learning_rates": (self._rate(given, tasks, m),)}) for m in kept},
                "training": given.training.model_copy(update=quiet | training), "drift": given.drift.model_copy(update=probes),
                "analysis": given.analysis.model_copy(update={"bootstrap_draws": 200}),
            }
        )  # fmt: skip
        paths = file.execution.paths.model_copy(update={"runs": str(self.root), "data": str(self.root / "data" / name)})
        tracking = file.execution.tracking.model_copy(update={"wandb": "off"})
        execution = file.execution.model_copy(update={"paths": paths, "tracking": tracking, "retries": 0, "placement": {}})
        checked = file.model_validate({"study": study.model_dump(), "execution": execution.model_dump()})
        return Session(checked, build_plan(checked.study), Store(self.root / study.name), DataFolder(Path(paths.data)))

    @staticmethod
    def _rate(study: Study, tasks: Sequence[TaskName], method: str) -> float:
        return max(rate for task in tasks for rate in study.learning_rates(task, method))

    def run(self, session: Session, *kinds: Kind, methods: Sequence[str] = ()) -> dict[str, FinishedStep]:
        """Run the steps of some kinds and what they need.

        Raises:
            StepError: a step failed; PrerequisiteError: what it needs is not there.
        """
        chosen: Chosen = select(session.plan, Selection(kinds=kinds, methods=methods))
        policy = Policy(retries=0, timeout_s=session.execution.step_timeout_s, retry_failed=False, fail_fast=True)
        session.prepare(chosen)
        states = session.run(chosen, Quiet(), policy, session.executor())
        undone = [s for i, s in states.items() if i in chosen.needed and s.finished is None]
        for state in undone:
            if state.status in ("failed", "blocked"):
                failure = session.store.failure(state.step.id)
                kind = PrerequisiteError if failure and failure.prerequisite else StepError
                raise kind(f"{state.step.id}: {state.why}")
        if undone:
            raise StepError(f"{undone[0].step.id}: {undone[0].status} {undone[0].why}")
        return {i: s.finished for i, s in states.items() if s.finished}


def baselines(demo: Demo) -> Iterator[Check]:
    """Majority, random and zero-shot baselines on 100 examples of every task."""
    session = demo.open("baseline", demo.tasks)
    done = demo.run(session, "baseline")
    for task in demo.tasks:
        yield baseline_verdict(session, task, done[f"baseline/{task}"])


def baseline_verdict(session: Session, task: TaskName, step: FinishedStep) -> Check:
    """Scores are shares, intervals hold them, and the majority score is the share of the commonest training label."""
    from collections import Counter

    from tunescope.data import load_examples

    metric = "exact_match" if task == "squad_v2" else "accuracy"
    scores = {s: step.metric(f"{s}/{metric}") for s in ("majority", "random", "base")}
    train, test = (load_examples(session.data.path, task, part) for part in ("train", "test"))
    if task == "squad_v2":
        expected = sum(not e.golds for e in test) / len(test)
    else:
        label = Counter(e.label for e in train).most_common(1)[0][0]
        expected = sum(e.label == label for e in test) / len(test)
    problems = [f"{s} has no {metric}" for s, v in scores.items() if v is None or not 0 <= v <= 1]
    if scores["majority"] is None or abs(scores["majority"] - expected) > 1e-9:
        problems.append(f"the constant answer must score {expected:.3f}")
    for system, value in scores.items():
        low, high = step.outputs["intervals"][f"{system}/{metric}"]
        problems += [] if value is not None and low - 1e-9 <= value <= high + 1e-9 else [f"{system} lies outside its interval"]
    shown = ", ".join(f"{s} {v:.3f}" for s, v in scores.items() if v is not None)
    return judge(f"baseline {task}", problems, f"{metric} on {len(test)} examples: {shown}")


def training(demo: Demo) -> Iterator[Check]:
    """100 examples for 1 epoch by each method; then the saved weights are loaded again and must score equal."""
    session = demo.open("train", [demo.task])
    done = demo.run(session, "train", methods=demo.methods)
    for step in (s for i, s in done.items() if i.startswith("train/")):
        yield train_verdict(session, demo.task, step)


def train_verdict(session: Session, task: TaskName, step: FinishedStep) -> Check:
    """The loss falls and is finite, and a reload gives the stored predictions and log-probabilities."""
    first, last = step.metric("train_loss_first") or math.nan, step.metric("train_loss_last") or math.nan
    problems = [] if last < first else ["the training loss did not fall"]
    gap, changed, n = reload_gap(session, task, step)
    problems += [f"{changed} of {n} predictions change when the checkpoint is loaded again"] if changed else []
    problems += [f"scores differ by {gap:.1g} after loading again"] if not gap <= LOGPROB_TOLERANCE else []
    score = step.metric("f1" if task == "squad_v2" else "accuracy", "test")
    steps, trained = step.metric("steps_run"), step.metric("trainable_parameters")
    measured = f"{steps:.0f} steps, loss {first:.3g} → {last:.3g}, {trained:,.0f} weights trained, score {score:.3f}; "
    return judge(
        f"train {task} {step.inputs['method']}", problems, measured + f"loaded again: {n} predictions, largest difference {gap:.1g}"
    )


def reload_gap(session: Session, task: TaskName, step: FinishedStep) -> tuple[float, int, int]:
    """(largest difference in label log-probabilities or no-answer probability, changed predictions, predictions) after loading again."""
    import torch

    from tunescope.data import load_examples
    from tunescope.data.tasks import get_task
    from tunescope.models.loading import load_tokenizer, resolve_model
    from tunescope.models.lora_utils import load_finetuned
    from tunescope.train.evaluate import Prediction, evaluate, read_predictions

    study, device = session.file.study, session.device
    base = resolve_model(study.model, session.store.root)
    model = load_finetuned(base, step.folder, torch.float32, device)
    again, _ = evaluate(
        model, load_tokenizer(base), load_examples(session.data.path, task, "test"), get_task(task),
        max_length=study.tasks[task].max_length, batch_size=study.training.eval_batch, device=device,
    )  # fmt: skip
    stored = read_predictions(step.folder / "predictions.parquet")

    def scores(p: Prediction) -> tuple[float, ...]:
        return p.label_logprobs or (p.no_answer_probability or 0.0,)

    pairs = list(zip(stored, again, strict=True))
    gap = max(abs(x - y) for a, b in pairs for x, y in zip(scores(a), scores(b), strict=True))
    return gap, sum(a.prediction != b.prediction for a, b in pairs), len(pairs)


def drift(demo: Demo, figures: Path) -> Iterator[Check]:
    """Drift of 50 probe examples by reference and candidate after 1 epoch on 100 examples, in 3 layers, with a plot."""
    session = demo.open("drift", [demo.task])
    done = demo.run(session, "drift")
    yield drift_verdict(session, demo.task, done, _plot(session, figures))


def drift_verdict(session: Session, task: TaskName, done: dict[str, FinishedStep], plot: Path | None) -> Check:
    """Drift is 0 before the first step, finite and above the noise floor afterwards."""
    import pandas as pd

    study = session.file.study
    pooling, lines, problems = study.drift.primary_pooling, [], [] if plot else ["no plot was drawn"]
    runs = {str(s.inputs["method"]): s for i, s in done.items() if i.startswith("train/")}
    n = 0
    for method, step in runs.items():
        t = pd.read_parquet(step.folder / "drift.parquet")
        t = t[(t.measure == "cka_drift_debiased") & (t.pooling == pooling) & (t.block == -1)]
        n = int(t.n.min())
        start, scored = t[t.step == 0].value, t[t.scored].set_index("layer").value
        problems += [] if (start == 0).all() and len(start) else [f"{method}: step 0 is not the base (drift {start.abs().max():.2g})"]
        problems += [] if scored.map(math.isfinite).all() and scored.max() > 0 else [f"{method}: the scored run shows no drift"]
        last = int(scored.index.max())
        shown = ", ".join(f"layer {k} {scored[k]:.3g}" for k in (1, -(-last // 2), last))
        lines.append(f"{method:<8}{shown}")
    lines += [f"plot: {plot}"] if plot else []
    return judge(f"drift {task}", problems, f"1 - CKA of {n} probe examples, {len(runs)} methods, three layers", tuple(lines))


def _plot(session: Session, folder: Path) -> Path | None:
    """The report's layer profiles of this small run."""
    from tunescope.analysis.frames import collect
    from tunescope.analysis.statistical_analysis import analyse
    from tunescope.report.drawing import Material, NoData, save, style
    from tunescope.report.figures import FIGURES

    study = session.file.study
    frames = collect(session.store.root, study)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with style():
            save(FIGURES["layer_profiles"](Material(analyse(frames, study, now="check"), frames, study)), folder)
    except NoData:
        return None
    return folder / "layer_profiles.png"


def serving(demo: Demo) -> Iterator[Check]:
    """vLLM with base, merged and two adapters on 10 prompts, with loading, switching and unloading timed."""
    from tunescope.serve.deployment_bench import check_vllm

    try:
        check_vllm(demo.session.device)
    except PrerequisiteError as error:
        yield Check("serve", "SKIP", str(error))
        return
    given = demo.session.file.study.serving or ServingSpec()
    pair = (demo.task, next((t for t in demo.tasks if t != demo.task), demo.task))
    if pair[0] == pair[1]:
        yield Check("serve", "SKIP", f"two adapters need two tasks, this selection has {pair[0]} alone")
        return
    spec = given.model_copy(
        update={
            "task": pair[0], "two_adapters": pair, "arms": ("base", "merged", "adapters_2", "switching"), "batch_sizes": (2,),
            "prompt_lengths": (64,), "sampling": ("greedy",), "output_tokens": 16, "prompts_per_cell": PROMPTS, "warmup_calls": 1,
            "launches": 1, "max_model_len": 256, "max_num_seqs": 4, "seed": demo.session.file.study.training.search_seed,
        }
    )  # fmt: skip
    session = demo.open("serve", list(pair), spec)
    yield serve_verdict(demo.run(session, "serve")["serve"])


def serve_verdict(step: FinishedStep) -> Check:
    """Every arm ran, outputs match their references, adapters were loaded, switched and unloaded."""
    import json

    rows = {r["arm"]: r for r in map(json.loads, (step.folder / "launches.jsonl").read_text().splitlines())}
    wanted = ("base", "merged", "adapters_2", "switching")
    problems = [f"arm {a}: {rows[a]['error'] if a in rows else 'no launch'}" for a in wanted if not rows.get(a, {}).get("ok")]
    problems += [] if step.outputs["correct"] else ["served outputs differ from their references (correctness.json)"]
    two, switch = rows.get("adapters_2", {}), rows.get("switching", {})
    problems += [] if len(two.get("load_s") or []) == len(two.get("unload_s") or []) == 2 else ["two adapters were not loaded and unloaded"]
    problems += [] if switch.get("switching") else ["no switch was measured"]
    lines = [
        f"{a:<12}{c['ms_per_token']:.2f} ms a token, cold start {rows[a]['cold_start_s']:.0f} s" for a in rows for c in rows[a]["cells"]
    ]
    for name in ("load_s", "unload_s"):
        lines.append(f"{name:<12}{', '.join(f'{1e3 * s:.1f} ms' for s in two.get(name) or [])}")
    lines += [
        f"switching   {r['adapters']} adapters, {r['tier']}: {r['added_ms']:.2f} ms more a switched request"
        for r in switch.get("switching", [])
    ]
    return judge("serve", problems, f"{PROMPTS} prompts an arm, arms {', '.join(rows)}", tuple(lines))


def statistics(demo: Demo) -> Iterator[Check]:
    """The analysis on dummy data with planted effects."""
    from .planted import planted_verdicts

    yield planted_verdicts(demo.root)


DEMOS: dict[str, Callable[[Demo], Iterator[Check]]] = {
    "baseline": baselines, "train": training, "serve": serving, "statistics": statistics,
}  # fmt: skip
