"""`tunescope merge`: bring the finished steps of other hosts' stores into this one, refusing whatever does not belong together."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.records import FinishedStep
from tunescope.study.identity import differences, fingerprint
from tunescope.study.plan import Plan, Step
from tunescope.study.registration import FILE

from .files import read_json, write_json
from .registration import plans_of
from .session import Session
from .state import changes_since, identify
from .store import ASIDE, Store

LOCK = "model-lock.json"


@dataclass
class Merged:
    """What a merge did."""

    copied: list[str] = field(default_factory=list)
    here: list[str] = field(default_factory=list)
    """Steps that were here already with the same digest, or that a worker is at."""
    stale: list[str] = field(default_factory=list)
    """Steps whose result in another store is not of this plan, and was left there."""


@dataclass(frozen=True)
class Offer:
    """The usable results of one step."""

    step: Step
    fitting: tuple[Store, ...]
    """Stores whose result belongs to the plan, this one first; also those that cannot be judged, as no store has what the step needs."""
    stale: Mapping[Store, str]
    """Stores whose result does not, and what differs."""


def merge(session: Session, folders: Sequence[Path], note: Callable[[str], None]) -> Merged:
    """Copy finished steps from other stores of the same study. Nothing is copied unless everything fits; stale results are left out.

    Copying ends, with what is copied kept, when a driver here fixes another plan meanwhile: no final run moves in beside it.

    Args:
        folders: stores (`runs/<study>`), or folders that hold one there.
        note: where each store is announced, and each stale result with what differs.

    Raises:
        PrerequisiteError: a folder holds no store of this study.
        StudyError: stores contradict each other (one line each): plans fixed differently, models at different commits, damaged results,
            one step with two results.
    """
    target = session.store
    sources = [_find(folder, session.file.study.name) for folder in folders]
    stores = [target, *sources]
    offers = list(_offers(session.plan, stores))
    _refuse([*_plans(stores), *_runs_under_plans(stores), *_locks(stores), *_results(offers, stores)])
    with target.locked():
        kept = _keep_plan(target, stores)
    _keep_locks(target, stores)
    done = Merged()

    def check() -> None:
        if read_json(target.root / FILE) != kept:
            _keep_plan(target, stores)

    with tempfile.TemporaryDirectory(prefix=ASIDE, dir=target.root) as aside:
        for source in sources:
            note(f"merging {source.root}")
            for offer in offers:
                step_id = offer.step.id
                if source in offer.stale:
                    note(f"left out, stale: {step_id}  {offer.stale[source]}")
                    done.stale.append(step_id)
                elif source in offer.fitting:
                    taken = target.adopt(step_id, source.folder(step_id), Path(aside), check, instead=target in offer.stale)
                    (done.copied if taken else done.here).append(step_id)
    return done


def _refuse(problems: Sequence[str]) -> None:
    if problems:
        raise StudyError(problems)


def _offers(plan: Plan, stores: Sequence[Store]) -> Iterator[Offer]:
    """What the stores hold of each step, judged as if all that fits lay in one store."""
    known: dict[str, FinishedStep] = {}
    gone: set[str] = set()  # steps of which there are stale results only: what was made from them is stale too
    for step in plan.steps:
        needs = (*step.needs, *step.selects_from)
        found = {store: result for store in stores if (result := store.result(step.id)[0]) is not None}
        stale: dict[Store, str] = {}
        if lost := next((need for need in needs if need in gone), None):
            stale = dict.fromkeys(found, f"needs {lost}, which is stale")
        elif all(need in known for need in needs):
            wanted = identify(plan, step, known)
            others = [store for store, result in found.items() if result.result["fingerprint"] != wanted.fingerprint]
            stale = {store: "; ".join(changes_since(store, wanted)) for store in others}
        fitting = tuple(store for store in found if store not in stale)
        if fitting:
            known[step.id] = found[fitting[0]]
        elif stale:
            gone.add(step.id)
        yield Offer(step, fitting, stale)


def _find(folder: Path, study: str) -> Store:
    for root in (folder, folder / study, folder / "runs" / study):
        if (root / "steps").is_dir():
            return Store(root)
    raise PrerequisiteError(f"{folder}: no steps/ there, nor in {study}/ or runs/{study}/ below it; name another host's runs/{study}")


def _plans(stores: Sequence[Store]) -> Iterator[str]:
    """Every registered plan must be whole and be the same, by its SHA-256."""
    first: tuple[Path, dict] | None = None
    for store in stores:
        path = store.root / FILE
        if not path.exists():
            continue
        kept = read_json(path) or {}
        if not isinstance(kept.get("registered"), str) or fingerprint(kept.get("plan")) != kept.get("sha256"):
            yield f"{path}: the registered plan is unreadable or was edited; runs behind it cannot be confirmatory"
        elif first is None:
            first = path, kept
        elif kept["sha256"] != first[1]["sha256"]:
            changes = "; ".join(differences(first[1]["plan"], kept["plan"])[:3])
            yield f"{path}: another plan was registered there than in {first[0]} ({changes})"


def _runs_under_plans(stores: Sequence[Store]) -> Iterator[str]:
    """Final runs say under which plan they finished, also where no registration.json is left or another one was put there."""
    found: dict[str, str] = {}
    for store in stores:
        for sha, where in plans_of(store).items():
            found.setdefault(sha, f"{store.root}: {where[0]}")
    if len(found) > 1:
        yield "finished runs stand under different registered plans: " + "; ".join(f"{sha[:16]} in {place}" for sha, place in found.items())


def _locks(stores: Sequence[Store]) -> Iterator[str]:
    """A model must have been loaded at one commit everywhere."""
    known: dict[str, tuple[str, Path]] = {}
    for store in stores:
        for model, commit in (read_json(store.root / LOCK) or {}).items():
            other, where = known.setdefault(model, (commit, store.root))
            if other != commit:
                yield f"{store.root / LOCK}: {model} is at {commit}, in {where} at {other}; run one of them again with the other's lock"


def _results(offers: Sequence[Offer], stores: Sequence[Store]) -> Iterator[str]:
    """No result may be damaged, and two results of one step that belong to the plan must be the same."""
    for offer in offers:
        step_id, known = offer.step.id, None
        for store in stores:
            folder, (result, problem) = store.folder(step_id), store.result(step_id)
            damage = problem or (store.damaged(step_id) if store in offer.fitting and store is not stores[0] else "")
            if damage and store is not stores[0]:
                yield f"{folder}: {damage}; copy it again, or run the step again there"
            if result is None or damage or store in offer.stale:
                continue
            if known is None:
                known = result.result["digest"], folder
            elif known[0] != result.result["digest"]:
                yield f"{folder}: another result than {known[1]}; remove the one that is not to count"


def _keep_plan(target: Store, stores: Sequence[Store]) -> dict[str, Any] | None:
    """The plan counts as fixed when the first host fixed it; returns it. Under the store's lock: a driver may just have fixed one here."""
    _refuse([*_plans(stores), *_runs_under_plans(stores)])
    plans = [kept for store in stores if (kept := read_json(store.root / FILE))]
    first = min(plans, key=lambda kept: kept["registered"], default=None)
    if first:
        write_json(target.root / FILE, first)
    return first


def _keep_locks(target: Store, stores: Sequence[Store]) -> None:
    """Under the lock that a worker takes when it notes the commit of a model it loaded."""
    with FileLock(target.root / f"{LOCK}.lock"):
        _refuse(list(_locks(stores)))
        locks = {model: commit for store in stores for model, commit in (read_json(store.root / LOCK) or {}).items()}
        if locks:
            write_json(target.root / LOCK, locks)
