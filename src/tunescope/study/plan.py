"""Turn a study into a plan: every step, what it needs, its phase and its machine. The whole graph is on this page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from graphlib import TopologicalSorter
from typing import Literal

from tunescope.records import FinishedStep

from .inputs import (
    BaselineInputs,
    BaseProbeInputs,
    CorrelateInputs,
    DataInputs,
    DriftInputs,
    ServeInputs,
    StepInputs,
    TrainInputs,
)
from .rules import placed_work
from .schema import Kind, Limits, Study, TaskName
from .selection import Setting, choose

Phase = Literal["1", "2a", "2b"]
PHASE: dict[Kind, Phase] = {
    "data": "1",
    "baseline": "1",
    "base-probe": "1",
    "train": "1",
    "drift": "2a",
    "serve": "2a",
    "correlate": "2a",
}
"""Phase 2b (statistics, figures, report) is always recomputed and has no steps."""
Placement = Mapping[str, Mapping[Kind, Sequence[TaskName] | Literal["all"]]]


@dataclass(frozen=True)
class Step:
    """One unit of work: its readable coordinates, its inputs, and the steps it needs."""

    id: str
    kind: Kind
    inputs: StepInputs
    task: TaskName | None = None
    method: str | None = None
    role: Literal["search", "final"] | None = None
    seed: int | None = None
    needs: tuple[str, ...] = ()
    """Steps whose artefacts it reads; their content digests enter its fingerprint."""
    selects_from: tuple[str, ...] = ()
    """Search steps that choose its learning rate and batch size; only the choice enters its fingerprint."""
    machine: str | None = None
    """None: any machine (data steps run wherever they are needed)."""

    @property
    def phase(self) -> Phase:
        return PHASE[self.kind]


@dataclass(frozen=True)
class Plan:
    """All steps of a study in an order that respects their needs."""

    study: Study
    steps: tuple[Step, ...]

    def __getitem__(self, step_id: str) -> Step:
        return self._by_id[step_id]

    @cached_property
    def _by_id(self) -> dict[str, Step]:
        return {step.id: step for step in self.steps}

    def resolve(self, step: Step, results: Mapping[str, FinishedStep]) -> StepInputs | None:
        """The step's inputs with what the search chose filled in; None while a search run is missing."""
        if not step.selects_from:
            return step.inputs
        if any(i not in results for i in step.selects_from):
            return None
        losses: dict[Setting, float] = {}
        for search_id in step.selects_from:
            run = self[search_id].inputs
            loss = results[search_id].metric("selection_loss", "selection")
            assert isinstance(run, TrainInputs) and run.learning_rate and run.batch_size and loss is not None
            losses[run.method, run.learning_rate, run.batch_size] = loss
        batch_size, rates = choose(losses)
        return step.inputs.model_copy(update={"learning_rate": rates[str(step.method)], "batch_size": batch_size})


def build_plan(study: Study, placement: Placement | None = None) -> Plan:
    """Every step of the study, sorted so that needs come first."""
    steps = [step for task in study.tasks for step in _task_steps(study, task)]
    if study.serving is not None:
        steps.append(_serve(study))
    trained = tuple(s.id for s in steps if s.kind == "train")
    steps.append(Step("correlate", "correlate", CorrelateInputs(analysis=study.analysis), needs=trained))
    machines = _machines(study, placement or {})
    steps = [_placed(step, machines) for step in steps]
    by_id = {step.id: step for step in steps}
    order = TopologicalSorter({step.id: (*step.needs, *step.selects_from) for step in steps}).static_order()
    return Plan(study, tuple(by_id[i] for i in order))


def _task_steps(study: Study, task: TaskName) -> Iterator[Step]:
    """data → baseline, base-probe, search → final → drift."""
    spec, model, data = study.tasks[task], study.model, f"data/{task}"
    probes = study.drift.probe_examples
    yield Step(data, "data", DataInputs(task=task, data=study.data, limits=spec.limits, probe_examples=probes), task)
    baseline = BaselineInputs(
        task=task, model=model, max_length=spec.max_length, eval_batch=study.training.eval_batch,
        random_seeds=study.analysis.random_baseline_seeds, bootstrap_draws=study.analysis.bootstrap_draws,
    )  # fmt: skip
    yield Step(f"baseline/{task}", "baseline", baseline, task, needs=(data,))
    base_probe = BaseProbeInputs(task=task, model=model, max_length=spec.max_length, drift=study.drift)
    yield Step(f"base-probe/{task}", "base-probe", base_probe, task, needs=(data,))
    search = tuple(_search(study, task))
    yield from search
    final = tuple(_final(study, task, tuple(s.id for s in search)))
    yield from final
    roles = study.analysis
    drift = DriftInputs(
        task=task, drift=study.drift, reference_method=roles.reference_method, candidate_method=roles.candidate_method,
        saturated_drift=roles.saturated_drift,
    )  # fmt: skip
    runs = tuple(s.id for s in (*search, *final))
    yield Step(f"drift/{task}", "drift", drift, task, needs=(f"base-probe/{task}", *runs))


def _search(study: Study, task: TaskName) -> Iterator[Step]:
    """One run per method, learning rate and batch size, when there is anything to choose."""
    sizes, seed = study.batch_sizes(task), study.training.search_seed
    for method in study.methods:
        rates = study.learning_rates(task, method)
        if len(rates) * len(sizes) == 1:
            continue
        for rate in rates:
            for size in sizes:
                step_id = f"train/{task}/{method}/search-lr{rate:g}-bs{size}/seed-{seed}"
                inputs = _train_inputs(study, task, method, "search", seed, rate, size)
                yield Step(step_id, "train", inputs, task, method, "search", seed, needs=(f"data/{task}",))


def _final(study: Study, task: TaskName, search: tuple[str, ...]) -> Iterator[Step]:
    """All seeds at the chosen setting."""
    for method in study.methods:
        rate = None if search else study.learning_rates(task, method)[0]
        size = None if search else study.batch_sizes(task)[0]
        for seed in study.seeds:
            inputs = _train_inputs(study, task, method, "final", seed, rate, size)
            step_id = f"train/{task}/{method}/final/seed-{seed}"
            yield Step(step_id, "train", inputs, task, method, "final", seed, needs=(f"data/{task}",), selects_from=search)


def _train_inputs(
    study: Study, task: TaskName, method: str, role: Literal["search", "final"], seed: int, rate: float | None, size: int | None
) -> TrainInputs:
    """Only what changes this run's numbers: grids, limits and expectations stay out, so that widening a grid reruns nothing else."""
    spec = study.tasks[task].model_copy(update={"learning_rates": {}, "batch_sizes": None, "expect": {}, "limits": Limits()})
    return TrainInputs(
        task=task, model=study.model, method=method, method_spec=study.methods[method].model_copy(update={"learning_rates": ()}),
        role=role, seed=seed, learning_rate=rate, batch_size=size, task_spec=spec,
        training=study.training.model_copy(update={"batch_sizes": (), "search_seed": 0}), drift=study.drift,
    )  # fmt: skip


def _serve(study: Study) -> Step:
    """One host session; needs the served runs and the prompts' data."""
    spec, roles = study.serving, study.analysis
    assert spec is not None
    served = spec.served_tasks(study.tasks)
    tasks = [t for t in study.tasks if t in served]
    needs = [f"data/{t}" for t in tasks] + [f"train/{t}/{roles.candidate_method}/final/seed-{spec.seed}" for t in tasks]
    if "full" in spec.all_arms:
        needs.append(f"train/{spec.task}/{roles.reference_method}/final/seed-{spec.seed}")
    inputs = ServeInputs(model=study.model, serving=spec, reference_method=roles.reference_method, candidate_method=roles.candidate_method)
    return Step("serve", "serve", inputs, needs=tuple(needs))


def _machines(study: Study, placement: Placement) -> dict[tuple[Kind, TaskName | None], str]:
    """(kind, task) → machine; kinds without a task are keyed by None."""
    return {place: machine for machine, kinds in placement.items() for place in placed_work(study.tasks, kinds)}


def _placed(step: Step, machines: Mapping[tuple[Kind, TaskName | None], str]) -> Step:
    return replace(step, machine=machines.get((step.kind, None if step.kind in ("serve", "correlate") else step.task)))
