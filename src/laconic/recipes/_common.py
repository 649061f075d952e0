"""What recipes share: lines, ends and costs of the curves of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from laconic.lab.figures import Series
from laconic.lab.recipe import Ruling
from laconic.lab.run import Runs
from laconic.lab.trace import numbers

_POINTS = 400  # of a line; more cannot be seen


def seeds_of(runs: Runs, label: str) -> list[pd.DataFrame]:
    """The rows of a method, one table per seed."""
    frame = runs.trace
    mine = frame[frame["method"] == label]
    return [pd.DataFrame(rows) for _, rows in mine.groupby("seed")]


def line(runs: Runs, label: str, x: str, y: str, name: str = "", unit: float = 1.0) -> Series:
    """Column y over column x of a method's first seed, thinned out for drawing."""
    rows = seeds_of(runs, label)[0]
    kept = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _POINTS)).astype(int))
    return Series(name or label, numbers(rows, x)[kept] / unit, numbers(rows, y)[kept])


def tail(runs: Runs, label: str, column: str, share: float = 0.5) -> float:
    """The mean of a column over the last part of each seed's rows, and over the seeds: the height of a plateau."""
    means = []
    for rows in seeds_of(runs, label):
        values = numbers(rows, column)
        means.append(float(np.mean(values[int((1.0 - share) * len(values)) :])))
    return float(np.mean(means))


def last(runs: Runs, label: str, column: str) -> float:
    """The median over seeds of a column's last value."""
    return float(np.median([numbers(rows, column)[-1] for rows in seeds_of(runs, label)]))


def cost(runs: Runs, label: str, target: float, column: str = "uplink", measure: str = "gap") -> float:
    """The median over seeds of `column` where `measure` first reaches the target; infinite where it never does."""
    found = []
    for rows in seeds_of(runs, label):
        reached = np.flatnonzero(numbers(rows, measure) <= target)
        found.append(numbers(rows, column)[reached[0]] if len(reached) else math.inf)
    return float(np.median(found))


def ruled(good: bool) -> Ruling:
    """That a claim holds, or fails."""
    return Ruling.HOLDS if good else Ruling.FAILS


@contextmanager
def timed(minutes: dict[str, float], label: str) -> Iterator[None]:
    """Adds the minutes that its body takes to those of a label."""
    begun = time.perf_counter()
    yield
    minutes[label] = minutes.get(label, 0.0) + (time.perf_counter() - begun) / 60.0
