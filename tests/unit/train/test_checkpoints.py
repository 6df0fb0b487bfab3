"""Only intact checkpoints are resumed from."""

import pytest

from tunescope.train.checkpoints import keep_only, latest_intact, resumable, seal


@pytest.fixture
def store(tmp_path):
    root, records = tmp_path / "checkpoints", tmp_path / "rows"
    records.mkdir()
    for step in (10, 20, 30):
        (records / f"step-{step:06d}.parquet").write_bytes(b"rows %d" % step)
        folder = root / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"w%d" % step)
        seal(folder, records, step=step, best_step=10, finished=step == 30, precision="fp32")
    return root, records


def test_latest_is_taken(store):
    found = latest_intact(*store)
    assert (found.step, found.finished) == (30, True)


def damage_file(root, records):
    (root / "checkpoint-30" / "weights").write_bytes(b"W30")


def remove_file(root, records):
    (root / "checkpoint-30" / "weights").unlink()


def remove_seal(root, records):
    (root / "checkpoint-30" / "seal.json").unlink()


def cut_seal(root, records):
    (root / "checkpoint-30" / "seal.json").write_text('{"step": 30')


def lose_probe_record(root, records):
    (records / "step-000030.parquet").unlink()


@pytest.mark.parametrize("harm", [damage_file, remove_file, remove_seal, cut_seal, lose_probe_record])
def test_a_harmed_checkpoint_falls_back_to_the_one_before(store, harm):
    harm(*store)
    found = latest_intact(*store)
    assert (found.step, found.finished) == (20, False)


def test_without_its_best_checkpoint_none_is_usable(store):
    root, records = store
    (root / "checkpoint-10" / "weights").unlink()
    assert latest_intact(root, records) is None


def test_what_a_resumed_run_writes_again_is_dropped(store):
    root, records = store
    remove_seal(root, records)
    keep_only(root, records, latest_intact(root, records))
    assert sorted(p.name for p in root.iterdir()) == ["checkpoint-10", "checkpoint-20"]
    assert sorted(p.name for p in records.iterdir()) == ["step-000010.parquet", "step-000020.parquet"]
    keep_only(root, records, None)
    assert not list(root.iterdir()) and not list(records.iterdir())


def test_a_checkpoint_of_another_precision_is_not_gone_on_from(store):
    root, records = store
    found, refused = resumable(root, records, "fp32")
    assert (found.step, refused) == (30, "") and (root / "checkpoint-30").is_dir()
    found, refused = resumable(root, records, "bf16-mixed")
    assert found is None and refused == "started anew: the checkpoint at step 30 is of precision fp32, not bf16-mixed"
    assert not list(root.iterdir()) and not list(records.iterdir())


def test_nothing_there_starts_afresh(tmp_path):
    assert latest_intact(tmp_path / "none", tmp_path / "rows") is None
