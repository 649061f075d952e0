"""Stepsizes that decrease like 1 / sqrt(k)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from laconic.core.entry import Source
from laconic.core.schedule import Schedule


@dataclass(frozen=True)
class InverseRoot(Schedule):
    """step_k = step / sqrt(1 + k).

    For estimates that do not vanish at the solution (signs, normalised vectors), with which a constant step never
    settles: the steps go to zero and their sum does not stay finite.

    >>> [InverseRoot().factor(k) for k in (0, 3, 8)]
    [1.0, 0.5, 0.3333333333333333]
    """

    name = "inverse_root"
    example = "inverse_root"
    source = Source(
        "Bernstein, Wang, Azizzadenesheli, Anandkumar",
        2018,
        "signSGD: compressed optimisation for non-convex problems",
        "1802.04434",
    )

    def factor(self, iteration: int) -> float:
        return 1.0 / math.sqrt(1.0 + iteration)
