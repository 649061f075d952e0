"""The constant stepsize."""

from __future__ import annotations

from dataclasses import dataclass

from laconic.core.schedule import Schedule
from laconic.core.theory import Guarantee


@dataclass(frozen=True)
class Constant(Schedule):
    """Every step is the method's.

    >>> Constant().factor(7)
    1.0
    """

    name = "constant"
    example = "constant"
    constant = True

    def factor(self, iteration: int) -> float:
        return 1.0

    def guarantee(self, promise: Guarantee) -> Guarantee:
        return promise
