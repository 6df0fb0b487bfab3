"""The manifest: merge-safe, and a changed byte is a clear error."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from tunescope.data import manifest
from tunescope.errors import PrerequisiteError


@pytest.fixture
def prepared(tmp_path):
    folder = tmp_path / "rte" / "train"
    folder.mkdir(parents=True)
    (folder / "data.arrow").write_bytes(b"rows")
    (tmp_path / "rte" / "parts.json").write_text("{}")
    manifest.write_entry(tmp_path, "rte", {"files": manifest.checksums(tmp_path / "rte", tmp_path)})
    return tmp_path


def test_checksums_are_the_known_ones(prepared):
    sums = manifest.read_entry(prepared, "rte")["files"]["rte/parts.json"]
    assert sums == {
        "md5": "99914b932bd37a50b983c5e7c90ae93b", "bytes": 2,
        "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
    }  # fmt: skip


def test_digest_depends_on_content_and_name_alone(prepared, tmp_path):
    one = manifest.verify(prepared, "rte")
    entry = manifest.read_entry(prepared, "rte")
    assert one == manifest.digest(entry | {"note": "anything"})
    renamed = {("rte/x" if name.endswith("parts.json") else name): sums for name, sums in entry["files"].items()}
    assert manifest.digest({"files": renamed}) != one
    (prepared / "rte" / "cache-1.arrow").write_bytes(b"made by datasets.map")
    assert manifest.verify(prepared, "rte") == one


def test_a_changed_byte_names_file_expected_and_found(prepared):
    path = prepared / "rte" / "train" / "data.arrow"
    expected = manifest.read_entry(prepared, "rte")["files"]["rte/train/data.arrow"]["sha256"]
    path.write_bytes(b"rowz")
    with pytest.raises(PrerequisiteError) as error:
        manifest.verify(prepared, "rte")
    text = str(error.value)
    assert str(path) in text and expected in text and manifest.checksums(path.parent, prepared)["rte/train/data.arrow"]["sha256"] in text
    assert "run `tunescope data` again" in text and error.value.exit_code == 3


def test_missing_file_and_missing_task(prepared):
    (prepared / "rte" / "parts.json").unlink()
    with pytest.raises(PrerequisiteError, match=r"parts\.json: missing"):
        manifest.verify(prepared, "rte")
    with pytest.raises(PrerequisiteError, match="no data of task 'mrpc'"):
        manifest.verify(prepared, "mrpc")


@pytest.mark.parametrize(
    ("content", "message"), [("{", "not valid JSON"), ('{"schema": 99, "tasks": {}}', "schema 1, found 99"), ("[]", "found None")]
)
def test_unreadable_manifest(tmp_path, content, message):
    (tmp_path / manifest.NAME).write_text(content)
    with pytest.raises(PrerequisiteError, match=message):
        manifest.read(tmp_path)


def test_writers_do_not_lose_each_others_entries(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: manifest.write_entry(tmp_path, f"t{n}", {"files": {}, "n": n}), range(24)))
    tasks = json.loads((tmp_path / manifest.NAME).read_text())["tasks"]
    assert {name: entry["n"] for name, entry in tasks.items()} == {f"t{n}": n for n in range(24)}
    assert not list(tmp_path.glob("*.partial"))


def test_reading_and_verifying_import_nothing_heavy():
    code = (
        "import sys, tunescope.data, tunescope.data.manifest, tunescope.data.prepare\n"
        "from tunescope.data.tasks import get_task\n"
        "[get_task(t) for t in ('mrpc', 'sst2', 'rte', 'squad_v2')]\n"
        "print([m for m in ('torch', 'datasets', 'transformers', 'pandas', 'pyarrow', 'huggingface_hub') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
