"""Schedules: how a stepsize changes over a run."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import ClassVar

from laconic.core.entry import Entry
from laconic.core.theory import Guarantee, Setting


class Schedule(Entry, ABC):
    """The stepsize of iteration k is `factor(k)` times the method's; factors are at most 1.

    `constant`: the factor is always 1.
    """

    kind: ClassVar[str] = "schedule"
    constant: ClassVar[bool] = False

    @abstractmethod
    def factor(self, iteration: int) -> float:
        """What multiplies the stepsize with which x^k becomes x^(k+1), k = 0, 1, ...; in (0, 1]."""

    def settled(self, setting: Setting, step: float) -> Schedule:
        """The same schedule with every open parameter (None) replaced by its theorem's number at that stepsize."""
        return self

    def guarantee(self, promise: Guarantee) -> Guarantee:
        """What is left of a constant step's promise: its largest step, which no step exceeds.

        Rate, Lyapunov function and plateau belong to one stepsize, so they go.
        """
        said = f"the theorem's step is for every iteration, and {self} never exceeds it; its rate is a constant step's"
        return dataclasses.replace(
            promise,
            rate=None,
            lyapunov=None,
            gap_factor=None,
            plateau=math.nan,
            tight=False,
            average=None,
            assumes=(*promise.assumes, said),
        )
