"""Whether prepared data are still the bytes that finished data steps left."""

from collections.abc import Iterable
from pathlib import Path

from tunescope.errors import PrerequisiteError
from tunescope.records import FinishedStep
from tunescope.study.inputs import DataInputs
from tunescope.study.plan import Plan, Step

from .store import Store


def check_preparation(data_dir: Path, finished: FinishedStep | None) -> None:
    """Make sure that a worker reads the preparation its data step left: another study may share the folder and prepare it anew.

    Raises:
        PrerequisiteError: the manifest describes other bytes, which verify against themselves and would give other numbers.
    """
    from tunescope.data.manifest import digest, read_entry

    task = finished.id.removeprefix("data/") if finished else ""
    entry = read_entry(data_dir, task) if finished else None
    if finished and entry and digest(entry) != finished.outputs["data_sha256"]:
        raise PrerequisiteError(
            f"{data_dir / task} holds another preparation than {finished.id} left, because another study or setting prepared it meanwhile; "
            "give each study its own execution.paths.data and run again"
        )


class DataFolder:
    """`execution.paths.data`, as data steps see it."""

    def __init__(self, path: Path):
        self.path = path
        self._verified: dict[str, tuple[float, str]] = {}
        """Task -> (time its data step finished, digest of the bytes found now)."""

    def verify(self, plan: Plan, store: Store, step_ids: Iterable[str]) -> None:
        """Hash the data of every finished data step among `step_ids`.

        Raises:
            PrerequisiteError: names every file that changed; changed data are never prepared again silently.
        """
        from tunescope.data.manifest import verify

        problems = []
        for step_id in sorted(step_ids):
            step, (result, _) = plan[step_id], store.result(step_id)
            if step.kind != "data" or result is None or not self._folder(step).is_dir():
                continue
            try:
                self._verified[str(step.task)] = result.result["finished"], verify(self.path, str(step.task))
            except PrerequisiteError as error:
                problems.append(str(error))
        if problems:
            raise PrerequisiteError("\n".join(problems))

    def check(self, step: Step, finished: FinishedStep) -> str:
        """Why a finished data step must run again; "" when it need not."""
        if not self._folder(step).is_dir():
            return f"its data folder {self._folder(step)} is missing"
        since, digest = self._verified.get(str(step.task), (None, None))
        if since == finished.result["finished"] and digest != finished.outputs.get("data_sha256"):
            return f"{self._folder(step)} holds another preparation of the data"
        return ""

    def test_examples(self, step: Step) -> int | None:
        """Test examples of a task as it is prepared here, when it is prepared as its step asks; nothing is hashed."""
        from tunescope.data.manifest import read_entry

        assert isinstance(step.inputs, DataInputs)
        wanted, entry = step.inputs, read_entry(self.path, step.inputs.task)
        asked = {"limits": wanted.limits.model_dump(mode="json"), "probe_examples": wanted.probe_examples}
        asked |= {name: getattr(wanted.data, name) for name in ("source", "split_seed", "selection_share")}
        alike = entry is not None and asked.items() <= entry.get("request", {}).items()
        return int(entry["parts"]["test"]) if entry and alike else None

    def _folder(self, step: Step) -> Path:
        return self.path / str(step.task)
