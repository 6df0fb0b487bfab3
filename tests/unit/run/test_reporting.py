"""What a report is built from."""

from tunescope.run.reporting import built_from, find
from tunescope.run.selection import Selection
from tunescope.study.plan import build_plan
from tunescope.study.schema import StudyFile


def test_records_that_changed_on_disk_are_named_and_not_read_and_the_report_is_no_longer_current(bench):
    bench.run(Selection(kinds=("train",), tasks=("sst2",)))
    file = StudyFile.model_validate({"study": bench.study().model_dump(mode="json"), "execution": {}})
    before, final = built_from(file, bench.store, bench.states()), "train/sst2/lora/final/seed-42"
    record = bench.store.folder(final) / "out.txt"
    record.write_text("0" * record.stat().st_size)  # its size is right
    states = bench.states()
    frames, findings = find(file, build_plan(bench.study()), bench.store, states, now="")
    assert states[final].status == "done" and final not in set(frames.steps.step_id)
    said = next(row for row in findings.missing if row.step == final)
    assert said.state == "damaged" and "out.txt is not what the step wrote" in said.why
    assert built_from(file, bench.store, states) != before
