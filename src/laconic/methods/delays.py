"""Delay models: fixed, exponential, and workers with a speed of their own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np

from laconic.core.delay import Delays
from laconic.core.entry import Interval, Range, Source
from laconic.core.keys import Keys

_FIXED = Source(
    "Tyurin, Richtarik",
    2023,
    "Optimal Time Complexities of Parallel Stochastic Optimization Methods Under a Fixed Computation Model",
    "2305.12387",
    "Section 1, the fixed computation model",
)


@dataclass(frozen=True)
class Seconds(Range):
    """Seconds of every worker, or a tuple with those of each.

    Neither 0, with which a worker starves all others, nor infinity, with which it starves itself.
    """

    def holds(self, value: Any) -> bool:
        one = Interval(0.0, open="low")
        if isinstance(value, tuple):
            return len(value) > 0 and all(one.holds(part) for part in value)
        return one.holds(value)

    def examples_outside(self) -> tuple[Any, ...]:
        return (0.0, -1.0, math.nan, math.inf, "slow", (), (1.0, 0.0), (1.0, math.inf))

    def __str__(self) -> str:
        return "a number of seconds > 0, or a tuple of them, one for each worker; 0 or infinity would starve a worker"


Times = Annotated[float | tuple[float, ...], Seconds()]


def _of_each(seconds: float | tuple[float, ...], n: int, owner: Delays) -> np.ndarray:
    """The seconds of n workers, (n,)."""
    if isinstance(seconds, tuple) and len(seconds) != n:
        raise ValueError(
            f"{owner} : it has delays of {len(seconds)} workers, and there are {n}; give {n} of them, or one for all"
        )
    return np.broadcast_to(np.asarray(seconds, dtype=np.float64), (n,))


@dataclass(frozen=True)
class FixedDelay(Delays):
    """Worker i takes the same time for every gradient.

    Parameters
    ----------
    seconds : of every worker, or a tuple with those of each.

    >>> str(FixedDelay((1, 1, 2, 3, 5, 8)))
    'fixed_delay(seconds=(1, 1, 2, 3, 5, 8))'
    """

    seconds: Times = 1.0

    name = "fixed_delay"
    example = "fixed_delay(2.0)"
    source = _FIXED

    def draw(self, keys: Keys) -> np.ndarray:
        return _of_each(self.seconds, keys.n, self)[keys.workers]

    def bounds(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        each = _of_each(self.seconds, n, self)
        return each, each


@dataclass(frozen=True)
class ExponentialDelay(Delays):
    """Worker i takes -mean_i log u, u uniform in (0, 1], for a gradient, every time another.

    Parameters
    ----------
    mean : seconds of every worker, or a tuple with those of each.

    >>> str(ExponentialDelay(2.0))
    'exponential_delay(mean=2.0)'
    """

    mean: Times = 1.0

    name = "exponential_delay"
    example = "exponential_delay(2.0)"
    source = Source(
        "Lee, Lam, Pedarsani, Papailiopoulos, Ramchandran",
        2018,
        "Speeding Up Distributed Machine Learning Using Codes",
        "1512.02673",
        "Section III, with no least time",
    )

    def draw(self, keys: Keys) -> np.ndarray:
        return -_of_each(self.mean, keys.n, self)[keys.workers] * np.log1p(-_uniform(keys))

    def bounds(self, n: int) -> None:
        _of_each(self.mean, n, self)


@dataclass(frozen=True)
class Speeds(Delays):
    """Every worker has a speed of its own, drawn once: it takes ratio^u times what another model says, u in [0, 1).

    The speeds are a function of the seed alone: in one run they are the same for all methods.

    Parameters
    ----------
    ratio : how many times slower the slowest worker can be than the fastest.
    delay : the model of the times before.

    >>> str(Speeds(8.0, ExponentialDelay()))
    'speeds(ratio=8.0, delay=exponential_delay)'
    """

    ratio: Annotated[float, Interval(1.0)] = 4.0
    delay: Delays = field(default_factory=FixedDelay)

    name = "speeds"
    example = "speeds(ratio=8.0)"
    source = _FIXED

    def draw(self, keys: Keys) -> np.ndarray:
        once = dataclasses.replace(keys, step=0, stream="speeds")
        return self.delay.draw(keys) * self.ratio ** _uniform(once)

    def bounds(self, n: int) -> tuple[np.ndarray, np.ndarray] | None:
        inner = self.delay.bounds(n)
        return None if inner is None else (inner[0], self.ratio * inner[1])


def _uniform(keys: Keys) -> np.ndarray:
    """One number in [0, 1) per row, (rows,)."""
    return keys.uniform(1)[:, 0].numpy()
