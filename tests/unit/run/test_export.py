"""Which final runs are refused."""

import pytest

from tunescope.errors import PrerequisiteError
from tunescope.run.data_folder import DataFolder
from tunescope.run.export import export_models
from tunescope.run.session import Session
from tunescope.study.plan import build_plan
from tunescope.study.schema import StudyFile


def test_a_final_run_whose_search_is_stale_is_refused_though_its_result_is_kept(bench, tmp_path):
    training = bench.study().training
    bench.run()
    study = bench.study(training=training.model_copy(update={"max_steps": 30}))
    file = StudyFile.model_validate({"study": study.model_dump(mode="json"), "execution": {}})
    session = Session(file, build_plan(study), bench.store, DataFolder(bench.data_dir))
    with pytest.raises(PrerequisiteError, match=r"train/sst2/full/final/seed-42 is todo \(waits for train/sst2/full/search-.* is kept"):
        list(export_models(session, tmp_path / "out", ["train/sst2/full/final/*"]))
