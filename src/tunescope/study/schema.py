"""The study file as types. The `study` half changes numbers and enters fingerprints; the `execution` half never does."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .arms import ArmName, parse_arm
from .lists import Several, or_a_list
from .peft_types import PeftType
from .rules import broken_placement, broken_rules

TaskName = Literal["mrpc", "sst2", "rte", "squad_v2"]
TASKS: tuple[TaskName, ...] = ("mrpc", "sst2", "rte", "squad_v2")
TASK_NAMES = {"mrpc": "MRPC", "sst2": "SST-2", "rte": "RTE", "squad_v2": "SQuAD v2"}
"""As their publishers write them."""
Kind = Literal["data", "baseline", "base-probe", "train", "drift", "serve", "correlate"]
KINDS: tuple[Kind, ...] = ("data", "baseline", "base-probe", "train", "drift", "serve", "correlate")
Share = Annotated[float, Field(ge=0, le=1)]
STUDY_NAME = r"^[a-z0-9][a-z0-9_-]*$"
Precision = Literal["auto", "fp32", "bf16-mixed", "bf16"]


class Frozen(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelSpec(Frozen):
    """The base model: `sprout-2m` (embedded), a local folder, or a hub id with a pinned commit."""

    name: str
    revision: str | None = None


class Limits(Frozen):
    """Upper bounds on examples per part, drawn with the fixed split seed; None takes all."""

    train: PositiveInt | None = None
    selection: PositiveInt | None = 1000
    test: PositiveInt | None = None


class DataSpec(Frozen):
    """Where task data comes from. `files` reads official distribution files from `execution.files`."""

    source: Literal["sample", "files", "hub"] = "hub"
    revisions: dict[str, str] = {}
    split_seed: int = 13
    selection_share: Share = 0.1


class TaskSpec(Frozen):
    """One task: its length limit in tokens, its limits in examples, and what differs from the study's `training`."""

    max_length: PositiveInt
    limits: Limits = Limits()
    learning_rates: dict[str, Several[PositiveFloat]] = {}
    batch_sizes: Several[PositiveInt] | None = None
    max_steps: PositiveInt | None = None
    expect: dict[str, tuple[float, float]] = {}
    """Per method, the range (fractions) outside which the primary test metric raises a red flag."""


class AdapterSpec(Frozen):
    """A PEFT adapter in PEFT's own terms; `options` passes any further field of that PEFT config."""

    peft_type: PeftType = "LORA"
    r: PositiveInt | None = 8
    lora_alpha: PositiveFloat | None = 16
    lora_dropout: Share | None = 0.05
    target_modules: Annotated[Several[str] | Literal["all-linear"], or_a_list("all-linear")] = ("q_proj", "v_proj")
    options: dict[str, Any] = {}


class MethodSpec(Frozen):
    """A fine-tuning method. No adapter means full fine-tuning."""

    adapter: AdapterSpec | None = None
    warmup_ratio: Share
    learning_rates: Several[PositiveFloat]


class TrainingSpec(Frozen):
    """What all methods share, so that nothing but the method differs."""

    precision: Precision = "auto"
    batch_sizes: Several[PositiveInt] = (8, 16)
    micro_batch: PositiveInt | None = None
    micro_tokens: PositiveInt | None = None
    """Most tokens of a micro-batch, padding counted where there is any; the effective batch stays."""
    batching: Literal["auto", "padded", "packed"] = "auto"
    """packed: rows one after the other without padding, each attending to itself alone. auto: packed on a GPU in half precision."""
    capture: Literal["auto", "always", "never"] = "auto"
    """Forward and backward as CUDA graphs. auto: wherever packed on a GPU."""
    fused_kernels: bool = False
    """Norms, rotary positions and gated MLPs by Liger's fused kernels (GPU only): fewer launches, other rounding."""
    optimizer: Literal["adamw", "adamw_8bit", "adamw_in_backward"] = "adamw"
    """adamw_8bit: moments in 8 bits by bitsandbytes, a quarter of their memory (a labelled variant; the embedding's stay in 32).
    adamw_in_backward: the numbers of adamw; each weight is updated as soon as its gradient is there, which is then freed: a gradient's
    memory less for one more backward pass. An effective batch must be one micro-batch.
    """
    eval_batch: PositiveInt = 16
    max_epochs: PositiveFloat = 3
    max_steps: PositiveInt | None = None
    weight_decay: float = 0.01
    max_grad_norm: PositiveFloat = 1.0
    early_stopping_patience: PositiveInt = 3
    eval_every: PositiveInt = 100
    checkpoint_every: PositiveInt = 500
    log_every: PositiveInt = 10
    search_seed: int = 42
    """Left out, it follows `seeds`: 42 where that is one of them, else the first."""
    deterministic: bool = True
    gradient_checkpointing: bool = False


class DriftSpec(Frozen):
    """How representational drift is probed (steps are optimizer steps)."""

    probe_examples: Annotated[int, Field(ge=10, le=750)] = 750
    every: PositiveInt = 100
    early_steps: Several[PositiveInt] = (1, 3, 10, 30)
    primary_pooling: Literal["last_prompt_token", "mean"] = "last_prompt_token"
    blocks: Annotated[int, Field(ge=2)] = 5
    internals: bool = False
    """Attention patterns (Jensen-Shannon) and MLP activations at the first and the scored probe."""
    batch_size: PositiveInt = 16


class OpenLoopSpec(Frozen):
    """Tails under Poisson arrivals: a real server (`vllm serve`) and vLLM's own bench client."""

    arms: Several[ArmName] = ("base", "merged", "adapters_2")
    request_rates: Several[PositiveFloat] = (4.0, 16.0)
    """Mean arrivals a second."""
    requests: PositiveInt = 500
    """Per rate; a p99 needs at least 299 for any upper bound."""
    prompt_length: PositiveInt = 256
    launches: PositiveInt = 3


class ServingSpec(Frozen):
    """The serving benchmark's grid. A cell is arm x batch size x prompt length x sampling."""

    task: TaskName = "sst2"
    two_adapters: tuple[TaskName, TaskName] = ("sst2", "squad_v2")
    arms: Several[ArmName] = ("base", "full", "merged", "lora_idle", "adapters_1", "adapters_2", "adapters_4", "switching")
    seed: int = 42
    """Whose runs are served. Left out, it follows `seeds`: 42 where that is one of them, else the first."""
    batch_sizes: Several[PositiveInt] = (1, 2, 4, 8, 16)
    prompt_lengths: Several[PositiveInt] = (128, 256, 512)
    output_tokens: PositiveInt = 128
    sampling: Several[Literal["greedy", "sampled"]] = ("greedy", "sampled")
    temperature: PositiveFloat = 0.8
    top_p: Share = 0.95
    prompts_per_cell: PositiveInt = 1000
    warmup_calls: PositiveInt = 100
    launches: PositiveInt = 10
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    enforce_eager: Literal["auto", "always", "never"] = "auto"
    """auto: eager on a CPU (see the serving docs), never eager on a GPU."""
    max_model_len: PositiveInt = 1024
    max_num_seqs: PositiveInt = 16
    max_cudagraph_capture_size: PositiveInt | None = 512
    """Tokens of the largest step that a GPU replays from a CUDA graph. 512 is vLLM's own figure from 256 sequences on; null leaves it to
    vLLM, which below that takes twice `max_num_seqs`: prefills that a server with default settings replays would run outside of graphs."""
    gpu_memory_utilization: Share = 0.95
    launch_timeout_s: PositiveInt = 1800
    merge_tolerance_fp32: PositiveFloat = 1e-4
    open_loop: OpenLoopSpec | None = None

    @property
    def all_arms(self) -> tuple[ArmName, ...]:
        """The arms of closed and open loop, each once."""
        return tuple(dict.fromkeys([*self.arms, *(self.open_loop.arms if self.open_loop else ())]))

    def served_tasks(self, tasks: Iterable[TaskName]) -> set[TaskName]:
        """Tasks whose adapters the arms need: the served one, the pair from two adapters on, all of `tasks` from three side by side on."""
        arms = [parse_arm(name) for name in self.all_arms]
        served = {self.task}
        if any(arm.adapters >= 2 for arm in arms):
            served |= set(self.two_adapters)
        return served | set(tasks) if any(arm.adapters > 2 and not arm.switches for arm in arms) else served


class AnalysisSpec(Frozen):
    """The registered plan: margins, metrics, families. Fixed before the runs."""

    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.05
    quality_retained: Share = 0.97
    drift_reduction: Share = 0.20
    overhead_limit: PositiveFloat = 0.30
    primary_metric: dict[TaskName, str] = {"mrpc": "accuracy", "sst2": "accuracy", "rte": "accuracy", "squad_v2": "f1"}
    reference_method: str = "full"
    candidate_method: str = "lora"
    overhead_arm: ArmName = "adapters_2"
    overhead_baseline_arm: ArmName = "merged"
    overhead_batch_sizes: Several[PositiveInt] = (2, 4, 8, 16)
    overhead_prompt_length: PositiveInt = 256
    min_launches: PositiveInt = 10
    bootstrap_draws: PositiveInt = 1000
    permutation_draws: PositiveInt = 10_000
    random_baseline_seeds: PositiveInt = 5
    saturated_drift: Share = 0.9


class Study(Frozen):
    """The `study:` half: everything that changes a number."""

    name: Annotated[str, Field(pattern=STUDY_NAME)]
    title: str = ""
    model: ModelSpec
    data: DataSpec = DataSpec()
    tasks: dict[TaskName, TaskSpec]
    methods: dict[str, MethodSpec]
    seeds: Several[int]
    training: TrainingSpec = Field(default=TrainingSpec(), validate_default=True)
    drift: DriftSpec = DriftSpec()
    serving: ServingSpec | None = Field(default=ServingSpec(), validate_default=True)
    analysis: AnalysisSpec = AnalysisSpec()

    def learning_rates(self, task: TaskName, method: str) -> tuple[float, ...]:
        """The grid of one arm on one task."""
        return self.tasks[task].learning_rates.get(method, self.methods[method].learning_rates)

    def batch_sizes(self, task: TaskName) -> tuple[int, ...]:
        """The batch sizes searched on one task, shared by all arms."""
        return self.tasks[task].batch_sizes or self.training.batch_sizes

    @field_validator("training", "serving")
    @classmethod
    def _following_seeds(cls, spec: TrainingSpec | ServingSpec | None, info: ValidationInfo) -> TrainingSpec | ServingSpec | None:
        """A seed that the file leaves out is one of `seeds`, which may have been edited."""
        name, seeds = "search_seed" if info.field_name == "training" else "seed", info.data.get("seeds")
        if spec is None or not seeds or name in spec.model_fields_set or getattr(spec, name) in seeds:
            return spec
        return spec.model_copy(update={name: seeds[0]})

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        problems = broken_rules(self, type(self).model_fields)
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Paths(Frozen):
    """Folders, relative to the working directory."""

    runs: str = "runs"
    data: str = "data"
    files: str | None = None
    """Official distribution files, for `data.source: files`."""


class Tracking(Frozen):
    """Weights & Biases, or Trackio. The local record is complete without either."""

    wandb: Literal["auto", "offline", "online", "off"] = "auto"
    """auto: online when logged in, else offline."""
    trackio: bool = False
    """Trackio (extra `trackio`) in place of W&B: a database on this machine, no account."""
    entity: str | None = None
    phase1_project: str = "NLP-Phase1-Training"
    phase2_project: str = "NLP-Phase2-Analysis"

    @field_validator("wandb", mode="before")
    @classmethod
    def _yaml_off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value


class RaySpec(Frozen):
    """A Ray cluster (extra `cluster`)."""

    address: str = "auto"
    """`host:port` of the head; auto: RAY_ADDRESS, or the cluster that this host is part of."""
    gpus_per_step: Annotated[float, Field(ge=0)] = 1
    """GPUs a step takes on a cluster that has any; a fraction lets several steps share one."""
    node_retries: Annotated[int, Field(ge=0)] = 3
    """How often a step is started anew because its machine was lost, beside `retries`."""


class SlurmSpec(Frozen):
    """A Slurm cluster (extra `slurm`). Each step is one job on one node."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time_min: PositiveInt = 1440
    """Time limit of a job in minutes."""
    gpus_per_step: Annotated[int, Field(ge=0)] = 1
    mem_gb: PositiveInt | None = None
    setup: tuple[str, ...] = ()
    """Shell lines before the step, e.g. `module load cuda`."""
    options: dict[str, str] = {}
    """Any further sbatch option by its long name, e.g. {constraint: h100}."""


class Execution(Frozen):
    """The `execution:` half: where and how, never what."""

    paths: Paths = Paths()
    executor: Literal["local", "ray", "slurm"] = "local"
    """local: this machine. ray, slurm: every step is a task or job of a cluster that shares the working folder."""
    ray: RaySpec = RaySpec()
    slurm: SlurmSpec = SlurmSpec()
    jobs: PositiveInt | None = None
    """Steps at once; None: as many as the CPU cores carry, on GPUs as many as fit into their memory."""
    threads: PositiveInt = 1
    device: Literal["auto", "cpu", "cuda"] = "auto"
    retries: NonNegativeInt = 1
    """Of one step, after a crash, an unexpected error or the time limit."""
    retry_budget: NonNegativeInt = 20
    """Of one run, all steps together."""
    step_timeout_s: PositiveInt | None = None
    placement: dict[str, dict[Kind, Annotated[Several[TaskName] | Literal["all"], or_a_list("all")]]] = {}
    """machine -> kind -> tasks. A kind that no machine names runs anywhere; data steps run wherever they are needed."""
    tracking: Tracking = Tracking()


class StudyFile(Frozen):
    """A whole study file."""

    study: Study
    execution: Execution = Execution()

    @model_validator(mode="after")
    def _placed(self) -> "StudyFile":
        problems = list(broken_placement(self.study.tasks, self.execution.placement))
        if problems:
            raise ValueError("\n".join(problems))
        return self
