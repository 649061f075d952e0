"""Figures of several panels by matplotlib: PDF and PNG, at a paper's text width, one legend for all."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from laconic.lab.figures import Grid, Panel
from laconic.lab.plots import SETTINGS, WIDTH, decades, save
from laconic.lab.style import style

_HEIGHT = 2.1  # inches of a row of panels
_PER_LINE = 3  # labels of the legend
_PER_INCH = 13.0  # letters of a title
_DECADES = 40.0  # of a logarithmic axis at most: what blew up leaves the panel at the top


def draw(figure: Grid, stem: Path) -> list[Path]:
    """Writes the figure as PDF and PNG and returns the files. Labels have the same look in all of its panels."""
    labels = list(dict.fromkeys(line.label for row in figure.rows for panel in row for line in panel.series))
    columns = max(len(row) for row in figure.rows)
    with matplotlib.rc_context(SETTINGS):
        lines = math.ceil(len(labels) / _PER_LINE) + sum(len(label) > 40 for label in labels) / _PER_LINE
        size = (max(WIDTH, 1.95 * columns), _HEIGHT * len(figure.rows) + 0.3 + 0.16 * lines)
        canvas = Canvas(figsize=size, layout="constrained")
        grid = canvas.subplots(len(figure.rows), columns, squeeze=False)
        for row, places in zip(figure.rows, grid, strict=True):
            for axes in places[len(row) :]:
                axes.set_axis_off()
            for panel, axes in zip(row, places, strict=False):
                _fill(axes, panel, labels)
                axes.set_title(textwrap.fill(panel.title, int(_PER_INCH * size[0] / columns)), fontsize=7.5)
        canvas.legend(
            handles=_handles(figure, labels), loc="outside lower center", ncols=_PER_LINE, frameon=False,
            handlelength=2.6, columnspacing=1.5,
        )  # fmt: skip
        return save(canvas, stem)


def _fill(axes: Axes, panel: Panel, labels: list[str]) -> None:
    low, high = _window(panel)
    for line in panel.series:
        look = style(labels.index(line.label))
        x, y = np.asarray(line.x, dtype=float), np.minimum(np.asarray(line.y, dtype=float), 10.0 * high)
        if line.dashed:
            axes.plot(x, y, color=look.colour, linestyle=(0, (4, 2)), linewidth=0.9)
            continue
        every = max(1, len(x) // 6)
        axes.plot(x, y, color=look.colour, marker=look.marker, markersize=3, markevery=(every // 3, every))
    if "x" in panel.log:
        axes.set_xscale("log")
        decades(axes.xaxis, 5)
    if "y" in panel.log:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        decades(axes.yaxis, 6)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(True, which="major", color="0.88", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _window(panel: Panel) -> tuple[float, float]:
    """What a vertical axis shows: lines that blow up leave it at the top."""
    values = np.concatenate([np.asarray(line.y, dtype=float) for line in panel.series] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    if "y" not in panel.log or not len(values):
        return 0.1, math.inf
    firsts = [float(line.y[0]) for line in panel.series if len(line.y) and 0 < line.y[0] < math.inf]
    top = min(values.max(), 1e3 * max(firsts, default=values.max()))
    return max(values[values <= top].min() / 2.0, top * 10.0**-_DECADES), 2.0 * top


def _handles(figure: Grid, labels: list[str]) -> list[Line2D]:
    theory = {line.label for row in figure.rows for panel in row for line in panel.series if line.dashed}
    measured = {line.label for row in figure.rows for panel in row for line in panel.series if not line.dashed}
    handles = []
    for place, label in enumerate(labels):
        look = style(place)
        text = "\n".join(textwrap.wrap(label, 40, break_on_hyphens=False)) or label
        dashed = label in theory - measured
        handles.append(
            Line2D([], [], color=look.colour, label=text, linestyle=(0, (4, 2)) if dashed else "-",
                   marker="" if dashed else look.marker, markersize=3.5)
        )  # fmt: skip
    return handles
