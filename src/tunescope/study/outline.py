"""A plan on one readable page: the graph by phase and task, and what it takes as far as that was measured."""

import re
from collections.abc import Iterable, Mapping, Sequence

from .inputs import BaselineInputs, BaseProbeInputs, TrainInputs
from .plan import Plan, Step
from .schema import ModelSpec, ServingSpec, Study, TaskName, TrainingSpec

MEASURED: Mapping[bool, int] = {False: 10_121, True: 22_023}
"""Real tokens a second of one run alone (True: of LoRA): TinyLlama-1.1B, bf16-mixed, MRPC, batch 8, one H100 80GB; docs/performance.md."""
BASIS = (
    "training h: steps on all rows for max_epochs or max_steps (early stopping ends sooner), about 75 real tokens a pair, 25 a sentence, "
    "190 a question, at the measured 10,121 (full) and 22,023 (LoRA r 8, taken for every adapter) a second: TinyLlama-1.1B, bf16-mixed, "
    "MRPC at batch 8 on one H100, one run at a time. Evaluation, probes and scoring come on top, and kinds without hours."
)
NO_BASIS = (
    "no hours: training was measured for a model of 1.1 B parameters on an H100 only; `tunescope run` shows the time left as soon as one "
    "step of each kind is done"
)
_TOKENS: Mapping[TaskName, int] = {"mrpc": 75, "sst2": 25, "rte": 75, "squad_v2": 190}
"""Real tokens of a row, rounded: a pair of sentences, a sentence, a question with its paragraph."""
_TRAIN_ROWS: Mapping[TaskName, int] = {"mrpc": 3668, "sst2": 66_349, "rte": 2241, "squad_v2": 117_287}


def seconds(study: Study, step: Step) -> float:
    """A guess at a step's seconds that only orders steps (the longest path first); it is never shown."""
    small = study.model.name.startswith("sprout")
    if step.kind == "serve":
        return _serve_seconds(study, small)
    if step.task is None or step.kind in ("data", "drift"):
        return 10
    if step.kind in ("baseline", "base-probe"):
        return 30 if small else 300
    return training_tokens(study, step) / (3_000 if small else 7_000)


def training_tokens(study: Study, step: Step) -> float:
    """Real tokens of a training step's optimizer steps, at most (early stopping may end it)."""
    assert step.task is not None
    spec, training = study.tasks[step.task], study.training
    rows = min(spec.limits.train or _TRAIN_ROWS[step.task], _TRAIN_ROWS[step.task]) * training.max_epochs
    steps = spec.max_steps or training.max_steps
    if steps:
        rows = min(rows, steps * max(study.batch_sizes(step.task)))
    return rows * _TOKENS[step.task]


def training_seconds(study: Study, step: Step) -> float | None:
    """Seconds of a training step's optimizer steps by MEASURED; None for other kinds, and for models that were not measured."""
    parameters = _parameters(study.model)
    if step.kind != "train" or parameters is None or not 1.0e9 <= parameters <= 1.2e9:
        return None
    return training_tokens(study, step) / MEASURED[study.methods[str(step.method)].adapter is not None]


def _serve_seconds(study: Study, small: bool) -> float:
    spec = study.serving
    assert spec is not None
    launches = len(spec.arms) * spec.launches
    if small:
        return launches * 25
    per_prompt_length = sum(spec.prompts_per_cell / b for b in spec.batch_sizes) * len(spec.prompt_lengths) * len(spec.sampling)
    return launches * (70 + per_prompt_length * spec.output_tokens * 0.0022)


def gpu_bytes(study: Study, step: Step) -> int | None:
    """Expected GPU memory of a step, generous, for packing steps before any has been measured; None when nobody can tell.

    Full fine-tuning keeps fp32 weights, gradients and two Adam moments (16 bytes a parameter) and a bf16 copy (2), pure bf16 half the 16;
    an adapter keeps the frozen base (4, and 2 while autocast copies it). Activations: 2 MB a token of the padded micro-batch for a Llama of
    1.1 B parameters in bf16 (34 x width x layers bytes, and its logits), scaled by parameters^(2/3), the growth of width x layers.
    """
    if step.kind in ("data", "correlate"):
        return 0
    if step.kind == "drift":
        return 2 * 2**30  # pooled states and Gram matrices
    parameters = _parameters(study.model)
    if parameters is None or not isinstance(step.inputs, TrainInputs | BaselineInputs | BaseProbeInputs):
        return None
    a_token = 2e6 * (parameters / 1.1e9) ** (2 / 3)
    if isinstance(step.inputs, TrainInputs):
        return int(parameters * _bytes_a_parameter(step.inputs) + a_token * _tokens_at_once(study, step.inputs))
    batch = step.inputs.eval_batch if isinstance(step.inputs, BaselineInputs) else step.inputs.drift.batch_size
    return int(parameters * 4 + a_token / 2 * batch * step.inputs.max_length)


def _parameters(model: ModelSpec) -> int | None:
    """The parameter count that a model's name tells (`TinyLlama-1.1B-…`, `sprout-2m`); None when it tells none."""
    found = re.search(r"(\d+(?:\.\d+)?)([kmb])(?![a-z0-9])", model.name.rsplit("/", 1)[-1].lower())
    return int(float(found[1]) * {"k": 1e3, "m": 1e6, "b": 1e9}[found[2]]) if found else None


def _bytes_a_parameter(inputs: TrainInputs) -> int:
    if inputs.method_spec.adapter is not None:
        return 6
    return 8 if inputs.training.precision == "bf16" else 18


def _tokens_at_once(study: Study, inputs: TrainInputs) -> float:
    """Tokens of a micro-batch at full length, weighted by what an activation of each takes."""
    training: TrainingSpec = inputs.training
    batch = inputs.batch_size or max(study.batch_sizes(inputs.task))
    rows = min(training.micro_batch or batch, batch)
    kept = 0.25 if training.gradient_checkpointing else 1.0
    return rows * inputs.task_spec.max_length * kept * (2 if training.precision == "fp32" else 1)


def by_group(plan: Plan) -> list[tuple[str, str, str, int, float | None]]:
    """Rows (phase, machine, group, steps, seconds in total if known) in plan order, one per phase, machine, kind and role."""
    groups: dict[tuple[str, str, str], list[float | None]] = {}
    for step in plan.steps:
        name = step.kind if step.role is None else f"{step.kind} ({step.role})"
        groups.setdefault((step.phase, step.machine or "any", name), []).append(training_seconds(plan.study, step))
    return [(*key, len(values), _sum(values)) for key, values in sorted(groups.items())]


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum of the known values; None when there are none."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def graph(plan: Plan) -> list[str]:
    """The graph as text: per phase, what needs what, on which machine."""
    found = ["Phase 1 - no dependencies but the data"]
    for task in plan.study.tasks:
        found += _task_lines(plan, task)
    found.append("Phase 2a")
    for step in plan.steps:
        if step.phase == "2a":
            found.append(f"  {step.id:<34}{_on(step)}  needs {_needs(step)}")
    return [*found, "Phase 2b", "  statistics, figures, report        always recomputed from the results above"]


def step_lines(steps: Sequence[Step]) -> list[str]:
    """A line per step: its id, phase and machine."""
    width = max(len(step.id) for step in steps)
    return [f"{step.id:<{width}}  phase {step.phase:<2}  {step.machine or 'any'}" for step in steps]


def _task_lines(plan: Plan, task: TaskName) -> list[str]:
    """One task's phase-1 steps, runs of one method and role on one line."""
    rows = [f"  {s.id:<34}{_on(s)}" for s in plan.steps if s.task == task and s.kind in ("data", "baseline", "base-probe")]
    for method in plan.study.methods:
        for role in ("search", "final"):
            runs = [s for s in plan.steps if s.task == task and s.method == method and s.role == role]
            if not runs:
                continue
            detail = (
                ", ".join(s.id.split("/")[3].removeprefix("search-") for s in runs)
                if role == "search"
                else f"seeds {', '.join(str(s.seed) for s in runs)}"
            )
            chosen = "  after the search of all methods" if runs[0].selects_from else ""
            rows.append(f"  {f'train/{task}/{method}/{role}':<34}{_on(runs[0])}  {len(runs)} runs: {detail}{chosen}")
    return rows


def _needs(step: Step) -> str:
    """Needs by group, so that a line stays readable."""
    groups: dict[str, int] = {}
    for need in step.needs:
        parts = need.split("/")
        name = "/".join(parts[:2]) if parts[0] != "train" else f"train/{parts[1] if step.task else '*'}"
        groups[name] = groups.get(name, 0) + 1
    return ", ".join(name if n == 1 else f"{name} ({n} runs)" for name, n in groups.items())


def _on(step: Step) -> str:
    return f"{step.machine or 'any':<5}"


def cost(plan: Plan) -> list[str]:
    """What there is to do as text: steps by group, hours of training where they were measured, and launches of the serving step."""
    groups = by_group(plan)
    total = _sum(row[-1] for row in groups)
    head = f"{'phase':<6}{'machine':<9}{'what':<18}{'steps':>5}" + ("" if total is None else "  training h")
    rows = [f"{p:<6}{m:<9}{g:<18}{n:>5}{_hours(s)}" for p, m, g, n, s in groups]
    end = [NO_BASIS] if total is None else [f"{'':<33}{len(plan.steps):>5}{_hours(total)}", BASIS]
    return [head, *rows, *end, *_launches(plan.study.serving)]


def _launches(spec: ServingSpec | None) -> list[str]:
    if spec is None:
        return []
    loop = spec.open_loop
    more = f", and {len(loop.arms) * loop.launches} of a server for the open loop" if loop else ""
    return [f"serve: {len(spec.arms) * spec.launches} launches ({len(spec.arms)} arms x {spec.launches}){more}, one after the other"]


def _hours(value: float | None) -> str:
    return "" if value is None else f"{value / 3600:>12.1f}"
