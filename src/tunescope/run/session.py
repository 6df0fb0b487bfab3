"""A study opened for work: its file, plan and store, with the choices that its execution half makes."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tunescope.errors import PrerequisiteError, StudyError
from tunescope.study.load import load_study
from tunescope.study.plan import Plan, Step, build_plan
from tunescope.study.schema import Execution, StudyFile

from .data_folder import DataFolder
from .driver import Display, Driver, Policy
from .environment import choose_device, cores
from .gpus import Gpu, GpuRoom, MemoryNeeds, inventory
from .local import Executor, LocalExecutor
from .registration import refuse_mixed_plans
from .reporting import write_study
from .selection import Chosen
from .state import StepState, survey
from .store import Launch, Store


@dataclass(frozen=True)
class Session:
    """What every verb that reads or changes a study starts from."""

    file: StudyFile
    plan: Plan
    store: Store
    data: DataFolder

    @classmethod
    def open(cls, study: str, overrides: Sequence[str] = ()) -> "Session":
        """Load a study and find its store.

        Raises:
            StudyError: the file or an override is wrong.
        """
        file = load_study(study, overrides)
        plan = build_plan(file.study, file.execution.placement)
        paths = file.execution.paths
        return cls(file, plan, Store(Path(paths.runs) / file.study.name), DataFolder(Path(paths.data)))

    @property
    def execution(self) -> Execution:
        return self.file.execution

    def states(self) -> dict[str, StepState]:
        """Every step's state, from the files as they are now."""
        return survey(self.plan, Store(self.store.root), self.data.check)

    def launch(self, device: str | None = None) -> Launch:
        """How a step is run, on this machine's device when none is named."""
        execution = self.execution
        return Launch(
            data_dir=execution.paths.data, files_dir=execution.paths.files, device=device or self.device, threads=execution.threads,
            tracking=execution.tracking, arguments=sys.argv,
        )  # fmt: skip

    @cached_property
    def device(self) -> str:
        """`cpu` or `cuda` for this machine."""
        return choose_device(self.execution.device)

    @cached_property
    def gpus(self) -> list[Gpu]:
        """The GPUs of this machine that the run may use; none on a CPU."""
        return inventory() if self.device == "cuda" else []

    def slots(self, jobs: int | None = None) -> int:
        """Steps at once, at most: as asked, or what the cores carry (each step on a GPU wants two; memory decides how many of them fit)."""
        asked = jobs or self.execution.jobs
        if asked or not self.gpus:
            return asked or max(1, cores() // self.execution.threads)
        return len(self.gpus) * self._a_gpu()

    def _a_gpu(self) -> int:
        return max(1, cores() // 2 // len(self.gpus))

    def gpu_room(self, jobs: int | None = None) -> GpuRoom | None:
        """How steps share the GPUs; a number of jobs that the user asked for is dealt out evenly, whatever their memory."""
        if not self.gpus:
            return None
        asked = jobs or self.execution.jobs
        if asked:
            return GpuRoom([Gpu(g.name, 2**60) for g in self.gpus], lambda step_id: 0, -(-asked // len(self.gpus)))
        return GpuRoom(self.gpus, MemoryNeeds(self.plan, self.store), self._a_gpu())

    def executor(self, jobs: int | None = None) -> Executor:
        """Where this study's steps run, by `execution.executor`.

        Raises:
            PrerequisiteError: the device, the cluster or its package is not there.
        """
        execution = self.execution
        if execution.executor == "local":
            log = self.store.root / "fork-server.log"
            return LocalExecutor(self.slots(jobs), execution.threads, self.device, self.gpu_room(jobs), log=log)
        jobs = jobs or execution.jobs
        if execution.executor == "slurm":
            from .slurm import SlurmExecutor

            return SlurmExecutor(execution.slurm, jobs, execution.threads, execution.device, self.store.root)
        from .ray_cluster import RayExecutor

        machines = {step.id: step.machine for step in self.plan.steps}
        return RayExecutor(execution.ray, jobs, execution.threads, execution.device, machines, self.store.root)

    def prepare(self, chosen: Chosen) -> None:
        """What must hold before steps are started.

        Raises:
            StudyError: an adapter's target is no module of the base model.
            PrerequisiteError: prepared data changed, official files or the base model are not there, or runs stand under different plans.
        """
        refuse_mixed_plans(self.store)
        self.require_targets()
        self.data.verify(self.plan, self.store, chosen.needed)
        if problems := self.missing(chosen, ask_hub=True):
            raise PrerequisiteError("\n".join(problems))
        write_study(self.file, self.plan, self.store)

    def missing(self, chosen: Chosen, *, ask_hub: bool = False) -> list[str]:
        """What a run of the chosen steps would read and is not there: official files, the base model (one of the hub only if asked)."""
        starting = self._starting(chosen)
        return [problem for problem in (self._files_problem(starting), self._model_problem(starting, ask_hub)) if problem]

    def require_targets(self) -> None:
        """Adapters must fit the base model where it lies on this disk; one from the hub is checked when training has loaded it.

        Raises:
            StudyError: a target that is no module of it, or a rank above a layer's width.
        """
        from tunescope.models.checkpoint import local_folder, module_widths, target_problems

        study = self.file.study
        widths = module_widths(folder) if (folder := local_folder(study.model)) else {}
        adapters = {name: spec.adapter for name, spec in study.methods.items() if spec.adapter and widths}
        problems = [f"study.methods.{name}.{line}" for name, adapter in adapters.items() for line in target_problems(adapter, widths)]
        if problems:
            raise StudyError(problems)

    def run(self, chosen: Chosen, display: Display, policy: Policy, executor: Executor) -> dict[str, StepState]:
        """Run the chosen steps to their end; a finished one is never run again. The executor is closed."""
        driver = Driver(self.plan, self.store, executor, chosen, self.launch(executor.device), display, self.data.check, policy)
        return driver.run()

    def _starting(self, chosen: Chosen) -> list[Step]:
        """The chosen steps that a run comes to start. A result that waits for a need to run again is taken to stand."""
        states, starting, barred = self.states(), list[Step](), set[str]()
        for step in self.plan.steps:
            state = states[step.id]
            if state.status in ("done", "running"):
                continue
            if state.status == "failed" or step.id not in chosen.run or not barred.isdisjoint((*step.needs, *step.selects_from)):
                barred.add(step.id)
            elif state.status == "stale" or state.again or not self.store.result(step.id)[0]:
                starting.append(step)
        return starting

    def _files_problem(self, starting: Sequence[Step]) -> str:
        """Official files must be there before anything that reads them starts."""
        files = self.execution.paths.files
        waiting = [step.id for step in starting if step.kind == "data"]
        if self.file.study.data.source != "files" or not waiting or (files and Path(files).is_dir()):
            return ""
        where = f"there is no folder {files}" if files else "no folder is named"
        return (
            f"execution.paths.files: {where}, and {', '.join(sorted(waiting))} read the official distribution files from it; "
            "add --set execution.paths.files=FOLDER (docs/tasks.md says what it holds)"
        )

    def _model_problem(self, starting: Sequence[Step], ask_hub: bool) -> str:
        """So must the base model. The hub is asked where steps run on this machine: the nodes of a cluster have their own network."""
        from tunescope.models.checkpoint import local_folder, model_problem

        model = self.file.study.model
        if not any(hasattr(step.inputs, "model") for step in starting):
            return ""
        problem = model_problem(model)
        if problem or local_folder(model) or not ask_hub or self.execution.executor != "local":
            return problem
        from tunescope.models.hub import reach_problem

        return reach_problem(model, self.store.root)
