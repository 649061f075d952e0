"""What suites of checks are made of, and how much of everything they take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Suite = Iterator[tuple[str, Callable[[], None]]]  # names and what to do; several with one name count as one check


@dataclass(frozen=True)
class Amounts:
    """How much there is: iterations of a run, of a long one, draws of a mean, points, and seconds of one mean."""

    iterations: int
    long: int
    draws: int
    points: int
    seconds: float


QUICK = Amounts(iterations=6, long=30, draws=24, points=3, seconds=0.04)
WHOLE = Amounts(iterations=24, long=600, draws=200, points=8, seconds=2.0)
