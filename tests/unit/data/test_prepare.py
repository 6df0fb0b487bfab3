"""Preparing the embedded sample end to end: bytes, idempotence, reading back, the step, and the hub's logic without a hub."""

import json
import shutil

import pytest

from tunescope.data import load_examples, manifest, sources
from tunescope.data.prepare import prepare, run_data
from tunescope.errors import PrerequisiteError, StudyError
from tunescope.records import StepContext
from tunescope.run.sealing import sealed
from tunescope.study.inputs import DataInputs
from tunescope.study.schema import TASKS, DataSpec, Limits

SAMPLE = DataSpec(source="sample")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sample")
    for task in TASKS:
        prepare(task, SAMPLE, Limits(), 100, folder)
    return folder


@pytest.fixture
def copy(sample, tmp_path):
    shutil.copytree(sample, tmp_path / "data")
    return tmp_path / "data"


def test_sizes_and_labels_of_the_sample(sample):
    tasks = manifest.read(sample)["tasks"]
    assert {t: e["rows"] for t, e in tasks.items()} == {
        "mrpc": {"train": 512, "validation": 128, "test": 160},
        "sst2": {"train": 512, "validation": 160, "test": 160},
        "rte": {"train": 512, "validation": 128, "test": 160},
        "squad_v2": {"train": 416, "validation": 160},
    }
    assert {t: e["made_here"] for t, e in tasks.items()} == {"mrpc": True, "sst2": True, "rte": True, "squad_v2": False}
    assert not any(e["comparable"] for e in tasks.values())
    assert all(e["parts"]["probe"] == 100 for e in tasks.values())
    balance = {t: round(tasks[t]["label_balance"]["test"][name], 2) for t, name in FIRST_LABEL.items()}
    assert balance == {"mrpc": 0.63, "sst2": 0.51, "rte": 0.49, "squad_v2": 0.55}


FIRST_LABEL = {"mrpc": "equivalent", "sst2": "positive", "rte": "entailment", "squad_v2": "answerable"}


def test_sample_has_no_leakage(sample):
    for task, entry in manifest.read(sample)["tasks"].items():
        for pair, counts in entry["leakage"].items():
            assert not counts["normalised"] and not counts["exact"], (task, pair, counts)


def test_sample_is_small():
    from importlib import resources

    folder = resources.files("tunescope.data") / "sample"
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file() and "__pycache__" not in str(p)) < 1_000_000


@pytest.mark.parametrize("task", TASKS)
def test_two_folders_get_the_same_bytes(task, sample, tmp_path):
    entry = prepare(task, SAMPLE, Limits(), 100, tmp_path)
    assert entry == manifest.read_entry(sample, task)
    assert manifest.verify(tmp_path, task) == manifest.verify(sample, task)


def test_a_second_prepare_writes_nothing(copy):
    before = {p: p.stat().st_mtime_ns for p in copy.rglob("*") if p.is_file() and not p.name.endswith(".lock")}
    entry = prepare("sst2", SAMPLE, Limits(), 100, copy)
    assert entry == manifest.read_entry(copy, "sst2")
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_another_request_replaces_the_data_and_keeps_other_tasks(copy):
    old = manifest.verify(copy, "sst2")
    entry = prepare("sst2", SAMPLE, Limits(train=64), 100, copy)
    assert entry["parts"]["train"] == 64 and manifest.verify(copy, "sst2") != old
    assert set(manifest.read(copy)["tasks"]) == set(TASKS)
    assert not [p for p in copy.iterdir() if p.suffix in (".partial", ".old")]


def test_changed_bytes_are_an_error_and_a_deleted_folder_is_made_again(copy):
    digest = manifest.verify(copy, "rte")
    arrow = copy / "rte" / "train" / "data-00000-of-00001.arrow"
    content = bytearray(arrow.read_bytes())
    content[len(content) // 2] ^= 1
    arrow.write_bytes(content)
    for attempt in (lambda: prepare("rte", SAMPLE, Limits(), 100, copy), lambda: load_examples(copy, "rte", "train")):
        with pytest.raises(PrerequisiteError, match="changed, expected sha256"):
            attempt()
    shutil.rmtree(copy / "rte")
    prepare("rte", SAMPLE, Limits(), 100, copy)
    assert manifest.verify(copy, "rte") == digest


def test_load_from_disk_gives_the_publishers_rows(sample):
    datasets = pytest.importorskip("datasets")
    mrpc = datasets.load_from_disk(str(sample / "mrpc"))
    assert set(mrpc) == {"train", "validation", "test"}
    assert set(mrpc["train"][0]) == {"sentence1", "sentence2", "label", "idx"}
    assert mrpc["train"].features["label"].names == ["not_equivalent", "equivalent"]
    squad = datasets.load_from_disk(str(sample / "squad_v2"))
    row = squad["validation"][0]
    assert set(row) == {"id", "title", "context", "question", "answers"} and set(row["answers"]) == {"text", "answer_start"}
    sst2 = datasets.load_from_disk(str(sample / "sst2"))
    assert set(sst2["test"]["label"]) == {-1}


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_the_rows_of_their_ids(task, sample):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_from_disk(str(sample / task))
    parts = json.loads((sample / task / "parts.json").read_text())
    column = {"mrpc": "sentence2", "sst2": "sentence", "rte": "sentence1", "squad_v2": "context"}[task]
    for part in ("train", "selection", "test", "probe"):
        examples = load_examples(sample, task, part)
        assert [e.id for e in examples] == parts[part]
        for example in examples[:5] + examples[-5:]:
            split, row = example.id.split("/")
            assert example.passage == loaded[split][int(row)][column].strip()
    assert all(e.completion for part in ("train", "selection", "test") for e in load_examples(sample, task, part))


def test_squad_offsets_point_at_the_answers(sample):
    datasets = pytest.importorskip("datasets")
    for split in datasets.load_from_disk(str(sample / "squad_v2")).values():
        for row in split:
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
                assert row["context"][start : start + len(text)] == text


def test_unknown_names(sample):
    with pytest.raises(StudyError, match="no task named 'cola'"):
        prepare("cola", SAMPLE, Limits(), 10, sample)
    with pytest.raises(StudyError, match="no part named 'dev'"):
        load_examples(sample, "rte", "dev")


def test_files_without_a_folder(tmp_path):
    with pytest.raises(PrerequisiteError, match=r"set execution\.paths\.files"):
        prepare("rte", DataSpec(source="files"), Limits(), 10, tmp_path)


class Silent:
    def log(self, values, step): ...
    def histogram(self, name, values, step): ...

    def rewind(self, step): ...
    def summary(self, values): ...


def test_the_data_step(sample, copy, tmp_path):
    inputs = DataInputs(task="mrpc", data=SAMPLE, limits=Limits(), probe_examples=100)
    step = tmp_path / "step"
    step.mkdir()
    result = run_data(inputs, StepContext(folder=step, data_dir=copy, upstream={}, device="cpu", tracker=Silent()))
    assert result.outputs["data_sha256"] == manifest.verify(sample, "mrpc")
    assert result.outputs["made_here"] is True and result.outputs["parts"]["test"] == 160
    assert result.content == ["manifest_entry.json"]
    assert json.loads((step / "manifest_entry.json").read_text()) == manifest.read_entry(copy, "mrpc")
    assert str(copy) not in (step / "manifest_entry.json").read_text()


@pytest.mark.parametrize("task", TASKS)
def test_the_data_step_has_one_digest_whether_it_prepares_or_finds_the_data(task, tmp_path):
    """Hosts that prepared and hosts that were given the folder are merged, and all that follows rests on this digest."""
    inputs = DataInputs(task=task, data=SAMPLE, limits=Limits(), probe_examples=100)
    digests = []
    for folder in (tmp_path / "prepares", tmp_path / "finds"):
        folder.mkdir()
        (folder / "step.json").write_text("{}")
        result = run_data(inputs, StepContext(folder=folder, data_dir=tmp_path / "data", upstream={}, device="cpu", tracker=Silent()))
        digests.append(sealed(folder, f"data/{task}", "f" * 64, result, started=0.0, wall_s=0.0)["digest"])
        assert [m.split for m in result.metrics] == ["train", "selection", "test", "probe"]
    assert digests[0] == digests[1]


# The hub, without a hub


def test_the_first_commit_found_is_locked_and_enforced(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "newest_revision", lambda repository: asked.append(repository) or "c" * 40)
    assert sources.locked_revision("nyu-mll/glue", {}, tmp_path) == "c" * 40
    monkeypatch.setattr(sources, "newest_revision", lambda repository: "d" * 40)
    assert sources.locked_revision("nyu-mll/glue", {}, tmp_path) == "c" * 40
    assert sources.locked_revision("rajpurkar/squad_v2", {"rajpurkar/squad_v2": "e" * 40}, tmp_path) == "e" * 40
    assert asked == ["nyu-mll/glue"]
    assert json.loads((tmp_path / "revisions.lock.json").read_text()) == {"nyu-mll/glue": "c" * 40, "rajpurkar/squad_v2": "e" * 40}
    with pytest.raises(StudyError, match=r"pins nyu-mll/glue to f+, but .*revisions\.lock\.json holds c+"):
        sources.locked_revision("nyu-mll/glue", {"nyu-mll/glue": "f" * 40}, tmp_path)


def test_offline_says_what_to_do(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def refuse(*_args, **_kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(hub.HfApi, "dataset_info", refuse)
    with pytest.raises(PrerequisiteError, match=r"ConnectionError: no network.*'files'.*'sample'") as error:
        prepare("rte", DataSpec(source="hub"), Limits(), 10, tmp_path)
    assert error.value.exit_code == 3


@pytest.fixture
def local_hub(sample, tmp_path, monkeypatch):
    """A local data set repository with the sample's rows under the hub's configuration names."""
    datasets = pytest.importorskip("datasets")
    repository = tmp_path / "repository"
    blocks = []
    for task in ("rte", "squad_v2"):
        names = []
        for split, rows in datasets.load_from_disk(str(sample / task)).items():
            path = repository / task / f"{split}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(str(path))
            names.append(f"  - split: {split}\n    path: {task}/{split}.parquet")
        blocks.append(f"- config_name: {task}\n  data_files:\n" + "\n".join(names))
    (repository / "README.md").write_text("---\nconfigs:\n" + "\n".join(blocks) + "\n---\n")
    monkeypatch.setattr(sources, "REPOSITORIES", {t: (str(repository), t) for t in ("rte", "squad_v2")})
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return repository


@pytest.mark.slow
@pytest.mark.parametrize("task", ["rte", "squad_v2"])
def test_hub_rows_give_the_bytes_that_files_give(task, sample, local_hub, tmp_path):
    """The publisher's rows decide the data, not the way they came."""
    spec = DataSpec(source="hub", revisions={str(local_hub): "a" * 40})
    entry = prepare(task, spec, Limits(), 100, tmp_path / "out")
    arrow = {n: s for n, s in entry["files"].items() if n.endswith(".arrow")}
    assert arrow == {n: s for n, s in manifest.read_entry(sample, task)["files"].items() if n.endswith(".arrow")}
    assert (entry["revision"], entry["comparable"], entry["made_here"]) == ("a" * 40, True, False)
    shutil.rmtree(local_hub)
    assert prepare(task, spec, Limits(), 100, tmp_path / "out") == entry  # verified from disk, no download
