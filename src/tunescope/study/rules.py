"""Rules between the values of a study, beyond each value's own type and range: they keep the comparison fair and the plan possible."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from .arms import parse_arm

if TYPE_CHECKING:
    from .schema import Kind, Study, TaskName

CLAIMED_METRICS: Mapping["TaskName", tuple[str, ...]] = {
    "mrpc": ("accuracy", "f1"), "sst2": ("accuracy",), "rte": ("accuracy",), "squad_v2": ("f1", "exact_match"),
}  # fmt: skip
"""The metrics of a task that stored predictions give example by example, which its tests need; a best threshold, say, has no such form."""


def broken_rules(study: "Study", sections: Collection[str]) -> list[str]:
    """What breaks a rule, each as `place: what`; by the rules that read the named sections only, for others may be wrong."""
    return [line for reads, rule in RULES if reads <= set(sections) for line in rule(study)]


def _something_to_do(study: "Study") -> Iterator[str]:
    yield from (f"{name}: needs at least one entry" for name in ("tasks", "methods", "seeds") if not getattr(study, name))


def _seeds_chosen(study: "Study") -> Iterator[str]:
    """Those that the file names; what it leaves out follows `seeds`."""
    for place, spec, name in (("training", study.training, "search_seed"), ("serving", study.serving, "seed")):
        seed = getattr(spec, name, None)
        if spec is not None and name in spec.model_fields_set and seed not in study.seeds:
            where = f"{place}.{name}"
            yield f"{where}: {seed} is not one of seeds {list(study.seeds)}; leave it out, so that it follows seeds, or name one"


def _methods_compared(study: "Study") -> Iterator[str]:
    for role in ("reference_method", "candidate_method"):
        if getattr(study.analysis, role) not in study.methods:
            yield f"analysis.{role}: no method named '{getattr(study.analysis, role)}' in methods {list(study.methods)}"


def _overhead_of_two_arms(study: "Study") -> Iterator[str]:
    """A claim of which no grid could give a figure."""
    arm, baseline = study.analysis.overhead_arm, study.analysis.overhead_baseline_arm
    if arm == baseline:
        yield f"analysis.overhead_arm: '{arm}' is overhead_baseline_arm too, so nothing is compared"
    for place, name in (("overhead_arm", arm), ("overhead_baseline_arm", baseline)):
        if parse_arm(name).switches:
            yield f"analysis.{place}: '{name}' is timed request by request and has no cells to compare"


def _metrics_by_example(study: "Study") -> Iterator[str]:
    """A task that `primary_metric` leaves out is scored by accuracy."""
    for task in study.tasks:
        metric, known = study.analysis.primary_metric.get(task, "accuracy"), CLAIMED_METRICS[task]
        if metric not in known:
            what = f"'{metric}' has no value for each test example of this task, so no claim could be tested"
            yield f"analysis.primary_metric.{task}: {what}; name {' or '.join(known)}"


def _equal_search_budgets(study: "Study") -> Iterator[str]:
    for task, spec in study.tasks.items():
        yield from (f"tasks.{task}.learning_rates: no method named '{m}' in methods" for m in spec.learning_rates if m not in study.methods)
        sizes = {m: len(study.learning_rates(task, m)) for m in study.methods}
        if len(set(sizes.values())) > 1:
            yield f"tasks.{task}: learning-rate grids must be equal in size for all methods (equal search budget), got {sizes}"


def _batch_in_one_pass(study: "Study") -> Iterator[str]:
    training, largest = study.training, max((size for task in study.tasks for size in study.batch_sizes(task)), default=0)
    if training.optimizer == "adamw_in_backward" and (training.micro_tokens or (training.micro_batch or largest) < largest):
        yield (
            "training.optimizer: adamw_in_backward updates weights while gradients are computed, so an effective batch must be one "
            "micro-batch: leave out micro_batch and micro_tokens, and set gradient_checkpointing when memory asks for it"
        )


def _tasks_served(study: "Study") -> Iterator[str]:
    if study.serving is not None:
        absent = sorted(study.serving.served_tasks(()) - set(study.tasks))
        yield from (f"serving: task '{task}' is not one of the study's tasks" for task in absent)


def _engine_can_serve(study: "Study") -> Iterator[str]:
    spec = study.serving
    if spec is None:
        return
    longest = max(spec.prompt_lengths, default=0) + spec.output_tokens
    if longest > spec.max_model_len:
        yield f"serving: max_model_len {spec.max_model_len} is below the longest prompt plus output_tokens, {longest}"
    if max(spec.batch_sizes, default=0) > spec.max_num_seqs:
        yield f"serving: max_num_seqs {spec.max_num_seqs} is below the largest batch size, {max(spec.batch_sizes)}"
    if spec.open_loop is None:
        return
    longest = spec.open_loop.prompt_length + spec.output_tokens
    if longest > spec.max_model_len:
        yield f"serving: max_model_len {spec.max_model_len} is below open_loop.prompt_length plus output_tokens, {longest}"
    arms = [parse_arm(name) for name in spec.open_loop.arms]
    yield from (f"serving.open_loop.arms: '{a.name}' has no open loop" for a in arms if a.switches or a.engines > 1)


RULES: tuple[tuple[set[str], Callable[["Study"], Iterator[str]]], ...] = (
    ({"tasks", "methods", "seeds"}, _something_to_do),
    ({"seeds", "training", "serving"}, _seeds_chosen),
    ({"methods", "analysis"}, _methods_compared),
    ({"analysis"}, _overhead_of_two_arms),
    ({"tasks", "analysis"}, _metrics_by_example),
    ({"tasks", "methods"}, _equal_search_budgets),
    ({"tasks", "training"}, _batch_in_one_pass),
    ({"tasks", "serving"}, _tasks_served),
    ({"serving"}, _engine_can_serve),
)
"""The sections that a rule reads -> the rule."""


def placed_work(
    tasks: Iterable["TaskName"], kinds: Mapping["Kind", Sequence["TaskName"] | Literal["all"]]
) -> Iterator[tuple["Kind", "TaskName | None"]]:
    """The work that one machine's part of a placement names, as (kind, task); kinds without a task have None."""
    for kind, named in kinds.items():
        if kind in ("serve", "correlate"):
            yield kind, None
        else:
            yield from ((kind, task) for task in (tasks if named == "all" else named))


def broken_placement(
    tasks: Collection["TaskName"], placement: Mapping[str, Mapping["Kind", Sequence["TaskName"] | Literal["all"]]]
) -> Iterator[str]:
    """Tasks that the study has not, and the same work on two machines, each as `place: what`."""
    found: dict[tuple[Kind, TaskName | None], str] = {}
    for machine, kinds in placement.items():
        for kind, task in placed_work(tasks, kinds):
            if task is not None and task not in tasks:
                yield f"execution.placement.{machine}.{kind}: task '{task}' is not in the study"
            other = found.setdefault((kind, task), machine)
            if other != machine:
                yield f"execution.placement: {' '.join(filter(None, (kind, task)))} is on both {other} and {machine}"
