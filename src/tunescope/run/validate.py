"""`tunescope validate`: compute again what can be computed again, and compare. Every line is the outcome of a computation.

Four tiers. R0: what the study read is what it read before. R1: on the machine that ran it, a rerun gives the same digests. R2: on another
machine, a rerun gives nearly the same predictions and scores. R3: at a new seed, LoRA stands to full as the finished seeds predict.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunescope.errors import PrerequisiteError, StepError
from tunescope.records import FinishedStep
from tunescope.study.identity import differences, fingerprint

from . import compare
from .files import read_json, sha256_file
from .provenance import machine, packages
from .registration import refuse_mixed_plans
from .rerun import Rerun
from .session import Session
from .sources import sources
from .state import StepState
from .store import Store

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
Tier = Literal["R0", "R1", "R2", "R3"]
TIERS: dict[Tier, str] = {
    "R0": "the inputs are those the study read",
    "R1": "a rerun on the machine that ran it gives the same digests",
    "R2": "a rerun elsewhere gives the same predictions and scores within tolerance",
    "R3": "a new seed gives what the finished seeds predict",
}
"""Tier -> the claim that its lines support."""
Note = Callable[[str], None]
Finished = Mapping[str, FinishedStep]


@dataclass(frozen=True)
class Check:
    """One line of the validation."""

    tier: Tier
    name: str
    status: Literal["PASS", "FAIL", "SKIP"]
    found: str


def judged(tier: Tier, name: str, passed: bool, found: str) -> Check:
    """PASS or FAIL."""
    return Check(tier, name, "PASS" if passed else "FAIL", found)


def validate(session: Session, *, full: bool, note: Note) -> Iterator[Check]:
    """Check a finished (or partial) study.

    Args:
        session: the study; its store is only read, reruns happen in a temporary store.
        full: rerun the baselines of every task and a training run of every method, and train both methods at a new seed.
        note: where long work is announced.

    Raises:
        PrerequisiteError: nothing is finished yet.
    """
    states = session.states()
    finished = {i: s.finished for i, s in states.items() if s.finished}
    if not finished:
        raise PrerequisiteError(f"no finished step in {session.store.root}: run the study first")
    refuse_mixed_plans(session.store)
    yield from _inputs(session, states, finished)
    yield _statistics(session, states, note)
    with tempfile.TemporaryDirectory(prefix="tunescope-validate-") as folder:
        rerun = Rerun(session, Store(Path(folder) / session.file.study.name), note)
        yield from _training(rerun, finished, full)
        yield from _baselines(rerun, finished, full)
        yield from _new_seed(rerun, finished, full)


def _inputs(session: Session, states: Mapping[str, StepState], finished: Finished) -> Iterator[Check]:
    yield _environment(finished)
    yield _data(session)
    yield _sources(session, finished)
    yield _study(session, states)
    yield _artefacts(finished)


def _environment(finished: Finished) -> Check:
    """Versions now against those each step recorded."""
    now = {"python": machine()["python"], **packages()}
    names, differing = ("python", *KEY_PACKAGES), set()
    for step in finished.values():
        record = read_json(step.folder / "provenance.json") or {}
        recorded = {"python": record.get("python"), **record.get("packages", {})}
        differing |= {f"{n} {recorded.get(n)} → {now.get(n)}" for n in names if recorded.get(n) != now.get(n)}
    found = "; ".join(sorted(differing)) or f"Python and {len(KEY_PACKAGES)} key packages as recorded by all {len(finished)} steps"
    return judged("R0", "environment set-up identical", not differing, found)


def _data(session: Session) -> Check:
    name, steps = "data checksums match", [s.id for s in session.plan.steps if s.kind == "data"]
    ids = [i for i in steps if session.store.result(i)[0]]
    absent = f"not finished here: {_few(set(steps) - set(ids))}"
    if not ids:
        return Check("R0", name, "SKIP", absent)
    try:
        session.data.verify(session.plan, session.store, ids)
    except PrerequisiteError as error:
        return judged("R0", name, False, str(error).replace("\n", "; "))
    wrong = [i for i in ids if (r := session.store.result(i)[0]) and session.data.check(session.plan[i], r)]
    found = f"{len(ids)} of {len(steps)} tasks, every file hashed{f'; {absent}' if len(ids) < len(steps) else ''}"
    return judged("R0", name, not wrong, f"differs: {', '.join(wrong)}" if wrong else found)


def _sources(session: Session, finished: Finished) -> Check:
    """Model files and templates, hashed anew, against those that each step recorded."""
    name, now, compared, wrong = "model, tokenizer and prompt template unchanged", dict[str, dict[str, str]](), 0, set[str]()
    for step in finished.values():
        recorded = (read_json(step.folder / "provenance.json") or {}).get("sources")
        if not recorded:
            continue
        key = fingerprint({k: step.inputs.get(k) for k in ("model", "task")})
        if key not in now:
            try:
                now[key] = sources(step.inputs, session.store.root)
            except (PrerequisiteError, OSError) as error:
                return judged("R0", name, False, str(error).replace("\n", "; "))
        compared += 1
        wrong |= {f"{n} ({step.id})" for n in recorded.keys() | now[key].keys() if recorded.get(n) != now[key].get(n)}
    if not compared:
        return Check("R0", name, "SKIP", "no finished step recorded its model and template")
    files = len({n for found in now.values() for n in found})
    return judged("R0", name, not wrong, f"differs: {_few(wrong)}" if wrong else f"{files} digests as recorded by {compared} steps")


def _study(session: Session, states: Mapping[str, StepState]) -> Check:
    """The study file against the copy that its results were made by, and against every finished step."""
    from tunescope.study.load import load_study

    kept = session.store.root / "study.yaml"
    changes = differences(load_study(str(kept)).study, session.file.study) if kept.exists() else ["no study.yaml is kept"]
    stale = [f"{i} is stale" for i, s in states.items() if s.status == "stale"]
    found = _few([*changes, *stale]) or f"SHA-256 {fingerprint(session.file.study)[:16]}…, no finished step is stale"
    return judged("R0", "study file unchanged", not (changes or stale), found)


def _artefacts(finished: Finished) -> Check:
    """Hash again every artefact a result vouches for."""
    files = [(s.folder / path, sha) for s in finished.values() for path, sha in s.result["content"].items()]
    wrong = [str(path) for path, sha in files if not path.is_file() or sha256_file(path) != sha]
    return judged("R0", "stored artefacts unchanged", not wrong, f"changed: {_few(wrong)}" if wrong else f"{len(files)} files hashed")


def _statistics(session: Session, states: Mapping[str, StepState], note: Note) -> Check:
    """Two analyses of the same records, and the one in the kept report, must agree in every number."""
    from tunescope.analysis.payloads import final_report_json

    from .reporting import current_report, find

    note("computing the statistics twice")
    name, study = "all statistical tests reproducible", session.file.study
    first, second = (_undated(final_report_json(find(session.file, session.plan, session.store, states, now="")[1], study)) for _ in "12")
    apart = differences(first, second)
    against = "computed twice"
    if current_report(session.file, session.store, states):
        against = "computed twice and compared with the kept report"
        kept = read_json(session.store.root / "analysis" / "final_analysis_report.json") or {}
        apart += differences(_undated(kept), first)
    found = f"{len(first['claims'])} claims and every table {against}, {'DIFFERENT: ' + _few(apart) if apart else 'equal'}"
    return judged("R1", name, not apart, found)


def _undated(report: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in report.items() if k != "generated"}


def _training(rerun: Rerun, finished: Finished, full: bool) -> Iterator[Check]:
    """The quickest run, final ones first as they have predictions; of every method in the full test."""
    runs = sorted((s for i, s in finished.items() if i.startswith("train/")), key=lambda s: ("/final/" not in s.id, s.result["wall_s"]))
    if not runs:
        yield judged("R1", compare.DIGEST, False, "no training run is finished")
        return
    quickest: dict[str, FinishedStep] = {}
    for run in runs:
        quickest.setdefault(run.inputs["method"], run)
    for old in list(quickest.values()) if full else runs[:1]:
        try:
            new = rerun.again(old)
        except StepError as error:
            yield judged("R1", compare.DIGEST, False, str(error))
            continue
        yield from (Check(*row) for row in compare.training(old, new, _moved(rerun.session, old)))


def _moved(session: Session, step: FinishedStep) -> str:
    """How this machine differs from the one that ran a step; "" on the same one."""
    before = _setting(read_json(step.folder / "provenance.json") or {})
    after = _setting({**machine(), "device": session.device, "threads": session.execution.threads})
    return "; ".join(f"{k} {before[k]} → {after[k]}" for k in before if before[k] != after[k])


def _setting(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the last bit of a sum: processor, GPU model, device and threads. A host name does not."""
    gpus = sorted({str(g.get("name")) for g in record.get("gpus") or []})
    return {"cpu": record.get("cpu"), "gpu": ", ".join(gpus), "device": record.get("device"), "threads": record.get("threads")}


def _baselines(rerun: Rerun, finished: Finished, full: bool) -> Iterator[Check]:
    steps = sorted((s for i, s in finished.items() if i.startswith("baseline/")), key=lambda s: s.result["wall_s"])
    name = "baseline results within 1 % tolerance"
    if not steps:
        yield judged("R1", name, False, "no baseline is finished")
        return
    tier: Tier = "R2" if _moved(rerun.session, steps[0]) else "R1"
    gaps: dict[str, float] = {}
    for step in steps if full else steps[:1]:
        try:
            gaps |= compare.gaps(step, rerun.again(step))
        except StepError as error:
            yield judged(tier, name, False, str(error))
            return
    worst = max(gaps, key=lambda k: gaps[k], default="")
    found = f"{len(gaps)} metrics recomputed, largest difference {gaps[worst]:.2%} ({worst})" if gaps else "no metric is recorded"
    yield judged(tier, name, bool(gaps) and gaps[worst] <= compare.TOLERANCE, found)


def _new_seed(rerun: Rerun, finished: Finished, full: bool) -> Iterator[Check]:
    """Both methods at a new seed, on the task whose runs are the quickest."""
    study = rerun.session.plan.study
    name, methods = "new seed inside the prediction interval", (study.analysis.candidate_method, study.analysis.reference_method)
    pairs = {t: p for t in study.tasks if len(p := compare.paired(finished, t, methods)) > 1}
    if not pairs or not full:
        why = (
            "trains both methods at a new seed: ask for it with --full-test" if pairs else "no task has two seeds of both methods finished"
        )
        yield Check("R3", name, "SKIP", why)
        return
    task = min(pairs, key=lambda t: sum(run.result["wall_s"] for pair in pairs[t].values() for run in pair))
    seed = max(study.seeds) + 1
    try:
        candidate, reference = (rerun.final(task, method, seed, finished) for method in methods)
    except StepError as error:
        yield judged("R3", name, False, str(error))
        return
    for metric, split in ((study.analysis.primary_metric.get(task, "accuracy"), "test"), ("drift", "probe")):
        yield Check(*compare.predicted(list(pairs[task].values()), (candidate, reference), metric, split, f"{task}, seed {seed}"))


def _few(items: Any) -> str:
    """The first five, and how many more there are."""
    names = sorted(items)
    return "; ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
