"""Finished steps run once more, or at a seed the study has not, in a store of their own: what `validate` compares with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tunescope.errors import StepError
from tunescope.records import FinishedStep
from tunescope.study.identity import fingerprint
from tunescope.study.plan import build_plan

from .local import LocalExecutor
from .session import Session
from .store import Launch, StepRecord, Store, identity


@dataclass(frozen=True)
class Rerun:
    """Runs steps in a temporary store; the study's own is only read."""

    session: Session
    store: Store
    note: Callable[[str], None]

    def again(self, step: FinishedStep) -> FinishedStep:
        """A finished step, from the very record it was made by.

        Raises:
            StepError: the rerun failed.
        """
        record = self.session.store.record(step.id)
        assert record is not None
        self.note(f"rerunning {step.id} (took {step.result['wall_s']:.0f} s)")
        return self._run(record.model_copy(update={"launch": self._launch()}))

    def final(self, task: str, method: str, seed: int, finished: Mapping[str, FinishedStep]) -> FinishedStep:
        """A final run at a seed that the study has not, at the setting that its search chose.

        Raises:
            StepError: the run failed.
        """
        study = self.session.plan.study
        plan = build_plan(study.model_copy(update={"seeds": (*study.seeds, seed)}))
        step = plan[f"train/{task}/{method}/final/seed-{seed}"]
        inputs = plan.resolve(step, finished)
        assert inputs is not None
        upstream = {i: finished[i].result["digest"] for i in step.needs}
        self.note(f"running {step.id}, a seed that the study has not")
        record = StepRecord(
            study=study.name, id=step.id, kind=step.kind, phase=step.phase, inputs=inputs.model_dump(mode="json"), upstream=upstream,
            fingerprint=fingerprint(identity(step.kind, inputs, upstream)), launch=self._launch(),
        )  # fmt: skip
        return self._run(record)

    def _launch(self) -> Launch:
        launch = self.session.launch()
        return launch.model_copy(update={"tracking": launch.tracking.model_copy(update={"wandb": "off", "trackio": False})})

    def _run(self, record: StepRecord) -> FinishedStep:
        for need in record.upstream:
            link = self.store.folder(need)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                link.symlink_to(self.session.store.folder(need).resolve(), target_is_directory=True)
        folder = self.store.prepare(record)
        assert folder is not None
        self._work(record, folder)
        result, problem = self.store.result(record.id)
        if result is None:
            failure = self.store.failure(record.id)
            raise StepError(f"{record.id}: the rerun failed: {failure.message if failure else problem or 'no result'}")
        return result

    def _work(self, record: StepRecord, folder: Path) -> None:
        executor = LocalExecutor(1, self.session.execution.threads, self.session.device, log=self.store.root / "fork-server.log")
        try:
            executor.submit(record.id, record.kind, folder)
            while not executor.poll(1.0):
                pass
        finally:
            executor.close()
