"""Official file formats: traps are read right, malformed files give one clear error."""

import gzip
import json

import pytest

from tunescope.data.distribution import Folder, SourceFile, glue_rows, mrpc_dev_ids, mrpc_rows, squad_rows
from tunescope.errors import PrerequisiteError


@pytest.fixture
def make(tmp_path):
    def build(name, content):
        path = tmp_path / name.replace("/", "-")
        return SourceFile(name, path, content.encode() if isinstance(content, str) else content)

    return build


MRPC_HEADER = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def test_mrpc_bom_quotes_and_odd_line_characters(make):
    text = MRPC_HEADER + '1\t10\t20\the said "no\tshe said " yes\r\n0\t30\t40\ta\x85b\u2028c\td\n'
    rows, ids = mrpc_rows(make("mrpc/train.tsv", text))
    assert rows == [
        {"sentence1": 'he said "no', "sentence2": 'she said " yes', "label": 1, "idx": 0},
        {"sentence1": "a\x85b\u2028c", "sentence2": "d", "label": 0, "idx": 1},
    ]
    assert ids == [("10", "20"), ("30", "40")]


def test_glue_labels_and_indices(make):
    rte = glue_rows(make("rte/dev.tsv", "index\tsentence1\tsentence2\tlabel\n5\ta\tb\tnot_entailment\n6\tc\td\tentailment\n"))
    assert [(r["idx"], r["label"]) for r in rte] == [(5, 1), (6, 0)]
    sst = glue_rows(make("sst2/train.tsv", "sentence\tlabel\ngood \t1\n"))
    assert sst == [{"sentence": "good ", "label": 1, "idx": 0}]
    test = glue_rows(make("sst2/test.tsv", "index\tsentence\n0\tgood\n"), labelled=False)
    assert test == [{"sentence": "good", "label": -1, "idx": 0}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sst2/train.tsv", "text\tlabel\nx\t1\n", r"line 1: expected the header sentence \| label, found 'text"),
        ("sst2/train.tsv", "sentence\tlabel\nx\t1\ny\n", r"line 3: expected 2 fields .* got 1, found 'y'"),
        ("sst2/train.tsv", "sentence\tlabel\nx\t1\ny\tz\t1\n", r"line 3: expected 2 fields .* got 3"),
        ("sst2/train.tsv", "sentence\tlabel\nx\t2\n", r"line 2: expected a label out of 0, 1, found '2'"),
        ("sst2/train.tsv", "sentence\tlabel\n", r"line 2: expected at least one row"),
        ("sst2/train.tsv", "", r"line 1: expected the header"),
        ("rte/dev.tsv", "index\tsentence1\tsentence2\tlabel\nx\ta\tb\tentailment\n", r"line 2: expected a row number"),
        ("sst2/train.tsv", b"sentence\tlabel\nok\t1\nb\xffd\t1\n", r"line 3: expected UTF-8 text, found byte 0xff at offset 21"),
    ],
)
def test_malformed_tables(make, name, content, message):
    with pytest.raises(PrerequisiteError, match=message) as error:
        glue_rows(make(name, content))
    assert name.replace("/", "-") in str(error.value)


def test_malformed_dev_ids(make):
    with pytest.raises(PrerequisiteError, match="line 2: expected two sentence ids"):
        mrpc_dev_ids(make("mrpc/dev_ids.tsv", "1\t2\n3 4\n"))


def question(**changes):
    base = {"question": "Who?", "id": "q", "answers": [{"text": "Tom", "answer_start": 0}], "is_impossible": False}
    return base | changes


def squad(*questions, version="v2.0"):
    return json.dumps({"version": version, "data": [{"title": "T", "paragraphs": [{"context": "Tom.", "qas": list(questions)}]}]})


def test_squad_rows(make):
    rows = squad_rows(make("squad_v2/dev-v2.0.json", squad(question(), question(id="r", answers=[], is_impossible=True))))
    assert rows[0] == {
        "id": "q", "title": "T", "context": "Tom.", "question": "Who?", "answers": {"text": ["Tom"], "answer_start": [0]},
    }  # fmt: skip
    assert rows[1]["answers"] == {"text": [], "answer_start": []}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{\n nope", "line 2: expected JSON"),
        (squad(question(), version="1.1"), "expected a SQuAD file of version 'v2.0'.*'1.1'"),
        ("[]", "expected a SQuAD file"),
        (squad({"question": "Who?"}), r"data\[0\].paragraphs\[0\].qas\[0\].*'answers'"),
        (squad(question(), question(is_impossible=True)), r"qas\[1\]: answers and is_impossible contradict"),
    ],
)
def test_malformed_squad(make, content, message):
    with pytest.raises(PrerequisiteError, match=message):
        squad_rows(make("squad_v2/dev-v2.0.json", content))


@pytest.mark.parametrize("place", ["sst2", "SST-2", "glue_data/SST-2", "."])
@pytest.mark.parametrize("packed", [True, False])
def test_layouts(tmp_path, place, packed):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    content = b"sentence\tlabel\nx\t1\n"
    (folder / ("train.tsv.gz" if packed else "train.tsv")).write_bytes(gzip.compress(content) if packed else content)
    found = Folder(tmp_path, "sst2").read("train.tsv")
    assert (found.name, found.content) == ("sst2/train.tsv", content)
    assert found.checksums["bytes"] == len(content) and found.checksums["published"] is False


@pytest.mark.parametrize("place", ["squad", "squad_v2", "SQuAD"])
def test_squad_layouts(tmp_path, place):
    (tmp_path / place).mkdir()
    (tmp_path / place / "dev-v2.0.json").write_text("{}")
    assert Folder(tmp_path, "squad_v2").find("dev-v2.0.json") is not None


def test_missing_folder_file_and_damaged_gzip(tmp_path):
    with pytest.raises(PrerequisiteError, match=r"execution\.paths\.files"):
        Folder(tmp_path / "nowhere", "rte")
    with pytest.raises(PrerequisiteError, match=r"rte: no train.tsv \(or train.tsv.gz\)"):
        Folder(tmp_path, "rte").read("train.tsv")
    packed = bytearray(gzip.compress(b"index\tsentence1\tsentence2\tlabel\n" * 50))
    packed[len(packed) // 2] ^= 0xFF
    (tmp_path / "train.tsv.gz").write_bytes(packed)
    with pytest.raises(PrerequisiteError, match="damaged gzip"):
        Folder(tmp_path, "rte").read("train.tsv")
    (tmp_path / "train.tsv.gz").write_bytes(gzip.compress(b"x" * 1000)[:-6])
    with pytest.raises(PrerequisiteError, match="damaged gzip"):
        Folder(tmp_path, "rte").read("train.tsv")
