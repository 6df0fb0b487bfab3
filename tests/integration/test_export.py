"""Exported folders in the hands of somebody who has no tunescope: loaded by plain transformers and PEFT in a process of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tunescope.cli import main
from tunescope.models.loading import load_model, load_tokenizer, resolve_model
from tunescope.models.lora_utils import load_finetuned, merge_adapter
from tunescope.study.schema import ModelSpec

from .conftest import Cli

pytestmark = pytest.mark.slow
SPROUT = resolve_model(ModelSpec(name="sprout-2m"))
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXT = "Review: a warm , funny and quietly moving film\nSentiment:"
PISSA = "{warmup_ratio: 0.1, learning_rates: [3e-3], adapter: {r: 4, lora_alpha: 8, options: {init_lora_weights: pissa}}}"
SETTINGS = (
    "serving=null", "execution.tracking.wandb=off", "execution.threads=1", "seeds=[42]", "tasks.sst2.max_steps=4", "training.max_steps=4",
    "training.eval_every=2", "training.checkpoint_every=2", "training.log_every=1", "drift.probe_examples=24", "drift.every=4",
    "drift.early_steps=[1]", "tasks.sst2.limits={train: 48, selection: 24, test: 24}", "methods.full.learning_rates=[1e-3]",
    "methods.lora.learning_rates=[3e-3]", f"methods.pissa={PISSA}",
)  # fmt: skip
LOADING = """
import json, sys
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

jobs, text, threads, out = json.loads(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(threads)
plain = lambda name: AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
found = {}
for name, (way, *where) in jobs.items():
    if way == "snippet":
        space = {}
        exec(where[0], space)
        model, tokenizer = space["model"], space["tokenizer"]
    else:
        tokenizer = AutoTokenizer.from_pretrained(where[0])
        if way == "auto-peft":
            model = AutoPeftModelForCausalLM.from_pretrained(where[0], dtype=torch.float32)
        elif way == "peft":
            model = PeftModel.from_pretrained(plain(where[1]), where[0])
        else:
            model = plain(where[0])
    ids = tokenizer(text, return_tensors="pt").input_ids
    assert model.config.use_cache and not model.training, name
    with torch.no_grad():
        found[f"{name}/ids"], found[f"{name}/logits"] = ids, model(input_ids=ids, use_cache=False).logits
assert not [m for m in sys.modules if m.split(".")[0] == "tunescope"]
save_file(found, out)
"""
SERVING = """
import json, os, sys
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

engines, text, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
how, found = SamplingParams(temperature=0.0, max_tokens=1, logprobs=20), {}
for model, adapters in engines.items():
    lora = {"enable_lora": True, "max_lora_rank": 8, "max_loras": len(adapters) + 1} if adapters else {}
    llm = LLM(model, dtype="float32", enforce_eager=True, max_model_len=64, kv_cache_memory_bytes=2**26, **lora)
    for number, folder in enumerate(adapters or [None], start=1):
        request = LoRARequest(folder, number, folder) if folder else None
        answer = llm.generate([text], how, use_tqdm=False, lora_request=request)[0]
        logprobs = {token: entry.logprob for token, entry in answer.outputs[0].logprobs[0].items()}
        found[folder or model] = {"ids": answer.prompt_token_ids, "logprobs": logprobs}
    del llm  # an engine takes the process's groups with it when it goes
assert not [m for m in sys.modules if m.split(".")[0] == "tunescope"]
with open(out, "w") as file:
    json.dump(found, file)
os._exit(0)  # tearing the engine down can hang
"""


def load_elsewhere(jobs: dict[str, tuple[str, ...]], folder: Path, cwd: Path) -> dict[str, torch.Tensor]:
    """Token ids and logits of each job, computed by a process that knows no tunescope and no network."""
    out = folder / "found.safetensors"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    arguments = [json.dumps(jobs), TEXT, str(torch.get_num_threads()), str(out)]
    done = subprocess.run([sys.executable, "-c", LOADING, *arguments], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out)


def own(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids(), use_cache=False).logits


def ids() -> torch.Tensor:
    return load_tokenizer(SPROUT)(TEXT, return_tensors="pt").input_ids


def same(found: dict[str, torch.Tensor], name: str, logits: torch.Tensor) -> None:
    assert torch.equal(found[f"{name}/ids"], ids()), name
    assert torch.equal(found[f"{name}/logits"], logits), name


def card(folder: Path) -> tuple[dict, str]:
    """Front matter and text of a model card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def snippet(folder: Path) -> str:
    return re.search(r"```python\n(.*?)```", card(folder)[1], re.DOTALL)[1]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Cli:
    """LoRA, PiSSA and full fine-tuning of the embedded model."""
    cli = Cli(tmp_path_factory.mktemp("trained"), Cli.settings(*SETTINGS))
    cli("run", "quickstart", "--only", "train/sst2/*/final/*", "--display", "plain", *cli.smallest)
    return cli


@pytest.fixture
def export(trained, monkeypatch, capsys):
    """The verb in this process, in the folder of the finished runs: exit code and stderr."""
    monkeypatch.chdir(trained.folder)

    def call(out: Path, *options: str, settings=trained.smallest) -> tuple[int, str]:
        code = main(["export", "quickstart", str(out), *options, *settings])
        return code, " ".join(capsys.readouterr().err.split())

    return call


def finals(cli: Cli, method: str) -> Path:
    return cli.folder / f"runs/quickstart/steps/train/sst2/{method}/final/seed-42"


def test_every_folder_loads_without_tunescope_and_computes_the_same(trained, export, tmp_path):
    out = tmp_path / "out"
    assert export(out, "--merged")[0] == 0
    names = ["sst2-full-seed-42", *(f"sst2-{m}-seed-42{suffix}" for m in ("lora", "pissa") for suffix in ("", "-merged"))]
    assert sorted(p.name for p in out.iterdir()) == sorted(["base", *names])
    assert {p.suffix for p in out.rglob("*") if p.is_file()} == {".json", ".safetensors", ".md"}
    jobs = {}
    for name in names:
        folder = str(out / name)
        ways = ("transformers",) if name.endswith(("merged", "full-seed-42")) else ("auto-peft", "peft", "transformers")
        jobs |= {f"{name} {way}": (way, folder, str(out / "base")) for way in ways}
    found = load_elsewhere(jobs, tmp_path, cwd=tmp_path)
    for job in jobs:
        name = job.split()[0]
        step = finals(trained, name.split("-")[1])
        if name.endswith("merged"):
            merged = merge_adapter(SPROUT, step / "adapter", tmp_path / "own-merge")
            same(found, job, own(load_model(merged, dtype=torch.float32, device="cpu")))
        else:
            same(found, job, own(load_finetuned(SPROUT, step, torch.float32, "cpu")))
    base = own(load_model(SPROUT, dtype=torch.float32, device="cpu"))
    assert not any(torch.equal(v, base) for k, v in found.items() if k.endswith("/logits"))


def test_plain_vllm_serves_every_folder(trained, export, has_vllm, tmp_path):
    if not has_vllm:
        pytest.skip("vLLM is not installed")
    assert export(tmp_path / "out", "--merged")[0] == 0
    adapters, engines = ["sst2-lora-seed-42", "sst2-pissa-seed-42"], ["sst2-lora-seed-42-merged", "sst2-full-seed-42"]
    arguments = [json.dumps({"base": adapters} | {name: [] for name in engines}), TEXT, str(tmp_path / "found.json")]
    done = subprocess.run([sys.executable, "-c", SERVING, *arguments], cwd=tmp_path / "out", capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == [*adapters, *engines]
    for name, said in found.items():
        wanted = own(load_finetuned(SPROUT, finals(trained, name.split("-")[1]), torch.float32, "cpu"))[0, -1].log_softmax(-1)
        assert said["ids"] == ids()[0].tolist()
        worst = max(abs(value - wanted[int(token)].item()) for token, value in said["logprobs"].items())
        effect = abs(wanted - own(load_model(SPROUT, dtype=torch.float32, device="cpu"))[0, -1].log_softmax(-1)).max().item()
        limit = 3e-2 if name.endswith("merged") else 2e-3  # merged weights are cast to bf16 once
        assert len(said["logprobs"]) >= 20 and worst < limit < effect / 10, (name, worst, effect)


def test_the_lines_of_each_card_work_where_the_export_was_moved(trained, export, tmp_path):
    assert export(tmp_path / "out")[0] == 0
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    folders = [p for p in moved.iterdir() if p.name != "base"]
    found = load_elsewhere({p.name: ("snippet", snippet(p)) for p in folders}, tmp_path, cwd=moved)
    for folder in folders:
        same(found, folder.name, own(load_finetuned(SPROUT, finals(trained, folder.name.split("-")[1]), torch.float32, "cpu")))


def test_a_card_says_what_the_run_recorded(trained, export, tmp_path):
    assert export(tmp_path / "out", "--merged")[0] == 0
    for method in ("full", "lora", "pissa"):
        step, folder = finals(trained, method), tmp_path / f"out/sst2-{method}-seed-42"
        result = json.loads((step / "result.json").read_text())
        keys, text = card(folder)
        assert keys["base_model"] == "sprout-2m" and keys["library_name"] == ("transformers" if method == "full" else "peft")
        assert "datasets" not in keys and "license" not in keys  # the sample is none of the hub's; the base's card has no such key
        scores = [m for m in result["metrics"] if m["split"] == "test"]
        rows = re.findall(r"\| (\w+) \| ([\d.]+) \| fraction \| (\d+) \| `(.+?)` \|", text)
        assert rows == [(m["name"], f"{m['value']:.4f}", str(m["n"]), f"train/sst2/{method}/final/seed-42") for m in scores]
        assert result["fingerprint"] in text and result["digest"] in text and "Sentiment:" in text
        weights = next(p for p in result["content"] if p.startswith(("adapter/", "model/")))
        assert result["content"][weights] in text
        assert str(trained.folder) not in text and str(tmp_path) not in text and "More Information Needed" not in text
    assert "rank 4" in text and "stored as an update of rank 8" in text and "--max-lora-rank 8" in text
    assert "**not on this merged model**" in card(tmp_path / "out/sst2-lora-seed-42-merged")[1]


def test_what_cannot_be_exported_rightly_is_refused_before_anything_is_written(trained, export, tmp_path):
    out = tmp_path / "out"
    lora = ("--only", "train/sst2/lora/final/*")
    code, err = export(out, *lora, settings=[*trained.smallest, *Cli.settings("methods.lora.adapter.r=4")])
    assert code == 3 and "stale" in err and "8 → 4" in err
    weights = finals(trained, "lora") / "adapter/adapter_model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        code, err = export(out, *lora)
    finally:
        weights.write_bytes(whole)
    assert code == 3 and "SHA-256 differs" in err and not out.exists()
    assert export(out, *lora)[0] == 0
    code, err = export(out)
    assert code == 3 and "sst2-lora-seed-42 exists" in err and not (out / "sst2-full-seed-42").exists()
    assert export(out, "--only", "train/sst2/pissa/final/*")[0] == 0  # the base that is there is that of these adapters too
    shutil.rmtree(out / "sst2-lora-seed-42")
    (out / "base/config.json").write_text("{}")
    code, err = export(out, *lora)
    assert code == 3 and "is not the base model" in err


def test_an_adapter_of_a_hub_model_names_its_id_and_commit(tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    snapshot = hub / "models--owner--tiny/snapshots" / COMMIT
    shutil.copytree(SPROUT, snapshot)
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text(COMMIT)
    monkeypatch.setenv("HF_HUB_CACHE", str(hub))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cli = Cli(tmp_path, Cli.settings(*SETTINGS, "model.name=owner/tiny"))
    lora = ("--only", "train/sst2/lora/final/*")
    cli("run", "quickstart", *lora, "--display", "plain", *cli.smallest)
    cli("export", "quickstart", "out", *lora, *cli.smallest)
    out = tmp_path / "out"
    assert [p.name for p in out.iterdir()] == ["sst2-lora-seed-42"]
    config = json.loads((out / "sst2-lora-seed-42/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("owner/tiny", COMMIT)
    keys, text = card(out / "sst2-lora-seed-42")
    assert (keys["base_model"], keys["license"]) == ("owner/tiny", "apache-2.0")
    assert f"vllm serve owner/tiny --revision {COMMIT}" in text
    moved = out.rename(tmp_path / "moved")
    jobs = {"auto": ("auto-peft", str(moved / "sst2-lora-seed-42")), "card": ("snippet", snippet(moved / "sst2-lora-seed-42"))}
    found = load_elsewhere(jobs, tmp_path, cwd=moved)
    logits = own(load_finetuned(SPROUT, finals(cli, "lora"), torch.float32, "cpu"))
    for name in jobs:
        same(found, name, logits)


def test_a_base_in_a_local_folder_goes_with_its_adapters(tmp_path, capsys, monkeypatch):
    model = tmp_path / "private place" / "my-model"
    shutil.copytree(SPROUT, model)
    (model / "pytorch_model.bin").write_bytes(b"never read")
    cli = Cli(tmp_path, Cli.settings(*SETTINGS, f"model.name={model}"))
    lora = ("--only", "train/sst2/lora/final/*")
    cli("run", "quickstart", *lora, "--display", "plain", *cli.smallest)
    cli("export", "quickstart", "out", *lora, *cli.smallest)
    out = tmp_path / "out"
    keys, text = card(out / "sst2-lora-seed-42")
    assert keys["base_model"] == "my-model" and "private place" not in text and not list(out.rglob("*.bin"))
    found = load_elsewhere({"auto": ("auto-peft", str(out / "sst2-lora-seed-42"))}, tmp_path, cwd=tmp_path)
    same(found, "auto", own(load_finetuned(SPROUT, finals(cli, "lora"), torch.float32, "cpu")))
    (model / "config.json").write_text((model / "config.json").read_text().replace("1e-05", "1e-06"))
    monkeypatch.chdir(tmp_path)
    assert main(["export", "quickstart", "again", *lora, *cli.smallest]) == 3
    assert "config.json of base model" in " ".join(capsys.readouterr().err.split())
