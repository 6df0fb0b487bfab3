"""Red flags by code: the sentences that the program really writes fall into their groups, most severe first."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tunescope.analysis.flag_groups import GROUPS, SEVERITIES, code_of, grouped
from tunescope.drift.drift_analysis import _notes as drift_notes
from tunescope.serve.correctness import problems
from tunescope.train.red_flags import adapter_flags, training_flags


def test_sentences_of_training_have_their_codes():
    facts = {
        "base_unchanged": False, "largest_adapter_weight": 1e4, "adapter_norms": {"A": 0}, "unload_restores_base": False,
        "reload_restores_adapter": False, "conversion_max_abs_logit_difference": 1.0,
    }  # fmt: skip
    proofs = [SimpleNamespace(name="merge_max_abs_logit_difference", value=1.0), SimpleNamespace(name="merge_bf16_score_gap", value=1.0)]
    sentences = [*training_flags([{"loss": 1.0}, {"loss": 2.0}]), *adapter_flags(facts, proofs, 1e-4)]
    assert [code_of(text) for text in sentences] == [
        "loss-not-falling", "loss-high", "base-changed", "adapter-weights", "adapter-weights", *["merge-or-unload"] * 5,
    ]  # fmt: skip


def test_sentences_of_drift_and_serving_have_their_codes():
    found = {
        "methods": {"full": {"early": 2.0, "late": 1.0}}, "layers": [{"difference": 1.0}], "candidate_method": "lora",
        "reference_method": "full", "paired": None,
    }  # fmt: skip
    checks = [{"ok": False, "step": "train/1", "max_drift": 1.0, "layer": 0, "floor": 0.1}]
    codes = [code_of(text) for text in drift_notes(found, {}, None, checks)]
    assert codes == ["drift-pattern", "drift-pattern", "nothing-paired", "no-noise-floor", "step-0-differs"]
    wrong = problems({"models": {"full": {"ok": False, "reference": "x", "gap": 1.0}}, "adapters": {"a": {"ok": False, "gap": 1.0}}})
    assert {code_of(text) for text in wrong} == {"served-otherwise"}


@pytest.mark.parametrize(
    ("text", "severity", "code"),
    [
        ("quality/mrpc: the interval has no width", "doubtful", "interval-odd"),
        ("overhead: the interval is 2.67 wide and says next to nothing", "doubtful", "interval-odd"),
        ("every per-task p is 0 or 1", "doubtful", "interval-odd"),
        ("overhead falls from adapters_2 (1.60) to adapters_4 (1.20)", "doubtful", "overhead-falls"),
        ("rte: final runs differ in precision (bf16, fp32): their differences are not the method's alone", "doubtful", "runs-unlike"),
        ("drift.parquet is missing", "broken", "file-unreadable"),
        ("predictions.parquet cannot be read: bad magic", "broken", "file-unreadable"),
        ("2 of 20 launches are missing, arms ['full']", "broken", "records-missing"),
    ],
)
def test_sentences_of_the_report_have_their_codes(text, severity, code):
    (group,) = grouped([("step", text)])
    assert (group.severity, group.code) == (severity, code) and len({code for _, code, _ in GROUPS}) == len(GROUPS)


@pytest.mark.parametrize("text", ["RuntimeError: CUDA error", ""])
def test_a_sentence_that_nobody_foresaw_is_shown_before_the_other_doubtful_ones(text):
    doubtful = [code for severity, code, _ in GROUPS if severity == "doubtful"]
    assert code_of(text) == doubtful[0] == "other"


def test_groups_come_most_severe_first_and_lose_no_flag():
    flags = [("a", "resumed at step 3"), ("b", "strange"), ("c", "missing records: predictions"), ("d", "resumed at step 9")]
    groups = grouped(flags)
    assert [(g.severity, g.code) for g in groups] == [("broken", "records-missing"), ("doubtful", "other"), ("note", "resumed")]
    assert groups[2].flags == (flags[0], flags[3])
    order = [severity for severity, _, _ in GROUPS]
    assert order == sorted(order, key=("broken", "doubtful", "note").index)


def test_the_page_on_reports_has_the_severities_as_they_are():
    page = (Path(__file__).parents[3] / "docs/report.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| (broken|doubtful|note) \| (.+) \|$", page, flags=re.M)) == SEVERITIES
