"""What a figure shows, apart from how it is drawn: one median line with a band per method, on an axis with a unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from laconic.lab.trace import DIVERGED, curves, numbers, seconds_column
from laconic.runtime.network import Network

POINTS = 1500  # per line; more cannot be seen and make the page heavy
_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
TAIL = 1e-10  # how far below the median method the best ones are followed
MEASURES = {
    "gap": "f(x) − f*",
    "gap_average": "f(x) − f* at the weighted average",
    "grad_norm2": "‖∇f(x)‖²",
    "distance2": "‖x − x*‖²",
}  # columns that may be drawn, with their labels
_SPREAD = 8.0  # an axis on which methods end this many times apart is logarithmic


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: `key` names files, `label` has the unit, `column` is in the trace, divided by `unit`."""

    key: str
    label: str
    column: str
    unit: float = 1.0
    log: bool = False


@dataclass(frozen=True)
class Line:
    """One method on one axis; `low` and `high` are the extremes over seeds, `bound` is the theorem's, or None."""

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    bound: np.ndarray | None
    seeds: int
    diverged: bool


@dataclass(frozen=True)
class Figure:
    """Every method on one axis. `floor` is the accuracy to which f* is known, below which a gap means nothing."""

    axis: Axis
    measure: str
    lines: tuple[Line, ...]
    floor: float
    window: tuple[float, float]


def measure_of(frame: pd.DataFrame, asked: str | None = None) -> tuple[str, str]:
    """Column and label of what converges: the gap, of a saddle point the distance, or else the gradient norm squared.

    Raises ValueError where another measure is asked for and the trace knows nothing of it.
    """
    if asked is None:
        asked = next((name for name in ("gap", "distance2") if _known(frame, name)), "grad_norm2")
    elif asked not in MEASURES:
        raise ValueError(f"report(measure={asked!r}) : measure must be one of {', '.join(map(repr, MEASURES))}")
    elif not _known(frame, asked):
        raise ValueError(f"report(measure={asked!r}) : the trace has no value of it; leave measure out")
    return asked, MEASURES[asked]


def _known(frame: pd.DataFrame, name: str) -> bool:
    return name in frame and bool(np.isfinite(numbers(frame, name)).any())


def price(frame: pd.DataFrame, networks: Sequence[Network]) -> pd.DataFrame:
    """The trace with a column of seconds for each network that it does not have yet."""
    frame = frame.copy()
    for network in networks:
        column = seconds_column(network.name)
        if column not in frame:
            travel = network.price(numbers(frame, "flights"), numbers(frame, "peak"))
            frame[column] = travel + numbers(frame, "compute_seconds")
    return frame


def axes(frame: pd.DataFrame, network: str | None) -> list[Axis]:
    """Rounds, uplink bytes per worker, seconds on a network where one is given, and virtual time where it is known."""
    largest = float(numbers(frame, "uplink").max())
    unit, name = next(((size, name) for size, name in _BYTES if largest >= size), (1.0, "B"))
    found = [
        Axis("rounds", "communication rounds", "rounds"),
        Axis("uplink", f"uplink per worker [{name}]", "uplink", unit, _spread(frame, "uplink")),
    ]
    if network is not None:
        column = seconds_column(network)
        label = f"simulated time at {network.replace(',', ', ')} [s]"
        found.append(Axis("seconds", label, column, 1.0, _spread(frame, column)))
    if "virtual_seconds" in frame and np.isfinite(numbers(frame, "virtual_seconds")).any():
        label = "virtual time [s]"
        found.append(Axis("virtual", label, "virtual_seconds", 1.0, _spread(frame, "virtual_seconds")))
    return found


def _spread(frame: pd.DataFrame, column: str) -> bool:
    whole = [seed for _, seeds in curves(frame) for seed in seeds if DIVERGED not in set(seed["status"])]
    ends = [numbers(seed, column).max() for seed in whole]
    ends = [end for end in ends if end > 0]
    return bool(ends) and max(ends) > _SPREAD * min(ends)


def figure(frame: pd.DataFrame, axis: Axis, floor: float, measure: str | None = None) -> Figure:
    """The figure of a trace on one axis: of a measure (see `measure_of`)."""
    column, label = measure_of(frame, measure)
    floor = floor if column.startswith("gap") else 0.0
    lines = tuple(_line(method, seeds, axis, column, floor) for method, seeds in curves(frame))
    return Figure(axis, label, lines, floor, _window(lines))


def _line(label: str, seeds: Sequence[pd.DataFrame], axis: Axis, column: str, floor: float) -> Line:
    xs = [numbers(seed, axis.column) / axis.unit for seed in seeds]
    grid = _grid(xs, axis.log)
    values = _on_grid(grid, xs, [np.maximum(numbers(seed, column), floor) for seed in seeds])
    bounds = _on_grid(grid, xs, [numbers(seed, "bound") for seed in seeds])
    enough = np.isfinite(values).sum(axis=0) * 2 > len(seeds) - 1
    grid, values, bounds = grid[enough], values[:, enough], bounds[:, enough]
    has_bound = bool(len(grid)) and bool(np.isfinite(bounds).any()) and column == "gap"
    return Line(
        label=label,
        x=grid,
        y=_over(np.nanmedian, values),
        low=_over(np.nanmin, values),
        high=_over(np.nanmax, values),
        bound=_over(np.nanmedian, bounds) if has_bound else None,
        seeds=len(seeds),
        diverged=any(DIVERGED in set(seed["status"]) for seed in seeds),
    )


def _over(reduce, values: np.ndarray) -> np.ndarray:
    """The reduction over seeds, NaN where no seed has a value."""
    out = np.full(values.shape[1], np.nan)
    some = np.isfinite(values).any(axis=0)
    if some.any():
        out[some] = reduce(values[:, some], axis=0)
    return out


def _grid(xs: Sequence[np.ndarray], log: bool) -> np.ndarray:
    """The places at which all seeds are compared: theirs if few, evenly chosen among them if many."""
    grid = np.unique(np.concatenate(xs))
    grid = grid[np.isfinite(grid)]
    if log:
        grid = grid[grid > 0]
    if len(grid) <= POINTS:
        return grid
    if log:
        places = np.searchsorted(grid, np.geomspace(grid[0], grid[-1], POINTS))
        return grid[np.unique(np.clip(places, 0, len(grid) - 1))]
    return grid[np.unique(np.linspace(0, len(grid) - 1, POINTS).astype(int))]


def _on_grid(grid: np.ndarray, xs: Sequence[np.ndarray], ys: Sequence[np.ndarray]) -> np.ndarray:
    """Values of every seed on the grid, (seeds, grid), log-linear between its rows and NaN beyond them or at y <= 0.

    Rows with equal x (iterations without communication) count with their last value.
    """
    out = np.full((len(xs), len(grid)), np.nan)
    for place, (x, y) in enumerate(zip(xs, ys, strict=True)):
        good = np.isfinite(y) & (y > 0) & np.isfinite(x)
        x, y = x[good], y[good]
        if not len(x):
            continue
        last = np.append(np.diff(x) > 0, True)
        x, y = x[last], np.log10(y[last])
        out[place] = 10.0 ** np.interp(grid, x, y, left=np.nan, right=np.nan)
    return out


def _window(lines: Sequence[Line]) -> tuple[float, float]:
    """What to show of the vertical axis: a diverging method and bounds far above leave it at the top."""
    # methods that fall far below the others would press those together, so their tails leave the figure
    firsts = [line.y[0] for line in lines if len(line.y) and np.isfinite(line.y[0])]
    lows = sorted(float(np.nanmin(line.low)) for line in lines if np.isfinite(line.low).any())
    if not firsts or not lows:
        return 1e-3, 1.0
    top = 3.0 * max(firsts)
    bottom = max(lows[0], lows[len(lows) // 2] * TAIL)
    return min(bottom / 2.0, top / 100.0), top


def accuracy(solution: dict[str, float] | None) -> float:
    """Below this a gap says nothing: f* is not known better, or f(x) - f* is lost in rounding."""
    return 0.0 if solution is None else float(solution["accuracy"])


def clean(figure_: Figure) -> tuple[Line, ...]:
    """The lines that have anything to show."""
    return tuple(line for line in figure_.lines if len(line.x) and np.isfinite(line.y).any())
