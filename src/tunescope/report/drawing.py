"""How figures look and are saved: colour-blind palette, fixed ink, the same bytes for the same data."""

import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg", force=False)

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from tunescope.analysis.findings import Findings
from tunescope.analysis.frames import Frames
from tunescope.study.schema import Study

INK, MUTED, RULE, PAPER = "#1c2126", "#5f6872", "#d9dde1", "#ffffff"
PALETTE = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#6a51a3")
"""Okabe and Ito's colours (and two more), told apart with every common colour blindness; shape and dash say the same."""
MARKERS = ("s", "o", "^", "D", "v", "P", "X", "*")
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)), "-", "-", "-", "-")
_TOKENS = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_TOKENS |= {colour: f"var(--c{k})" for k, colour in enumerate(PALETTE)}
STYLE: dict[Any, Any] = {
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 9, "axes.titlesize": 9.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.titlecolor": INK, "legend.labelcolor": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "xtick.major.width": 0.7, "ytick.major.width": 0.7,
    "axes.grid": True, "axes.grid.axis": "y", "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "figure.facecolor": PAPER, "axes.facecolor": "none", "savefig.facecolor": PAPER, "legend.frameon": False, "lines.linewidth": 1.6,
    "lines.markersize": 4.5, "errorbar.capsize": 2.5, "text.parse_math": False, "axes.unicode_minus": True,
    "svg.fonttype": "none", "svg.hashsalt": "tunescope", "pdf.fonttype": 42, "figure.dpi": 100, "figure.constrained_layout.use": True,
}  # fmt: skip


class NoData(Exception):
    """A figure cannot be drawn; the message says what is missing."""


@dataclass(frozen=True)
class Material:
    """What figures are drawn from."""

    findings: Findings
    frames: Frames
    study: Study

    @property
    def tasks(self) -> list[str]:
        return list(self.study.tasks)

    @property
    def methods(self) -> list[str]:
        """Reference and candidate first, so that their colours are the same in every study."""
        roles = [self.study.analysis.reference_method, self.study.analysis.candidate_method]
        return [*dict.fromkeys([*roles, *self.study.methods])]

    def look(self, method: str) -> tuple[str, str, Any]:
        """(colour, marker, dash) of a method."""
        return looks(self.methods.index(method))

    def arm_look(self, arm: str) -> tuple[str, str, Any]:
        """(colour, marker, dash) of a serving arm, the same in every figure: full and merged serve the two methods, and look like them."""
        asked = self.study.serving.arms if self.study.serving else []
        known = ["full", "merged", "base", "lora_idle", "adapters_1", "adapters_2", "adapters_4"]
        order = [*dict.fromkeys([*known, *asked, *sorted({r.arm for r in self.findings.serving}), arm])]
        return looks(order.index(arm))

    def primary(self, task: str) -> str:
        """The registered metric of a task."""
        return self.study.analysis.primary_metric.get(task, "accuracy")  # type: ignore[call-overload]


@dataclass(frozen=True)
class Chart:
    """A drawn figure with the words that go with it."""

    name: str
    title: str
    caption: str
    alt: str
    """What it shows, with its main numbers."""
    steps: tuple[str, ...]
    figure: Figure = field(compare=False)
    svg: str = ""
    """The saved SVG's text, set by `save`."""


def looks(k: int) -> tuple[str, str, Any]:
    """(colour, marker, dash) number k; colours come again from the ninth on, each with another marker and dash."""
    again = k + k // len(PALETTE)
    return PALETTE[k % len(PALETTE)], MARKERS[again % len(MARKERS)], DASHES[again % len(DASHES)]


@contextmanager
def style() -> Iterator[None]:
    """Draw and save inside this."""
    with rc_context(STYLE):
        yield


def panels(
    titles: Sequence[str], *, width: float = 7.2, height: float = 2.6, columns: int | None = None, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A row (or grid) of titled axes; height is one row's, in inches."""
    columns = min(len(titles), columns or (len(titles) if len(titles) <= 4 else 3))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(width, height * rows))
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for ax, title in zip(axes, titles, strict=False):
        ax.set_title(title)
    for ax in axes[len(titles) :]:
        ax.remove()
    return figure, axes[: len(titles)]


def legend_below(figure: Figure, source: Axes | Iterable[Axes], columns: int = 6) -> None:
    """One legend for all panels, under them, each label once."""
    found: dict[str, Any] = {}
    for ax in [source] if isinstance(source, Axes) else source:
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        figure.legend(list(found.values()), list(found), loc="outside lower center", ncols=min(columns, len(found)), handlelength=2.4)


def percent_axis(ax: Axes, which: str = "y") -> None:
    """Fractions shown as per cent."""
    axis = ax.yaxis if which == "y" else ax.xaxis
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %".replace("-", "−")))


def stay_near(ax: Axes, points: Sequence[float], which: str = "y", floor: float = -math.inf) -> None:
    """Cut an axis that one huge interval would stretch until the points (estimates, limits) cannot be told apart."""
    low, high = ax.get_ylim() if which == "y" else ax.get_xlim()
    reach = max(max(points) - min(points), 0.25)
    ends = max(low, min(points) - reach, floor), min(high, max(points) + reach)
    (ax.set_ylim if which == "y" else ax.set_xlim)(*ends)


def mark_cut(ax: Axes, at: float, ends: Sequence[float], colour: str, which: str = "y") -> bool:
    """An arrow head at each side where the axis cuts an interval; whether there is one."""
    low, high = ax.get_ylim() if which == "y" else ax.get_xlim()
    cut = [(edge, head) for edge, head, out in ((low, "v<", ends[0] < low), (high, "^>", ends[1] > high)) if out]
    for edge, head in cut:
        place = (at, edge) if which == "y" else (edge, at)
        ax.plot(*place, head[which == "x"], color=colour, ms=5, mew=0, clip_on=False, zorder=4)
    return bool(cut)


def log_axis(ax: Axes, which: str = "x") -> None:
    """A logarithmic axis with plain numbers (powers of ten would need math text, which is off: labels are not trusted)."""
    (ax.set_xscale if which == "x" else ax.set_yscale)("log")
    axis = ax.xaxis if which == "x" else ax.yaxis
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda v, _: ""))


def save(chart: Chart, folder: Path) -> Chart:
    """Write `<name>.svg`, `.pdf` and `.png`, without dates; returns the chart with its SVG text."""
    figure = chart.figure
    figure.draw_without_rendering()
    text = StringIO()
    facts = {"Title": chart.title, "Description": f"{chart.alt} Steps: {', '.join(chart.steps)}"}
    pdf = {"Title": chart.title, "Subject": chart.alt, "CreationDate": None, "Creator": "tunescope", "Producer": "matplotlib"}
    # The layout is settled: an engine left makes each save draw twice, and a save puts back the one that the settings name.
    with rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
        figure.savefig(text, format="svg", metadata={**facts, "Date": None, "Creator": "tunescope"})
        figure.savefig(folder / f"{chart.name}.pdf", metadata=pdf)
        figure.savefig(folder / f"{chart.name}.png", dpi=160, metadata={**facts, "Software": None})
    svg = text.getvalue()
    (folder / f"{chart.name}.svg").write_text(svg, encoding="utf-8")
    return Chart(chart.name, chart.title, chart.caption, chart.alt, chart.steps, figure, svg)


def inline_svg(chart: Chart) -> str:
    """The SVG for a web page: no prolog, metadata or namespaces, ids made unique, colours as the page's CSS variables.

    Colours become variables so that one drawing serves light and dark pages.
    """
    root = ET.fromstring(chart.svg)
    _drop_paper(root)
    _tidy(root, f"{chart.name}-")
    width, height = root.attrib["viewBox"].split()[2:]
    root.attrib = {
        "viewBox": root.attrib["viewBox"], "role": "img", "class": "chart", "aria-label": chart.alt,
        "style": f"--w:{float(width):g};aspect-ratio:{float(width):g}/{float(height):g}",
    }  # fmt: skip
    return ET.tostring(root, encoding="unicode")


def _drop_paper(root: ET.Element) -> None:
    """The page is the paper: a sheet of its own would hide the shade that says there is more to scroll to."""
    for parent in root.iter():
        for child in [*parent]:
            if child.attrib.get("id") == "patch_1":
                parent.remove(child)


def _tidy(element: ET.Element, prefix: str) -> None:
    element.tag = element.tag.split("}")[-1]
    for child in [*element]:
        if child.tag.split("}")[-1] in ("metadata", "style", "title"):
            element.remove(child)
        else:
            _tidy(child, prefix)
    element.attrib = {key.split("}")[-1]: _attribute(key.split("}")[-1], value, prefix) for key, value in element.attrib.items()}


def _attribute(name: str, value: str, prefix: str) -> str:
    if name == "id":
        return prefix + value
    if name == "href" and value.startswith("#"):
        return "#" + prefix + value[1:]
    value = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", value)
    if name != "style":
        return value
    value = re.sub(r"#[0-9a-f]{6}\b", lambda found: _TOKENS.get(found[0], found[0]), value)
    return value.replace("'DejaVu Sans', sans-serif", "var(--sans)")
