"""Figures: words, files, determinism, what cannot be drawn."""

import hashlib
import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from tunescope.analysis.findings import Reason
from tunescope.report.drawing import Chart, Material, inline_svg, save, style
from tunescope.report.figures import FIGURES, Drawn, draw_all
from tunescope.report.figures_drift import heatmap
from tunescope.report.figures_quality import claims, performance
from tunescope.report.figures_serving import latency_throughput, overhead
from tunescope.report.wording import decimals, percent, task_name
from tunescope.study.arms import arm_name

from .conftest import Published


def test_all_figures_are_drawn_in_three_formats(published: Published) -> None:
    folder = published.root / "results" / "figures"
    for name in FIGURES:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert ET.fromstring((folder / f"{name}.svg").read_text()).tag.endswith("svg")
    index = json.loads((folder / "figures.json").read_text())
    assert [f["name"] for f in index["figures"]] == list(FIGURES) and index["not_drawn"] == {}


def test_alt_text_has_the_numbers_and_figures_name_finished_steps(drawn: Drawn, published: Published) -> None:
    finished = set(published.frames.steps.step_id)
    for chart in drawn.charts.values():
        assert len(re.findall(r"\d", chart.alt)) >= 3, chart.name
        assert chart.steps and set(chart.steps) <= finished, chart.name
    row = next(r for r in published.findings.table if (r.task, r.method) == ("sst2", "lora"))
    assert decimals(100 * (row.quality_mean or 0), 1) in drawn.charts["performance"].alt
    claim = next(c for c in published.findings.claims if c.id == "overhead")
    assert percent(claim.estimate) in drawn.charts["claims"].alt


def test_claims_on_what_was_not_learned_are_named_and_not_drawn(published: Published) -> None:
    failed = [Reason(kind="gate_failed", text="", task="squad_v2")]
    changed = [c.model_copy(update={"reasons": failed}) if c.id == "quality/squad_v2" else c for c in published.findings.claims]
    both = [published.with_findings(claims=c).findings for c in (changed, published.findings.claims)]
    found = [claims(Material(findings, published.frames, published.study)) for findings in both]
    assert ["quality/squad_v2" in chart.alt for chart in found] == [False, True]
    assert "as nothing can be compared there: quality, SQuAD v2." in found[0].caption and "Not drawn" not in found[1].caption


def test_claims_name_verdict_and_margin_and_cut_what_no_overhead_can_be(published: Published) -> None:
    every = [c.model_copy(update={"interval": (-0.9, 60.0)}) if c.id == "overhead" else c for c in published.findings.claims]
    chart = claims(Material(published.with_findings(claims=every).findings, published.frames, published.study))
    quality, *_, serving = chart.figure.axes
    shown = [c.verdict for c in sorted((c for c in every if c.dimension == "quality"), key=lambda c: c.task is None)]
    assert [label.get_text().split("\n")[1] for label in quality.get_yticklabels()] == shown
    margin = next(c.margin for c in every if c.dimension == "quality")
    assert [note.get_text() for note in quality.texts] == [f"margin ≥ {percent(margin, 0)}"]
    low, high = serving.get_xlim()
    assert low >= -1 and high < 3 and any(line.get_marker() == ">" for line in serving.get_lines()) and "Arrow" in chart.caption


def test_batch_sizes_stand_under_every_point_of_theirs_and_above_the_axis(published: Published) -> None:
    latencies = {"base": (300.0, 190.0, 400.0), "merged": (240.0, 200.0, 300.0)}
    rows = [r for r in published.findings.serving if r.arm in latencies]
    rows = [r.model_copy(update={"latency_p50_ms": latencies[r.arm][(1, 2, 4).index(r.batch_size)]}) for r in rows]
    with style():
        chart = latency_throughput(Material(published.with_findings(serving=rows).findings, published.frames, published.study))
        chart.figure.draw_without_rendering()
    (ax,) = chart.figure.axes
    axis = ax.get_window_extent()
    assert [(note.get_text(), note.xy[1]) for note in ax.texts] == [("1", 240.0), ("2", 190.0), ("4", 300.0)]
    assert all(axis.y0 < note.get_window_extent().y0 and axis.x0 < note.get_window_extent().x0 for note in ax.texts)
    assert "numbers are batch sizes, each below the point of merged" in chart.caption


def test_an_arm_looks_alike_in_every_figure_and_full_as_in_the_quality_figures(published: Published, drawn: Drawn) -> None:
    words = {arm_name(r.arm): r.arm for r in published.findings.serving}
    seen: dict[str, set[tuple[str, str]]] = {}
    for name in ("overhead", "overhead_adapters", "serving_scaling", "latency_throughput", "serving_memory"):
        for ax in drawn.charts[name].figure.axes:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                line = getattr(handle, "lines", [handle])[0]
                if (arm := label.removesuffix(", a launch")) in words:
                    seen.setdefault(words[arm], set()).add((line.get_color(), line.get_marker()))
    assert {"base", "merged", "adapters_2"} <= set(seen) and all(len(looks) == 1 for looks in seen.values()), seen
    material = Material(published.findings, published.frames, published.study)
    assert material.arm_look("full") == material.look("full") and material.arm_look("merged") == material.look("lora")


def test_a_huge_interval_is_cut_with_an_arrow_and_leaves_estimates_and_limit_apart(published: Published) -> None:
    def drawn_with(high: float) -> Chart:
        rows = [
            r.model_copy(update={"ratio_to_baseline": 1.5, "ratio_interval": (1.2, high), "ratio_launches": 2})
            for r in published.findings.serving
            if r.ratio_to_baseline is not None
        ]
        return overhead(Material(published.with_findings(serving=rows).findings, published.frames, published.study))

    (wide,), (near,) = drawn_with(140.0).figure.axes, drawn_with(1.7).figure.axes
    assert wide.get_ylim()[0] >= -1 and wide.get_ylim()[1] == 1.0, "the span of 0 to 50 % above the estimate"
    assert any(line.get_marker() == "^" and line.get_ydata()[0] == 1.0 for line in wide.get_lines()) and near.get_ylim()[1] > 0.7
    assert ["Arrow" in drawn_with(high).caption for high in (140.0, 1.7)] == [True, False]


def test_memory_stands_at_the_adapters_in_use_and_names_the_slots(drawn: Drawn) -> None:
    chart = drawn.charts["serving_memory"]
    ax = chart.figure.axes[0]
    ticks = [int(tick.get_text()) for tick in ax.get_xticklabels()]
    found = {
        line.get_label(): ticks[round(float(line.get_xdata()[0]))] for line in ax.get_lines() if not str(line.get_label()).startswith("_")
    }
    assert found.items() >= {"base": 0, "merged": 1, "2 adapters": 2}.items(), found
    assert re.search(r"unused too .*2 adapters: \d", chart.caption)


def test_the_caption_of_overhead_says_what_its_intervals_rest_on(published: Published) -> None:
    def caption(pairs: dict[str, int]) -> str:
        rows = [r.model_copy(update={"ratio_launches": pairs.get(r.arm)}) for r in published.findings.serving]
        rows = [r.model_copy(update={"ratio_interval": None}) if pairs.get(r.arm, 0) < 2 else r for r in rows]
        return overhead(Material(published.with_findings(serving=rows).findings, published.frames, published.study)).caption

    arms = list(dict.fromkeys(r.arm for r in published.findings.serving if r.ratio_to_baseline is not None))
    assert "with intervals over 3 to 12 launches of both arms; dashed" in caption(dict.fromkeys(arms, 3) | {arms[0]: 12})
    assert f"over 3 launches of both arms; one such launch, so no interval: {arm_name(arms[0])}; dashed" in caption(
        dict.fromkeys(arms, 3) | {arms[0]: 1}
    )
    assert "greedy; one launch of both arms each, so no intervals; dashed" in caption(dict.fromkeys(arms, 1))


def test_same_input_same_bytes(published: Published, tmp_path: Path) -> None:
    material = Material(published.findings, published.frames, published.study)
    digests = []
    for k in range(2):
        folder = tmp_path / str(k)
        folder.mkdir()
        with style():
            save(performance(material), folder)
        digests.append({p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()})
    assert digests[0] == digests[1] and len(digests[0]) == 3


def test_svg_keeps_text_as_text(drawn: Drawn) -> None:
    assert re.search(r"<text[^>]*>SST-2", drawn.charts["training_curves"].svg)


def test_without_data_every_figure_is_named_as_missing(published: Published, tmp_path: Path) -> None:
    empty = published.with_findings(claims=[], table=[], baselines=[], costs=[], serving=[], statistics={})
    frames = published.frames.without(set(published.frames.steps.step_id))
    found = draw_all(Material(empty.findings, frames, published.study), tmp_path)
    assert not found.charts and set(found.missing) == set(FIGURES) and all(found.missing.values())
    assert list(tmp_path.iterdir()) == []


def test_inline_svg_is_free_of_clashes_and_of_the_network(drawn: Drawn) -> None:
    seen: set[str] = set()
    for chart in drawn.charts.values():
        root = ET.fromstring(inline_svg(chart))
        ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
        assert len(ids) == len(set(ids)) and not seen & set(ids)
        seen |= set(ids)
        text = ET.tostring(root, encoding="unicode")
        used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
        assert used <= set(ids), chart.name
        assert not any(word in text for word in ("http", "<style", "DejaVu"))
        assert root.attrib["aria-label"] == chart.alt and root.attrib["role"] == "img"
        assert "var(--ink)" in text, "colours follow the page"
        assert '-patch_1"' not in text, "a sheet of paper would hide the shade of what is still to be scrolled to"


def test_labels_are_never_math_and_are_escaped(published: Published, tmp_path: Path) -> None:
    name = "lo$\\frac{1}$ra<script>"
    table = [r.model_copy(update={"method": name if r.method == "lora" else r.method}) for r in published.findings.table]
    methods = {**published.study.methods, name: published.study.methods["lora"]}
    material = Material(
        published.with_findings(table=table).findings, published.frames, published.study.model_copy(update={"methods": methods})
    )
    with style():
        chart = save(performance(material), tmp_path)
    assert "<script" not in inline_svg(chart) and "lo$\\frac{1}$ra&lt;script&gt;" in inline_svg(chart)


def test_every_seed_weighs_alike_in_the_heatmap(published: Published) -> None:
    """A seed whose scored step is a probed one has two rows there: they are one seed."""
    d = published.frames.drift
    last = d[(d.task == "sst2") & (d.method == "full") & (d.role == "final") & (d.block == -1) & (d.measure == "cka_drift_debiased")]
    step, seed = last.step.max(), last.seed.min()
    twice = last[(last.step == step) & (last.seed == seed)]
    changed = pd.concat([d.assign(value=d.value.mask(d.index.isin(twice.index), 0.9)), twice.assign(value=0.9)])
    with style():
        chart = heatmap(Material(published.findings, replace(published.frames, drift=changed), published.study))
    others = last[(last.step == step) & (last.seed != seed) & (last.layer == 1)].groupby("seed").value.mean()
    panel = next(ax for ax in chart.figure.axes if ax.get_title(loc="left") == "SST-2, full")
    grid, layers = panel.images[0].get_array(), sorted(last.layer.unique())
    assert grid[layers.index(1), -1] == pytest.approx((0.9 + others.sum()) / (1 + len(others)))


def test_one_method_alone_can_be_drawn(published: Published, tmp_path: Path) -> None:
    frames = published.frames
    only = frames.without(s for s in frames.steps.step_id if "/lora/" in s)
    findings = published.with_findings(table=[r for r in published.findings.table if r.method == "full"], claims=[], statistics={}).findings
    found = draw_all(replace(Material(findings, only, published.study)), tmp_path)
    assert {"performance", "drift_heatmap", "layer_profiles", "drift_evolution"} <= set(found.charts)


def test_the_band_of_drift_differences_is_the_tables_and_holds_the_line(published: Published, drawn: Drawn) -> None:
    entry = published.findings.statistics["drift_layers"]
    rows = [dict(zip(entry["columns"], row, strict=True)) for row in entry["rows"]]
    ax = drawn.charts["layer_differences"].figure.axes[0]
    mine = [r for r in rows if task_name(r["task"]) == ax.get_title(loc="left")]
    assert mine
    corners = {(float(x), float(y)) for x, y in ax.collections[0].get_paths()[0].vertices}
    for row in mine:
        assert row["95 % low"] <= row["difference"] <= row["95 % high"]
        assert {(row["layer"], row["95 % low"]), (row["layer"], row["95 % high"])} <= corners


def test_quality_against_drift_shows_every_final_run_and_the_correlation_within_tasks(published: Published, drawn: Drawn) -> None:
    chart = drawn.charts["drift_quality"]
    points = sum(len(line.get_xdata()) for ax in chart.figure.axes for line in ax.get_lines())
    f = published.frames.steps
    assert points == ((f.kind == "train") & (f.role == "final")).sum() == len(chart.steps)
    row = published.findings.statistics["correlations"]["rows"][0]
    assert f"over {row[2]} runs: {decimals(row[3], 2)}" in chart.caption
