"""Stepsizes that decrease like 1 / k."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from laconic.core.entry import Count, Interval, Source
from laconic.core.schedule import Schedule
from laconic.core.theory import Guarantee, Setting, known


@dataclass(frozen=True)
class Decreasing(Schedule):
    """step_k = step * shift / (shift + k).

    Where a constant step ends in a neighbourhood of x* that is proportional to the step, this one goes on: errors
    decrease like 1 / K. With the theorem's shift 4 / (mu step) the steps are 4 / (mu (shift + k)). Theorems about
    averages (error feedback) then take the weights shift + k. The O(1 / K) rates have constants that are recalled.

    Parameters
    ----------
    shift : after so many iterations the step is half of what it was; None is 4 / (mu step).

    >>> [Decreasing(shift=3.0).factor(k) for k in (0, 1, 3)]
    [1.0, 0.75, 0.5]
    """

    shift: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "decreasing"
    example = "decreasing"
    source = Source(
        "Beznosikov, Horvath, Richtarik, Safaryan",
        2020,
        "On biased compression for distributed learning",
        "2002.12410",
        "steps 4 / (mu (kappa + k)); compare Stich, arXiv:1907.04232, Lemma 2",
    )

    def settled(self, setting: Setting, step: float) -> Decreasing:
        return self if self.shift is not None else dataclasses.replace(self, shift=_theirs(setting, step, 4.0))

    def factor(self, iteration: int) -> float:
        shift = _number(self, self.shift)
        return shift / (shift + iteration)

    def guarantee(self, promise: Guarantee) -> Guarantee:
        left = super().guarantee(promise)
        if promise.average is None:
            return left
        shift = _number(self, self.shift)
        return dataclasses.replace(left, average=lambda k: math.log(shift + k), sure=False)


@dataclass(frozen=True)
class TwoPhase(Schedule):
    """step_k = step in the first half of the horizon, then step * shift / (shift + k - horizon / 2).

    The first half forgets x^0 at the rate of a constant step, the second averages the noise out: Stich's way to have
    the exponential and the 1 / K term both at their best. With the theorem's shift 2 / (mu step) the second half has
    steps 2 / (mu (shift + k - horizon / 2)). A horizon of at most shift / 2 is too short for a second half, and the
    step stays. Theorems about averages take no weight in the first half and (shift + k - horizon / 2)^2 then.

    Parameters
    ----------
    horizon : the number of iterations planned; beyond it the steps go on decreasing.
    shift : after so many iterations of the second half the step is half of what it was; None is 2 / (mu step).

    >>> [TwoPhase(horizon=10, shift=2.0).factor(k) for k in (0, 4, 5, 7, 9)]
    [1.0, 1.0, 1.0, 0.5, 0.3333333333333333]
    """

    horizon: Annotated[int, Count(1)]
    shift: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "two_phase"
    example = "two_phase(horizon=1000)"
    source = Source(
        "Stich",
        2019,
        "Unified optimal analysis of the (stochastic) gradient method",
        "1907.04232",
        "Lemma 3",
    )

    def settled(self, setting: Setting, step: float) -> TwoPhase:
        return self if self.shift is not None else dataclasses.replace(self, shift=_theirs(setting, step, 2.0))

    def factor(self, iteration: int) -> float:
        shift = _number(self, self.shift)
        return shift / (shift + max(iteration - self._half(shift), 0))

    def guarantee(self, promise: Guarantee) -> Guarantee:
        left = super().guarantee(promise)
        if promise.average is None:
            return left
        shift = _number(self, self.shift)
        half = self._half(shift)
        if half == math.inf:
            return dataclasses.replace(left, average=promise.average)

        def average(k: int) -> float:
            return 2.0 * math.log(shift + k - half) if k >= half else -math.inf

        return dataclasses.replace(left, average=average, sure=False)

    def _half(self, shift: float) -> float:
        """The iteration with which the second half begins."""
        return math.inf if self.horizon <= shift / 2.0 else (self.horizon + 1) // 2


def _theirs(setting: Setting, step: float, numerator: float) -> float:
    (mu,) = known(mu=setting.constants.mu)
    return numerator / (mu * step)


def _number(schedule: Schedule, shift: float | None) -> float:
    if shift is None:
        raise ValueError(f"{schedule}: shift is not a number yet; run the method that settled(setting) gives")
    return shift
