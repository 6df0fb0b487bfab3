"""The README.md of an exported model: what it is, how to load it, what made it, and its figures as the run's result holds them."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from tunescope.records import FinishedStep

Form = Literal["adapter", "model", "merged"]
NOT_RECORDED = "not recorded"
_TITLES = {"mrpc": "MRPC", "sst2": "SST-2", "rte": "RTE", "squad_v2": "SQuAD v2"}
_PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Base:
    """The base model, as somebody else finds it."""

    name: str
    """A hub id, or a name without a path: no card tells of this machine's folders."""
    load: str
    """What `from_pretrained` takes in the folder that holds the exported ones: a hub id or `./base`."""
    revision: str | None = None
    on_hub: bool = False
    licence_keys: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""


@dataclass(frozen=True)
class Subject:
    """Everything a card tells."""

    name: str
    """The exported folder's."""
    form: Form
    study: str
    step: FinishedStep
    base: Base
    weights: Mapping[str, str]
    """Weight file -> SHA-256."""
    adapter: Mapping[str, Any] = field(default_factory=dict)
    """The adapter's config; empty for full fine-tuning."""
    lora_rank: int | None = None
    """`--max-lora-rank` of vLLM; None for what it serves only merged."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """What the data step recorded; empty when this store lacks that very step."""
    dataset: str | None = None
    """Hub id of the data set; None for data that were made for tunescope."""
    template: Mapping[str, Any] | None = None
    """The task's prompt and completions; None when they are no longer those of the run."""
    provenance: Mapping[str, Any] = field(default_factory=dict)


def model_card(subject: Subject) -> str:
    """A card as Markdown with the hub's front matter. What the run did not record is left out or said to be; nothing is computed here."""
    sections = [
        _front_matter(subject),
        f"# {subject.name}\n\n{_summary(subject)}",
        f"## Load\n\n{_loading(subject)}",
        *([f"## Prompt\n\n{_prompt(subject.template)}"] if subject.template else []),
        f"## Test figures\n\n{_figures(subject)}",
        f"## What made it\n\n{_table(_facts(subject))}",
        f"## Licence\n\n{_licence(subject)}",
        f"## Files\n\n{_table([(name, f'SHA-256 `{digest}`') for name, digest in subject.weights.items()])}",
    ]
    return "\n\n".join(sections) + "\n"


def short_name(name: str) -> str:
    """A model's name without the folders it lies in on this machine."""
    return PurePath(name).name or name


def _front_matter(subject: Subject) -> str:
    import yaml

    kind = subject.adapter.get("peft_type")
    keys = {
        "base_model": subject.base.name,
        "base_model_relation": "adapter" if subject.form == "adapter" else "finetune",
        "library_name": "peft" if subject.form == "adapter" else "transformers",
        "pipeline_tag": "text-generation",
        **subject.base.licence_keys,
        **({"datasets": [subject.dataset]} if subject.dataset else {}),
        "tags": ["tunescope", *([str(kind).lower()] if kind else [])],
    }
    first, rest = yaml.safe_dump(keys, sort_keys=False, allow_unicode=True, width=1000).strip().split("\n", 1)
    remark = "" if subject.base.on_hub else "  # no hub id: see below"
    return f"---\n{first}{remark}\n{rest}\n---"


def _summary(subject: Subject) -> str:
    task = _TITLES.get(subject.step.inputs["task"], subject.step.inputs["task"])
    what = {
        "adapter": f"A {_kind(subject)} adapter of {_base(subject.base)}",
        "merged": f"A {_kind(subject)} adapter of {_base(subject.base)}, merged into it in fp32 and cast once",
        "model": f"{_base(subject.base)}, all weights fine-tuned",
    }[subject.form]
    return f"{what}, for the task {task}. Trained by tunescope, which compares LoRA with full fine-tuning."


def _kind(subject: Subject) -> str:
    kind = "DoRA" if subject.adapter.get("use_dora") else str(subject.adapter.get("peft_type"))
    return "LoRA" if kind == "LORA" else kind


def _base(base: Base) -> str:
    if base.on_hub:
        return f"[{base.name}](https://huggingface.co/{base.name})" + (f" at commit `{base.revision}`" if base.revision else "")
    return f"`{base.name}` (not on the hub)"


def _loading(subject: Subject) -> str:
    parts = [f"In the folder that holds this one:\n\n{_code('python', _python(subject))}", *_remarks(subject), *_vllm(subject)]
    return "\n\n".join(parts)


def _python(subject: Subject) -> Iterator[str]:
    here, base = f"./{subject.name}", subject.base
    revision = f', revision="{base.revision}"' if base.revision else ""
    yield "import torch"
    if subject.form == "adapter":
        yield "from peft import PeftModel"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    if subject.form == "adapter":
        yield f'base = AutoModelForCausalLM.from_pretrained("{base.load}"{revision}, dtype=torch.float32)'
        yield f'model = PeftModel.from_pretrained(base, "{here}")'
    else:
        yield f'model = AutoModelForCausalLM.from_pretrained("{here}", dtype=torch.float32)'
    yield f'tokenizer = AutoTokenizer.from_pretrained("{here}")'
    if subject.template:
        yield ""
        yield f"prompt = {subject.template['prompt']!r}"
        yield 'ids = tokenizer(prompt, return_tensors="pt").input_ids'
        yield "print(tokenizer.decode(model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]))"


def _remarks(subject: Subject) -> Iterator[str]:
    if subject.form == "merged":
        yield 'The weights were cast once, to the dtype they are stored in. `dtype="auto"` and vLLM also compute in it: more rounding.'
    if subject.form != "adapter":
        return
    yield 'The figures below were measured with the base in fp32; `dtype="auto"` loads it as it is stored, with other rounding.'
    auto = f'`AutoPeftModelForCausalLM.from_pretrained("./{subject.name}")`'
    if subject.base.on_hub:
        yield f"{auto} finds the base, and its commit, by itself."
    else:
        yield (
            f"{auto} finds the base by itself where it was exported: `base_model_name_or_path` in `adapter_config.json` is "
            "the full path of `base` at that time. After a move use the lines above, which do not read it, or write the new path there."
        )


def _vllm(subject: Subject) -> Iterator[str]:
    if subject.form != "adapter":
        yield "With vLLM:\n\n" + _code("bash", [f"vllm serve ./{subject.name}"])
    elif subject.lora_rank is None:
        yield "vLLM serves plain LoRA only: export with `--merged` and serve the merged model."
    else:
        revision = f" --revision {subject.base.revision}" if subject.base.revision else ""
        options = f"--enable-lora --max-lora-rank {subject.lora_rank} --lora-modules {subject.name}=./{subject.name}"
        command = f"vllm serve {subject.base.load}{revision} {options}"
        yield f"With vLLM, where requests name the model `{subject.name}`:\n\n" + _code("bash", [command])


def _prompt(template: Mapping[str, Any]) -> str:
    completions = ", ".join(f"`{c!r}`" for c in template["completions"])
    return (
        f"{_code('text', [template['prompt']])}\n\nFollowed by one of {completions}, with its leading space"
        + (", or by the answer" if len(template["completions"]) == 1 else "")
        + ". Scoring added the tokenizer's start token and nothing else; there is no chat template."
    )


def _figures(subject: Subject) -> str:
    rows = [m for m in subject.step.result["metrics"] if m["split"] == "test"]
    if not rows:
        return f"None: step `{subject.step.id}` recorded no test figures."
    lines = ["| metric | value | unit | examples | from step |", "|---|---|---|---|---|"]
    lines += [f"| {m['name']} | {_value(m['value'])} | {m['unit']} | {m['n'] or ''} | `{subject.step.id}` |" for m in rows]
    return "\n".join(lines) + "".join(f"\n\n{line}" for line in _caveats(subject))


def _value(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def _caveats(subject: Subject) -> Iterator[str]:
    if subject.form == "merged":
        yield "Measured on the adapter beside its base, **not on this merged model**. " + _merge_proofs(subject.step)
    if subject.data.get("made_here"):
        yield "The data were made for tunescope by rules or templates; they are not the published data set."
    if subject.data.get("comparable") is False:
        yield "These scores are **not comparable** with published ones."
    if notes := subject.step.result["notes"]:
        yield "The run's own remarks:\n\n" + "\n".join(f"- {note}" for note in notes)


def _merge_proofs(step: FinishedStep) -> str:
    names = ("merge_max_abs_logit_difference", "merge_bf16_label_agreement", "merge_bf16_score_gap")
    found = [f"{name} {value:.3g}" for name in names if (value := step.metric(name)) is not None]
    if not found:
        return "The run measured nothing of merging."
    computed = step.outputs.get("merge_bf16_computed_in", f"a precision that was {NOT_RECORDED}")
    how = f"bf16: the weights cast once, computed in {computed}; where it serves in another precision single predictions can differ"
    return f"What the run measured of merging: {', '.join(found)} ({how})."


def _facts(subject: Subject) -> Iterator[tuple[str, str]]:
    inputs, outputs, step = subject.step.inputs, subject.step.outputs, subject.step
    yield "study, step", f"{subject.study}, `{step.id}`"
    yield "method", f"{inputs['method']}: {_method(subject)}"
    yield "task, seed", f"{inputs['task']}, {inputs['seed']}"
    yield "base model", _base(subject.base)
    yield "learning rate, batch", f"{outputs.get('learning_rate', NOT_RECORDED)}, {outputs.get('batch_size', NOT_RECORDED)}"
    yield "weights of", f"optimizer step {_count(step, 'best_step')} of {_count(step, 'steps_run')} run, the lowest selection loss"
    yield "precision", f"trained in {outputs.get('precision', NOT_RECORDED)}, scored in {outputs.get('scoring_precision', NOT_RECORDED)}"
    yield "data", _data(subject)
    yield "made with", _made_with(subject.provenance)
    yield "fingerprint of the step", f"`{step.result['fingerprint']}`"
    yield "digest of its result", f"`{step.result['digest']}`"


def _method(subject: Subject) -> str:
    spec = (subject.step.inputs.get("method_spec") or {}).get("adapter")
    if not spec:
        return "full fine-tuning"
    parts = [str(spec["peft_type"]), *(f"{name} {spec[key]}" for name, key in (("rank", "r"), ("alpha", "lora_alpha")) if spec.get(key))]
    targets = spec.get("target_modules")
    parts += [f"on {targets if isinstance(targets, str) else ', '.join(targets)}"] if targets else []
    parts += [f"{key} {value}" for key, value in (spec.get("options") or {}).items()]
    stored = subject.adapter.get("r")
    parts += [f"stored as an update of rank {stored} on the untouched base"] if stored and spec.get("r") and stored != spec["r"] else []
    return ", ".join(parts)


def _count(step: FinishedStep, name: str) -> str:
    value = step.metric(name)
    return NOT_RECORDED if value is None else f"{value:.0f}"


def _data(subject: Subject) -> str:
    data = subject.data or subject.provenance.get("data") or {}
    if not data:
        return NOT_RECORDED
    parts = [f"source {data.get('source')}" + (f", revision `{data['revision']}`" if data.get("revision") else "")]
    parts += [f"{name} {n}" for name, n in (data.get("parts") or {}).items()]
    parts += [f"SHA-256 `{data['data_sha256']}`"] if data.get("data_sha256") else []
    return ", ".join(parts)


def _made_with(provenance: Mapping[str, Any]) -> str:
    if not provenance.get("version"):
        return NOT_RECORDED
    changed = " with uncommitted changes" if provenance.get("diff_sha256") else ""
    commit = f" (commit {str(provenance['commit'])[:12]}{changed})" if provenance.get("commit") else ""
    packages = provenance.get("packages") or {}
    return ", ".join([f"tunescope {provenance['version']}{commit}", *(f"{p} {packages[p]}" for p in _PACKAGES if packages.get(p))])


def _licence(subject: Subject) -> str:
    keys, text = subject.base.licence_keys, subject.base.licence
    stated = ", ".join(keys.values())
    base = f"its card says {stated}." if stated else f"its card says: {text}" if text else "not known here."
    data = subject.data.get("licence") or NOT_RECORDED
    return f"Base model `{subject.base.name}`: {base}\n\nData: {data}.\n\nWhat was trained here is derived from both."


def _table(rows: Any) -> str:
    lines = [f"| {name} | {str(text).replace('|', chr(92) + '|')} |" for name, text in rows]
    return "\n".join(["| | |", "|---|---|", *lines])


def _code(language: str, lines: Any) -> str:
    return f"```{language}\n" + "\n".join(lines) + "\n```"
