"""Power of the registered quality test before the runs. Plain Python, so that `tunescope plan` answers at once."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from .schema import Study, TaskName

SEEDS = (3, 5, 10)
TEST_ROWS: Mapping[TaskName, int] = {"mrpc": 1725, "sst2": 872, "rte": 277, "squad_v2": 11_873}
"""Labelled examples of the official test parts (specification D2)."""


@dataclass(frozen=True)
class Components:
    """Standard deviations of a contrast between seeds, between examples, and of what is left."""

    seeds: float
    examples: float
    residual: float


@dataclass(frozen=True)
class Assumption:
    """What is assumed about one task before anything has run; all are fractions."""

    score: float
    """Mean score of the reference method."""
    discordance: float
    """Share of examples on which the two methods differ at equal seed: the variance of their difference."""
    stable: float
    """Share of that variance which the examples carry over all seeds; the rest is new with every seed."""
    seeds: float
    """Standard deviation over seeds of the difference between the methods' mean scores."""

    @property
    def components(self) -> Components:
        return Components(self.seeds, math.sqrt(self.stable * self.discordance), math.sqrt((1 - self.stable) * self.discordance))


ASSUMED: Mapping[TaskName, tuple[Assumption, Assumption]] = {
    "rte": (Assumption(0.70, 0.31, 0.2, 0.012), Assumption(0.70, 0.15, 0.4, 0.012)),
    "mrpc": (Assumption(0.87, 0.10, 0.5, 0.018), Assumption(0.87, 0.12, 0.4, 0.008)),
    "sst2": (Assumption(0.92, 0.06, 0.8, 0.002), Assumption(0.92, 0.05, 0.5, 0.002)),
    "squad_v2": (Assumption(0.80, 0.19, 0.2, 0.012), Assumption(0.80, 0.10, 0.3, 0.004)),
}
"""A noisy and a quiet case for each task, chosen so that `power` returns the ranges the plan was written with; a pilot replaces them."""


@dataclass(frozen=True)
class Pilot:
    """One task measured in a pilot study."""

    score: float
    components: Components
    """As measured."""
    cautious: Components
    """With the spread over seeds at its upper limit."""
    units_per_example: float
    """Independent units (paragraphs, where examples share them) for each example."""
    seeds: int
    """Paired seeds of the pilot."""


@dataclass(frozen=True)
class PowerRow:
    """Chance of confirming the registered margin if both methods are truly equal."""

    task: TaskName
    examples: int
    seeds: int
    low: float
    high: float
    basis: str


def power(sd: Components, difference: float, n_seeds: int, n_examples: float, alpha: float = 0.05) -> float:
    """Chance that the one-sided crossed t rejects when the true mean contrast is `difference` (noncentral t, expected mean squares).

    Within 0.03 of simulation from 3 seeds on; at 2 seeds up to 0.1 off, where dropping the seed term decides.

    Source: the expected mean squares of a two-way layout without replication put into the test of `crossed_t`.
    """
    ms_r = sd.residual**2
    ms_s, ms_e = ms_r + n_examples * sd.seeds**2, ms_r + n_seeds * sd.examples**2
    total = ms_s + ms_e - ms_r
    if total <= 0:
        return 1.0 if difference > 0 else 0.0
    spread = ms_s**2 / (n_seeds - 1) + ms_e**2 / (n_examples - 1) + ms_r**2 / ((n_seeds - 1) * (n_examples - 1))
    return t_power(difference / math.sqrt(total / (n_seeds * n_examples)), total**2 / spread, alpha)


def t_power(shift: float, df: float, alpha: float = 0.05) -> float:
    """Chance that a one-sided t test at alpha (below one half) rejects at noncentrality `shift`."""
    nodes, quantile = _chi_nodes(df), 0.0
    for _ in range(100):  # Newton from the left: the tail is convex there, so it never overshoots
        slope = sum(w * s * math.exp(-((quantile * s) ** 2) / 2) for s, w in nodes) / math.sqrt(2 * math.pi)
        step = (_above(nodes, 0.0, quantile) - alpha) / slope
        quantile += step
        if abs(step) < 1e-10 * (1 + abs(quantile)):
            break
    return _above(nodes, shift, quantile)


def _above(nodes: Sequence[tuple[float, float]], shift: float, quantile: float) -> float:
    """P(T > quantile) of the noncentral t: the mean over s = sqrt(chi2 / df) of the normal probability above quantile x s - shift."""
    return sum(w * 0.5 * math.erfc((quantile * s - shift) / math.sqrt(2)) for s, w in nodes)


@lru_cache(maxsize=256)
def _chi_nodes(df: float, n: int = 240) -> tuple[tuple[float, float], ...]:
    """Simpson's nodes and weights of the density of s = sqrt(chi2 / df), in the variable sqrt(s), where it is smooth also near 0."""
    width = 9 / math.sqrt(2 * df)
    low, high = math.sqrt(max(0.0, 1 - width)), math.sqrt(1 + width)
    step = (high - low) / n
    constant = math.log(2) + df / 2 * math.log(df / 2) - math.lgamma(df / 2)
    found = []
    for k in range(n + 1):
        root = low + k * step
        if root > 0:
            density = math.exp(constant + (df - 1) * 2 * math.log(root) - df * root**4 / 2) * 2 * root
            found.append((root * root, (1 if k in (0, n) else 4 if k % 2 else 2) * step / 3 * density))
    return tuple(found)


def planned_power(
    study: Study, tests: Mapping[TaskName, int], pilot: Mapping[TaskName, Pilot] | None = None, seeds: Sequence[int] = SEEDS
) -> list[PowerRow]:
    """Power of each task's registered quality claim at a true difference of 0, for these numbers of seeds and the study's own.

    Args:
        tests: number of test examples of each task; a task without one is left out.
        pilot: measured components that replace the assumed ones: power from the cautious to the measured spread over seeds.
    """
    counts = sorted({*seeds, len(study.seeds)} - {0, 1})
    return [row for task in study.tasks if task in tests for row in _rows(study, task, tests[task], (pilot or {}).get(task), counts)]


def _rows(study: Study, task: TaskName, n: int, pilot: Pilot | None, counts: Sequence[int]) -> list[PowerRow]:
    cases = [(pilot.score, pilot.components), (pilot.score, pilot.cautious)] if pilot else [(a.score, a.components) for a in ASSUMED[task]]
    units, margin = n * (pilot.units_per_example if pilot else 1), 1 - study.analysis.quality_retained
    basis = f"pilot, {pilot.seeds} seeds" if pilot else "assumed"
    found = []
    for s in counts:
        values = sorted(power(sd, margin * score, s, max(units, 2), study.analysis.alpha) for score, sd in cases)
        found.append(PowerRow(task, n, s, values[0], values[-1], basis))
    return found


def sizes_of_tests(study: Study, known: Mapping[TaskName, int]) -> dict[TaskName, int]:
    """Test examples of each task: as its data step counted them, else the official number up to the study's limit; none for the sample."""
    found: dict[TaskName, int] = {}
    for task, spec in study.tasks.items():
        n = known.get(task) or (None if study.data.source == "sample" else TEST_ROWS[task])
        if n:
            found[task] = min(n, spec.limits.test or n)
    return found


def upper_bounds(study: Study, known: Mapping[TaskName, int]) -> set[TaskName]:
    """Tasks whose test part may turn out smaller than `sizes_of_tests` says: SQuAD without its train file is split by article."""
    return {task for task in study.tasks if task == "squad_v2" and study.data.source == "files" and task not in known}


def power_lines(study: Study, rows: Sequence[PowerRow], bounds: Collection[TaskName] = ()) -> list[str]:
    """The power table as text; `bounds` are the tasks whose number of test examples is only an upper bound."""
    spec = study.analysis
    head = (
        f"Power: chance to confirm that {spec.candidate_method} keeps {100 * spec.quality_retained:g} % if both methods are truly equal "
        f"(one-sided {spec.alpha:g})"
    )
    counts = sorted({r.seeds for r in rows})
    lines = [head, f"  {'task':<10}{'test':>7}  " + "".join(f"{f'{c} seeds':<13}" for c in counts) + "standard deviations"]
    for task in dict.fromkeys(r.task for r in rows):
        mine = [r for r in rows if r.task == task]
        lines.append(f"  {task:<10}{mine[0].examples:>7}  " + "".join(f"{_range(r):<13}" for r in mine) + mine[0].basis)
    if any(r.basis == "assumed" for r in rows):
        lines.append("  assumed: standard deviations fitted to the original plan's own table, no evidence; --pilot replaces them")
    if any(r.basis.startswith("pilot") for r in rows):
        lines.append("  pilot: from the spread over seeds at its upper 80 % limit to the spread as measured")
    if "squad_v2" in bounds:
        lines.append("  squad_v2: at most that many, so less power, if train-v2.0.json is absent and dev is split by article")
    absent = [t for t in study.tasks if t not in {r.task for r in rows}]
    if absent:
        lines.append(f"  {', '.join(absent)}: test size not known before the data step has run")
    return lines


def _range(row: PowerRow) -> str:
    low, high = f"{row.low:.2f}", f"{row.high:.2f}"
    return low if low == high else f"{low}-{high}"
