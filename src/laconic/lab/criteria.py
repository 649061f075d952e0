"""What "best" means when methods are tuned: a number for a curve, and one for the curves of several seeds."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from laconic.lab.sweep import Recording

SKIPPED = 0.1  # of what was recorded, at the beginning, is not judged by `MeanLog`


class Criterion(ABC):
    """Judges curves; lower is better, infinity is nothing at all.

    `until` is the gap at which a curve need not go on, None where it must.
    """

    until: float | None = None

    @abstractmethod
    def score(self, curve: Recording) -> float:
        """The score of one curve."""

    def combined(self, scores: Sequence[float]) -> float:
        """The score of the curves of several seeds."""
        return statistics.median_high(scores)

    def __str__(self) -> str:
        return type(self).__name__


@dataclass(frozen=True)
class ToTarget(Criterion):
    """The cost at which the gap (||grad f||^2 where f* is not known) is first seen at most `target`; median over seeds.

    `cost` is a column of the trace: "uplink" (mean bytes per worker), "rounds", "downlink" or "iteration".

    >>> curve = Recording()
    >>> curve.add(0, 1, 80.0, 0.0, 9.0, 4.0, 1.0), curve.add(1, 2, 160.0, 80.0, 5.5, 0.5, 0.1)
    (None, None)
    >>> ToTarget(1.0).score(curve)
    160.0
    """

    target: float
    cost: str = "uplink"

    def __post_init__(self) -> None:
        if not (isinstance(self.target, (int, float)) and math.isfinite(self.target) and self.target > 0):
            raise ValueError(f"tune(target={self.target!r}) : target must be a number > 0")
        costs = ("uplink", "downlink", "rounds", "iteration")
        if self.cost not in costs:
            raise ValueError(f"ToTarget(cost={self.cost!r}) : cost must be one of {', '.join(map(repr, costs))}")

    @property
    def until(self) -> float:  # type: ignore[override]
        return self.target

    def score(self, curve: Recording) -> float:
        there = np.flatnonzero(curve.measure <= self.target)
        return float(curve[self.cost][there[0]]) if len(there) else math.inf

    def __str__(self) -> str:
        what = {"uplink": "uplink bytes per worker", "downlink": "downlink bytes per worker"}.get(self.cost, self.cost)
        return f"{what} to {self.target:g}"


@dataclass(frozen=True)
class MeanLog(Criterion):
    """The mean of log10 of the gap (||grad f||^2 where f* is not known) over the last 90% of what was recorded.

    The mean over seeds: the geometric mean of gaps. Curves that diverged are discarded.

    >>> curve = Recording()
    >>> for k in range(10):
    ...     curve.add(k, k, 8.0 * k, 0.0, 0.0, 10.0**-k, 1.0)
    >>> MeanLog().score(curve)
    -5.0
    """

    floor: float = 1e-16  # gaps below count as this

    def score(self, curve: Recording) -> float:
        measure = curve.measure
        judged = measure[math.ceil(SKIPPED * len(measure)) :] if len(measure) > 1 else measure
        if curve.diverged or not np.isfinite(judged).all():
            return math.inf
        return float(np.mean(np.log10(np.maximum(judged, self.floor))))

    def combined(self, scores: Sequence[float]) -> float:
        return math.fsum(scores) / len(scores) if all(map(math.isfinite, scores)) else math.inf

    def __str__(self) -> str:
        return "mean log10 gap over the last 90%"


def end(curve: Recording) -> float:
    """Where a curve ended, to tell apart those that a criterion does not: infinite where it diverged."""
    last = curve.measure[-1] if len(curve.measure) else math.inf
    return float(last) if math.isfinite(last) and not curve.diverged else math.inf
