"""`tunescope validate`: compute again what can be computed again, and compare. Every line is the outcome of a computation."""

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import FinishedStep

from .files import read_json, sha256_file
from .local import LocalExecutor
from .provenance import packages
from .registration import refuse_mixed_plans
from .session import Session
from .store import Store

TOLERANCE = 0.01
"""Baselines: largest difference relative to the recorded value."""
KEY_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "scipy",
    "statsmodels",
    "pandas",
)
Note = Callable[[str], None]


@dataclass(frozen=True)
class Check:
    """One line of the validation."""

    name: str
    passed: bool
    found: str


def validate(session: Session, *, full: bool, note: Note) -> Iterator[Check]:
    """Check a finished (or partial) study.

    Args:
        session: the study; its store is only read, reruns happen in a temporary store.
        full: rerun the baselines of every task, not of the quickest only.
        note: where long work is announced.

    Raises:
        PrerequisiteError: nothing is finished yet.
    """
    finished = {i: s.finished for i, s in session.states().items() if s.finished}
    if not finished:
        raise PrerequisiteError(f"no finished step in {session.store.root}: run the study first")
    refuse_mixed_plans(session.store)
    yield _environment(session, finished)
    yield _data(session)
    yield _artefacts(finished)
    with tempfile.TemporaryDirectory(prefix="tunescope-validate-") as folder:
        again = Rerun(session, Store(Path(folder) / session.file.study.name), note)
        yield from _baselines(again, finished, full)
        yield from _training(again, finished)
    yield _statistics(session, note)


def _environment(session: Session, finished: dict[str, FinishedStep]) -> Check:
    """Versions now against those each step recorded."""
    now, differing = packages(), set()
    for step in finished.values():
        recorded = (read_json(step.folder / "provenance.json") or {}).get("packages", {})
        differing |= {f"{n} {recorded.get(n)} → {now.get(n)}" for n in KEY_PACKAGES if recorded.get(n) != now.get(n)}
    found = "; ".join(sorted(differing)) or f"{len(KEY_PACKAGES)} key packages as recorded by all {len(finished)} steps"
    return Check("environment set-up identical", not differing, found)


def _data(session: Session) -> Check:
    ids = [s.id for s in session.plan.steps if s.kind == "data"]
    try:
        session.data.verify(session.plan, session.store, ids)
    except PrerequisiteError as error:
        return Check("data checksums match", False, str(error).replace("\n", "; "))
    wrong = [i for i in ids if (r := session.store.result(i)[0]) and session.data.check(session.plan[i], r)]
    return Check("data checksums match", not wrong, f"differs: {', '.join(wrong)}" if wrong else f"{len(ids)} tasks, every file hashed")


def _artefacts(finished: dict[str, FinishedStep]) -> Check:
    """Hash again every artefact a result vouches for."""
    files = [(s.folder / path, sha) for s in finished.values() for path, sha in s.result["content"].items()]
    wrong = [str(path) for path, sha in files if not path.is_file() or sha256_file(path) != sha]
    return Check("stored artefacts unchanged", not wrong, f"changed: {', '.join(wrong[:5])}" if wrong else f"{len(files)} files hashed")


@dataclass
class Rerun:
    """Runs a finished step once more, in a store of its own."""

    session: Session
    store: Store
    note: Note

    def __call__(self, step: FinishedStep) -> FinishedStep:
        self.note(f"rerunning {step.id} (took {step.result['wall_s']:.0f} s)")
        original = self.session.store.record(step.id)
        assert original is not None
        for need in original.upstream:
            link = self.store.folder(need)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(self.session.store.folder(need).resolve(), target_is_directory=True)
        launch = self.session.launch().model_copy(update={"tracking": self.session.execution.tracking.model_copy(update={"wandb": "off"})})
        folder = self.store.prepare(original.model_copy(update={"launch": launch}))
        assert folder is not None
        self._work(step, folder)
        result, problem = self.store.result(step.id)
        if result is None:
            failure = self.store.failure(step.id)
            raise StepError(f"{step.id}: the rerun failed: {failure.message if failure else problem or 'no result'}")
        return result

    def _work(self, step: FinishedStep, folder: Path) -> None:
        kind = self.session.plan[step.id].kind
        executor = LocalExecutor(1, self.session.execution.threads, self.session.device, log=self.store.root / "fork-server.log")
        try:
            executor.submit(step.id, kind, folder)
            while not executor.poll(1.0):
                pass
        finally:
            executor.close()


def _baselines(again: Rerun, finished: dict[str, FinishedStep], full: bool) -> Iterator[Check]:
    steps = sorted((s for i, s in finished.items() if i.startswith("baseline/")), key=lambda s: s.result["wall_s"])
    name = "baseline results within 1 % tolerance"
    if not steps:
        yield Check(name, False, "no baseline is finished")
        return
    gaps = {}
    for step in steps if full else steps[:1]:
        new = again(step)
        for metric in step.result["metrics"]:
            value = new.metric(metric["name"], metric["split"])
            gaps[f"{step.id} {metric['name']}"] = _relative(metric["value"], value)
    if not gaps:
        yield Check(name, False, f"{steps[0].id} recorded no metric")
        return
    worst = max(gaps, key=lambda k: gaps[k])
    yield Check(name, gaps[worst] <= TOLERANCE, f"{len(gaps)} metrics recomputed, largest difference {gaps[worst]:.2%} ({worst})")


def _relative(old: float | None, new: float | None) -> float:
    if old is None or new is None:
        return 0.0 if old is new else float("inf")
    return abs(new - old) / max(abs(old), 1e-12) if new != old else 0.0


def _training(again: Rerun, finished: dict[str, FinishedStep]) -> Iterator[Check]:
    """Rerun the cheapest training run: digest, curves, final metrics."""
    runs = [s for i, s in finished.items() if i.startswith("train/")]
    if not runs:
        yield Check("training rerun gives the same digest", False, "no training run is finished")
        return
    old = min(runs, key=lambda s: s.result["wall_s"])
    new = again(old)
    same = old.result["digest"] == new.result["digest"]
    differing = [m["name"] for m in old.result["metrics"] if new.metric(m["name"], m["split"]) != m["value"]]
    changed = [p for p, sha in old.result["content"].items() if new.result["content"].get(p) != sha]
    what = "identical digest" if same else f"digests differ; metrics {differing[:5] or 'equal'}, artefacts {changed[:5] or 'equal'}"
    yield Check("training rerun gives the same digest", same, f"{old.id}: {what}")
    yield _curves(old, new, same)
    yield Check("final metrics match", not differing, f"{old.id}: {len(old.result['metrics'])} metrics, {len(differing)} differ")


def _curves(old: FinishedStep, new: FinishedStep, same: bool) -> Check:
    """Kolmogorov-Smirnov on the loss values, as the plan asks. It would also pass curves that differ; the digest is the real check.

    Its p is uniform over two independent runs of one recipe, so asking for more than 0.95 raises a false alarm on 95 % of them.
    """
    from scipy.stats import ks_2samp

    first, second = _losses(old.folder), _losses(new.folder)
    if not first or not second:
        return Check("training curves overlap (KS p > 0.95)", False, "no loss was recorded")
    p = float(ks_2samp(first, second).pvalue)
    exact = "value for value" if first == second else "not value for value"
    found = f"{old.id}: KS p = {p:.3f} over {len(first)} points, equal {exact}; digest {'equal' if same else 'different'}"
    found += "; two sound runs that are not bit-identical miss 0.95 in 95 % of cases, so the digest decides"
    return Check("training curves overlap (KS p > 0.95)", p > 0.95, found)


def _losses(folder: Path) -> list[float]:
    path = folder / "metrics.jsonl"
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row["loss"] for row in rows if row.get("loss") is not None]


def _statistics(session: Session, note: Note) -> Check:
    """Two analyses of the same records must agree in every number."""
    from .reporting import find

    note("computing the statistics twice")
    states = session.states()
    first, second = (find(session.file, session.plan, session.store, states, now="validation")[1] for _ in range(2))
    same = first.model_dump_json() == second.model_dump_json()
    return Check(
        "all statistical tests reproducible", same, f"{len(first.claims)} claims computed twice, {'equal' if same else 'DIFFERENT'}"
    )
