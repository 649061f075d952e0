"""Schedules: how a stepsize changes over a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from laconic.core.entry import Entry
from laconic.core.theory import Guarantee, Setting


class Schedule(Entry, ABC):
    """The stepsize of iteration k is `factor(k)` times the method's.

    `constant`: the factor is always 1.
    """

    kind: ClassVar[str] = "schedule"
    constant: ClassVar[bool] = False

    @abstractmethod
    def factor(self, iteration: int) -> float:
        """What multiplies the stepsize with which x^k becomes x^(k+1), k = 0, 1, ...; positive."""

    def settled(self, setting: Setting, step: float) -> Schedule:
        """The same schedule with every open parameter (None) replaced by its theorem's number at that stepsize."""
        return self

    def guarantee(self, promise: Guarantee) -> Guarantee:
        """What is left of a constant step's promise."""
        return promise.at(float("inf"))
