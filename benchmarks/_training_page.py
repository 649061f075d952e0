"""Pages of the benchmarks of training: tables in Markdown, verdicts computed from numbers, curves with their spread."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from _training import Record
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from laconic.lab.plots import SETTINGS, WIDTH, decades, save
from laconic.lab.style import style

# ---- numbers -------------------------------------------------------------------------------------------------------


def at(curve: Mapping[str, Sequence[Any]], axis: str, place: float, what: str) -> float | None:
    """A curve between its evaluations, linearly; after its end the last value, None where there is no curve.

    >>> at({"up": [0, 100, 200], "accuracy": [0.1, 0.5, 0.6]}, "up", 150, "accuracy")
    0.55
    """
    x, y = numbers(curve, axis), numbers(curve, what)
    return float(np.interp(place, x, y)) if len(x) else None


def numbers(curve: Mapping[str, Sequence[Any]], name: str) -> np.ndarray:
    """A column, None as not a number."""
    return np.array([math.nan if value is None else value for value in curve.get(name, [])], dtype=float)


@dataclass(frozen=True)
class Spread:
    """A few values of the same thing, one per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Not a number where there are none."""
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """The standard deviation of a sample; not a number for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    def text(self, scale: float = 1.0, digits: int = 2, unit: str = "") -> str:
        """The mean, the deviation and all values.

        >>> Spread((0.7, 0.72)).text(100, 1, "%")
        '71.0% ± 1.4 (70.0, 72.0)'
        """
        if not self.values:
            return "not measured"
        mean = f"{scale * self.mean:.{digits}f}{unit}"
        if len(self.values) == 1:
            return f"{mean} (one run)"
        each = ", ".join(f"{scale * value:.{digits}f}" for value in self.values)
        return f"{mean} ± {scale * self.deviation:.{digits}f} ({each})"


def spread(values: Iterable[float | None]) -> Spread:
    """Of the values that there are."""
    return Spread(tuple(value for value in values if value is not None))


# ---- pictures ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """One line of a panel: several runs of one method, and its place in the order of styles."""

    label: str
    place: int
    runs: Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `log` names the logarithmic ones; `lines` are horizontal, by label; `window` is y's."""

    x: str
    y: str
    curves: Sequence[Curve]
    log: str = ""
    lines: Mapping[str, float] = field(default_factory=dict)
    window: tuple[float, float] | None = None


def draw(panels: Sequence[Panel], stem: Path, title: str = "") -> None:
    """Panels side by side as PDF and PNG, means with the range over runs, one legend below."""
    curves = {curve.label: curve for panel in panels for curve in panel.curves}
    columns = 2 if max((len(label) for label in curves), default=0) > 28 else 3
    lines = sorted({label for panel in panels for label in panel.lines})
    rows = math.ceil((len(curves) + len(lines)) / columns)
    with matplotlib.rc_context(SETTINGS):
        canvas = Canvas(figsize=(max(WIDTH, 2.4 * len(panels)), 2.7 + 0.17 * rows), layout="constrained")
        for axes, panel in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _fill(axes, panel)
        handles = [_handle(curve) for curve in curves.values()]
        handles += [Line2D([], [], color="0.4", linestyle=(0, (4, 2)), linewidth=0.9, label=label) for label in lines]
        if handles:
            canvas.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, handlelength=2.6)
        if title:
            canvas.suptitle(title, fontsize=8)
        save(canvas, stem)


def _handle(curve: Curve) -> Line2D:
    look = style(curve.place)
    text = textwrap.fill(curve.label, 48, break_on_hyphens=False)
    return Line2D([], [], color=look.colour, marker=look.marker, markersize=3.5, label=text)


def _fill(axes: Any, panel: Panel) -> None:
    for curve in panel.curves:
        _line(axes, curve, "x" in panel.log)
    for height in panel.lines.values():
        axes.axhline(height, color="0.4", linestyle=(0, (4, 2)), linewidth=0.9)
    for name, axis, scale in (("x", axes.xaxis, axes.set_xscale), ("y", axes.yaxis, axes.set_yscale)):
        if name in panel.log:
            scale("log")
            decades(axis, 6)
    if panel.window is not None:
        axes.set_ylim(*panel.window)
    axes.set_xlabel(panel.x)
    axes.set_ylabel(panel.y)
    axes.grid(True, which="major", color="0.88", linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)


def _line(axes: Any, curve: Curve, log: bool) -> None:
    """The mean over runs, where all of them have values; on a logarithmic axis what lies at 0 is left out."""
    runs = [(x[x > 0], y[x > 0]) if log else (x, y) for x, y in curve.runs]
    runs = [(x, y) for x, y in runs if len(x)]
    if not runs:
        return
    look, (x, _) = style(curve.place), max(runs, key=lambda run: len(run[0]))
    heights = np.array([np.interp(x, *run) for run in runs])
    every = max(1, len(x) // 6)
    first = min(len(x) - 1, (curve.place * 2) % every)
    axes.plot(x, heights.mean(axis=0), color=look.colour, marker=look.marker, markersize=3, markevery=(first, every))
    if len(runs) > 1:
        axes.fill_between(x, heights.min(axis=0), heights.max(axis=0), color=look.colour, alpha=0.18, linewidth=0)


# ---- text ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A target, whether it is met (None: what it needs has not been measured), and the numbers."""

    target: str
    met: bool | None
    because: str

    @property
    def word(self) -> str:
        """In the table."""
        return "open" if self.met is None else "**met**" if self.met else "**not met**"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown; all columns but the first are to the right where they begin with a digit."""
    body = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [" | ".join(head), "---|" * len(head), *(" | ".join(row) for row in body)]
    return "\n".join(f"|{line}" if line.endswith("---|") else f"| {line} |" for line in lines)


def mark_of(tiny: bool, records: Iterable[Record]) -> str:
    """What a page says of its runs where they are short: the form is tiny, or the recipe calls some of them smoke."""
    if tiny:
        return "runs too short to show more than that the command works; their numbers mean nothing."
    if any(one.get("smoke") for one in records):
        return "runs shorter than the recipe needs: they show how methods begin, not where they end."
    return ""


@dataclass
class Page:
    """A page being written.

    Attributes
    ----------
    records : what its numbers come from.
    mark : what is said on top of a page of smoke runs; "" for one that is none.
    parts : text, in order.
    """

    title: str
    command: str
    records: Sequence[Record]
    mark: str
    parts: list[str] = field(default_factory=list)

    def add(self, *parts: str) -> None:
        """More text."""
        self.parts += [part for part in parts if part]

    def verdicts(self, found: Iterable[Verdict]) -> None:
        """The table of verdicts, each with the mark of smoke where the page has it."""
        smoke = " (smoke)" if self.mark else ""
        rows = ((one.target, one.word + smoke * (one.met is not None), one.because) for one in found)
        self.add("## Verdicts", table(("target", "verdict", "because"), rows))

    def draw(self, panels: Sequence[Panel], out: Path, stem: str, caption: str) -> None:
        """A picture of panels, marked as the page is."""
        draw(panels, out / stem, "smoke" if self.mark else "")
        self.picture(stem, caption)

    def picture(self, stem: str, caption: str) -> None:
        """A picture that lies beside the page, with its PDF."""
        self.add(f"![{caption}]({stem}.png)", f"{caption} ([PDF]({stem}.pdf))")

    @property
    def provenance(self) -> str:
        """Machine, versions, dates."""
        versions = {f"{name} {value}" for one in self.records for name, value in (one.get("versions") or {}).items()}
        machines = {
            f"{one.get('processor')}, {(one.get('machine') or {}).get('cores', '?')} cores, "
            f"{(one.get('machine') or {}).get('threads', '?')} threads per process"
            for one in self.records
            if one.get("machine")
        }
        dates = sorted(str(one["started"])[:10] for one in self.records if one.get("started"))
        loads = [float(one["load"]) for one in self.records if "load" in one]
        wall = sum(float(one.get("wall", 0.0)) for one in self.records)
        if not self.records:
            return "Nothing has been measured yet."
        when = dates and (dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")
        said = f"{'; '.join(sorted(machines)) or 'an unknown machine'}; {', '.join(sorted(versions)) or 'no versions'}"
        return (
            f"Made {when or 'at an unknown time'} by {said}. {len(self.records)} runs, {wall / 60:.0f} minutes in all; "
            f"load of the machine at their ends {min(loads, default=0):.1f} to {max(loads, default=0):.1f}."
        )

    def write(self, out: Path) -> None:
        """README.md."""
        title = f"# {self.title}" + (" (smoke)" if self.mark else "")
        mark = f"**SMOKE: {self.mark}**" if self.mark else ""
        head = [title, mark, f"```\n{self.command}\n```", self.provenance]
        text = "\n\n".join(part for part in [*head, *self.parts] if part)
        (out / "README.md").write_text(text + "\n", encoding="utf-8")
