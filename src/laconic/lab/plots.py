"""Paper figures by matplotlib: PDF and PNG, at a paper's text width, legible without zooming."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import Formatter, FuncFormatter, LogLocator

from laconic.lab.series import Figure, Line, clean
from laconic.lab.style import MARKS_PER_LINE, style

WIDTH = 6.5  # inches, the text width of a one-column paper
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.3,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "axes.unicode_minus": False,
}


def draw(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """Writes one file pair per axis, and `overview` with all of them side by side. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    with matplotlib.rc_context(SETTINGS):
        for figure in figures:
            files += save(_single(figure), folder / f"{_word(figure)}-vs-{figure.axis.key}")
        files += save(_overview(figures), folder / "overview")
    return files


def _word(figure: Figure) -> str:
    names = {"f(x)": "gap", "‖x": "distance"}
    return next((name for start, name in names.items() if figure.measure.startswith(start)), "gradient")


def save(canvas: Canvas, stem: Path) -> list[Path]:
    """Writes a figure as PDF and PNG."""
    files = [stem.with_suffix(".pdf"), stem.with_suffix(".png")]
    FigureCanvasAgg(canvas)
    canvas.savefig(files[1], dpi=200)
    canvas.set_layout_engine("none")  # the layout is found; finding it again for the other format takes as long
    canvas.savefig(files[0], metadata={"CreationDate": None, "Producer": None})
    return files


def _single(figure: Figure) -> Canvas:
    canvas = Canvas(figsize=(WIDTH, 3.3), layout="constrained")
    axes = canvas.add_subplot()
    _fill(axes, figure)
    handles = _handles(figure, wrap=30)
    canvas.legend(handles=handles, loc="outside right upper", frameon=False, handlelength=2.6, labelspacing=0.55)
    return canvas


def _overview(figures: Sequence[Figure]) -> Canvas:
    columns = 2
    handles = _handles(figures[0], wrap=46)
    lines = sum(str(handle.get_label()).count("\n") + 1 for handle in handles) / columns
    canvas = Canvas(figsize=(1.12 * WIDTH, 2.5 + 0.17 * (lines + 1)), layout="constrained")
    parts = canvas.subplots(1, len(figures), sharey=True, squeeze=False)[0]
    for part, figure in zip(parts, figures, strict=True):
        _fill(part, figure)
    for part in parts[1:]:
        part.set_ylabel("")
    canvas.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6, columnspacing=1.5
    )
    return canvas


def _fill(axes: Axes, figure: Figure) -> None:
    for place, line in enumerate(figure.lines):
        if line in clean(figure):
            _line(axes, line, place)
    axes.set_yscale("log")
    low, high = figure.window
    axes.set_ylim(low, high)
    decades(axes.yaxis, 8)
    if figure.axis.log:
        axes.set_xscale("log")
        decades(axes.xaxis, 7)
    else:
        axes.set_xlim(left=0)
    if low < figure.floor < high:
        axes.axhspan(low, figure.floor, color="0.92", zorder=0, linewidth=0)
    axes.set_xlabel(figure.axis.label)
    axes.set_ylabel(figure.measure)
    axes.grid(True, which="major", color="0.88", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


_SHORT = 25.0  # of a logarithmic axis: the last over the first value


def decades(axis: Axis, count: int) -> None:
    """Marks a logarithmic axis by powers of ten, about `count` of them; a short one also by 2 and 5 times these."""
    axis.set_major_locator(LogLocator(numticks=count))
    axis.set_major_formatter(FuncFormatter(_power))
    axis.set_minor_formatter(_Between())


class _Between(Formatter):
    """Labels 2 and 5 times a power of ten where the axis shows little more than one of these."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        low, high = sorted(self.axis.get_view_interval())  # type: ignore[union-attr]
        if x <= 0.0 or low <= 0.0 or high / low > _SHORT:
            return ""
        power = 10.0 ** math.floor(math.log10(x) + 1e-9)
        digit = round(x / power)
        if digit not in (2, 5):
            return ""
        return f"{x:g}" if 1e-3 <= x < 1e4 else f"{digit}·{_power(power)}"


def _power(value: float, _: object = None) -> str:
    """10⁻³ as text: typesetting it as mathematics takes most of the time of a figure."""
    exponent = round(math.log10(value)) if value > 0 else 0
    return f"{10**exponent}" if 0 <= exponent <= 2 else "10" + str(exponent).translate(_RAISED)


def _line(axes: Axes, line: Line, place: int) -> None:
    look = style(place)
    axes.plot(line.x, line.y, color=look.colour, zorder=3)
    marks = marked(line, place)
    axes.plot(
        line.x[marks], line.y[marks], linestyle="none", color=look.colour, marker=look.marker, markersize=4, zorder=4
    )
    if line.seeds > 1:
        axes.fill_between(line.x, line.low, line.high, color=look.colour, alpha=0.2, linewidth=0, zorder=2)
    if line.bound is not None:
        axes.plot(line.x, line.bound, color=look.colour, linestyle=(0, (4, 2)), linewidth=0.8, alpha=0.9, zorder=1)


def marked(line: Line, place: int) -> list[int]:
    """A few places along a line, shifted from method to method so that markers of close lines are all seen."""
    shown = np.flatnonzero(np.isfinite(line.y))
    if len(shown) <= MARKS_PER_LINE:
        return shown.tolist()
    heights = np.minimum.accumulate(np.log10(line.y[shown]))  # noise is no progress
    run = np.arange(len(shown)) / len(shown) + np.append(0.0, np.abs(np.diff(heights)).cumsum()) / max(
        1e-9, np.ptp(heights)
    )
    wanted = (np.arange(MARKS_PER_LINE) + 0.15 + 0.7 * ((place * 0.381966) % 1.0)) / MARKS_PER_LINE * run[-1]
    return sorted({int(shown[i]) for i in np.searchsorted(run, wanted).clip(0, len(shown) - 1)})


def _handles(figure: Figure, wrap: int) -> list[Line2D]:
    handles = []
    for place, line in enumerate(figure.lines):
        look = style(place)
        label = line.label + (" (diverged)" if line.diverged else "")
        text = "\n".join(textwrap.wrap(label, wrap, break_on_hyphens=False)) or label
        handles.append(Line2D([], [], color=look.colour, marker=look.marker, markersize=4, label=text))
    if any(line.bound is not None for line in figure.lines):
        handles.append(Line2D([], [], color="0.3", linestyle=(0, (4, 2)), linewidth=0.8, label="theorem's bound"))
    if any(line.seeds > 1 for line in figure.lines):
        seeds = max(line.seeds for line in figure.lines)
        handles.append(Line2D([], [], color="0.3", linewidth=6, alpha=0.2, label=f"range over {seeds} seeds"))
    return handles
