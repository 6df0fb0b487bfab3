"""The `files` source on the real distribution files, in TUNESCOPE_REAL_DATA or in ../shared/data beside the repository."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tunescope.data import load_examples, manifest
from tunescope.data.prepare import prepare
from tunescope.data.splits import LINK_TOKENS, normalised
from tunescope.data.tasks import ScoredRow, get_task
from tunescope.study.schema import TASKS, DataSpec, Limits

FOLDER = Path(os.environ.get("TUNESCOPE_REAL_DATA") or Path(__file__).parents[3].parent / "shared" / "data")
FILES = DataSpec(source="files")
pytestmark = [
    pytest.mark.skipif(not (FOLDER / "sst2").is_dir(), reason=f"no official files in {FOLDER}; set TUNESCOPE_REAL_DATA"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    for task in TASKS:
        prepare(task, FILES, Limits(), 750, folder, FOLDER)
    return folder


@pytest.fixture(scope="module")
def entries(real):
    return manifest.read(real)["tasks"]


def counts(folder, task, part):
    return Counter(e.label for e in load_examples(folder, task, part))


def test_row_counts(entries):
    assert {t: e["rows"] for t, e in entries.items()} == {
        "mrpc": {"train": 3668, "validation": 408, "test": 1725},
        "sst2": {"train": 67349, "validation": 872, "test": 1821},
        "rte": {"train": 2490, "validation": 277, "test": 3000},
        "squad_v2": {"validation": 11873},
    }
    assert {t: e["parts"] for t, e in entries.items() if t != "squad_v2"} == {
        "mrpc": {"train": 3668, "selection": 408, "test": 1725, "probe": 750},
        "sst2": {"train": 66349, "selection": 1000, "test": 872, "probe": 750},
        "rte": {"train": 2241, "selection": 249, "test": 277, "probe": 750},
    }


def test_files_are_the_published_ones(entries):
    assert all(sums["published"] for e in entries.values() for sums in e["request"]["origin"].values())
    assert {t: e["comparable"] for t, e in entries.items()} == {"mrpc": True, "sst2": True, "rte": True, "squad_v2": False}
    assert "not comparable" in entries["squad_v2"]["notes"][0]


@pytest.mark.parametrize(
    ("task", "part", "expected"),
    [
        ("mrpc", "train", {"equivalent": 2474, "not_equivalent": 1194}),
        ("mrpc", "selection", {"equivalent": 279, "not_equivalent": 129}),
        ("mrpc", "test", {"equivalent": 1147, "not_equivalent": 578}),
        ("sst2", "test", {"positive": 444, "negative": 428}),
        ("rte", "test", {"entailment": 146, "not_entailment": 131}),
    ],
)
def test_label_counts(real, task, part, expected):
    assert counts(real, task, part) == expected


def test_labels_of_train_before_the_carve(real):
    assert counts(real, "sst2", "train") + counts(real, "sst2", "selection") == {"positive": 37569, "negative": 29780}
    assert counts(real, "rte", "train") + counts(real, "rte", "selection") == {"entailment": 1249, "not_entailment": 1241}


@pytest.mark.parametrize(
    ("task", "part", "label", "percent"),
    [
        ("mrpc", "test", "equivalent", 66.5),
        ("mrpc", "selection", "equivalent", 68.4),
        ("sst2", "test", "positive", 50.9),
        ("rte", "test", "entailment", 52.7),
    ],
)
def test_majority_accuracy(real, task, part, label, percent):
    rows = [ScoredRow(e.id, e.label, (), label) for e in load_examples(real, task, part)]
    assert round(100 * get_task(task).score(rows)[0].value, 1) == percent


def test_squad_abstaining_scores_50_07(real):
    examples = [e for part in ("train", "selection", "test") for e in load_examples(real, "squad_v2", part)]
    kept = {e.id for e in examples}
    # the selection part is limited to 1,000 questions, so a few of dev are in no part
    datasets = pytest.importorskip("datasets")
    dev = datasets.load_from_disk(str(real / "squad_v2"))["validation"]
    rows = [ScoredRow(str(n), None, tuple(a["text"]), "") for n, a in enumerate(dev["answers"])]
    found = {m.name: (m.value, m.n) for m in get_task("squad_v2").score(rows)}
    assert (round(100 * found["exact_match"][0], 2), round(100 * found["f1"][0], 2)) == (50.07, 50.07)
    assert found["no_ans_accuracy"] == (1.0, 5945) and found["has_ans_f1"] == (0.0, 5928)
    assert len(kept) == len(examples) == sum(manifest.read_entry(real, "squad_v2")["parts"][p] for p in ("train", "selection", "test"))


def test_squad_articles_and_paragraphs_stay_whole(real):
    parts = {p: load_examples(real, "squad_v2", p) for p in ("train", "selection", "test", "probe")}
    articles = {p: {e.article for e in examples} for p, examples in parts.items()}
    assert [len(articles[p]) for p in ("train", "selection", "test")] == [23, 4, 8]
    assert not articles["train"] & (articles["selection"] | articles["test"] | articles["probe"])
    assert not articles["selection"] & articles["test"]
    assert len({e.group for p in ("train", "test") for e in parts[p]}) > 800


def test_a_gold_answer_scores_full_marks_on_real_text(real):
    rows = [ScoredRow(e.id, None, e.golds, e.golds[0] if e.golds else "") for e in load_examples(real, "squad_v2", "test")]
    assert {m.name: m.value for m in get_task("squad_v2").score(rows)}["f1"] == 1.0


def test_leakage_of_the_real_files(entries):
    clean = [(t, pair) for t, e in entries.items() for pair, found in e["leakage"].items() if found["exact"]]
    assert clean == []
    normal = {t: {pair: found["normalised"] for pair, found in e["leakage"].items()} for t, e in entries.items()}
    assert normal["mrpc"] == {"train-selection": 1, "train-test": 10, "selection-test": 1}
    assert normal["sst2"]["train-selection"] == 0 and normal["sst2"]["train-test"] == 2
    assert set(normal["rte"].values()) == {0} and entries["rte"]["leakage"]["train-selection"]["shared_sentence1"] == 0
    assert set(normal["squad_v2"].values()) == {0} and entries["squad_v2"]["leakage"]["train-test"]["shared_context"] == 0


def test_no_fragment_of_a_selection_sentence_is_trained_on(real):
    """Spans of selection rows, link length or longer, looked up among training rows, and the reverse."""
    train = {normalised(e.passage) for e in load_examples(real, "sst2", "train")}
    selection = {normalised(e.passage) for e in load_examples(real, "sst2", "selection")}
    assert not {s for text in selection for s in spans(text)} & train
    assert not {s for text in train for s in spans(text) if s in selection}


def spans(text):
    words = text.split()
    return {" ".join(words[i:j]) for i in range(len(words)) for j in range(i + LINK_TOKENS, len(words) + 1)}


def test_probes_hold_no_training_input(real):
    for task in TASKS:
        train = {normalised(e.prompt) for e in load_examples(real, task, "train")}
        probe = [normalised(e.prompt) for e in load_examples(real, task, "probe")]
        assert not set(probe) & train and len(set(probe)) == len(probe) == 750


def test_mrpc_from_glue_tables_has_the_same_rows(tmp_path):
    glue = tmp_path / "glue_data" / "MRPC"
    glue.mkdir(parents=True)
    for name in ("train.tsv.gz", "dev.tsv.gz", "msr_paraphrase_test.txt.gz"):
        shutil.copy(FOLDER / "mrpc" / name, glue / name)
    original, tables = tmp_path / "a", tmp_path / "b"
    prepare("mrpc", FILES, Limits(), 100, original, FOLDER)
    prepare("mrpc", FILES, Limits(), 100, tables, tmp_path)
    for part in ("train", "selection", "test", "probe"):
        assert load_examples(original, "mrpc", part) == load_examples(tables, "mrpc", part)


def test_hub_numbering_of_mrpc(real):
    """The hub numbers rows by their place in the original file: the first validation row is its row 9."""
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_from_disk(str(real / "mrpc"))
    assert loaded["validation"][0]["idx"] == 9 and loaded["train"]["idx"][:3] == [0, 1, 2]
    assert loaded["validation"][0]["sentence1"].startswith("He said the foodservice pie business")


def test_official_squad_split_when_train_is_present(tmp_path):
    """A stand-in train file: the split is the official one, but the file is not the published one, and the manifest says so."""
    import gzip

    folder = tmp_path / "squad"
    folder.mkdir()
    document = json.loads(gzip.decompress((FOLDER / "squad" / "dev-v2.0.json.gz").read_bytes()))
    shutil.copy(FOLDER / "squad" / "dev-v2.0.json.gz", folder)
    (folder / "train-v2.0.json").write_text(json.dumps(document | {"data": document["data"][:20]}))
    entry = prepare("squad_v2", FILES, Limits(), 10, tmp_path / "out", tmp_path)
    assert set(entry["rows"]) == {"train", "validation"} and entry["parts"]["test"] == 11873
    assert not entry["comparable"] and entry["notes"] == ["squad_v2/train-v2.0.json is not byte for byte the published file"]
    assert entry["leakage"]["train-test"]["exact"] == entry["parts"]["train"]
