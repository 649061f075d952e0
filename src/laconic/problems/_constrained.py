"""Reference saddle points of f + r: proximal extragradient steps to rounding, certified by the shortest residual."""

from __future__ import annotations

import math

from torch import Tensor

from laconic.core import rows
from laconic.core.problem import Oracles, Solution, single_threaded
from laconic.core.regulariser import Regulariser

STEPS = 200_000  # at most
PATIENCE = 2_000  # steps without a shorter residual, after which this is rounding


@single_threaded
def saddle_point(oracles: Oracles, regulariser: Regulariser, smooth: float, mu: float) -> Solution:
    """The point with 0 in F + dr, for F mu-strongly monotone: ||z - z*|| <= ||s|| / mu for any s in F(z) + dr(z)."""

    def operator(z: Tensor) -> Tensor:
        return rows.mean(oracles.gradients(z))

    step = 1.0 / (math.sqrt(smooth**2 + mu**2) + mu)
    z = best = oracles.start()
    least, since = math.inf, 0
    for _ in range(STEPS):
        slope = operator(z)
        error = rows.square(regulariser.least_subgradient(z, slope))
        best, least, since = (z, error, 0) if error < least else (best, least, since + 1)
        if least == 0.0 or since > PATIENCE:
            break
        ahead = regulariser.prox(z - step * slope, step)
        z = regulariser.prox(z - step * operator(ahead), step)
    return Solution(best, math.nan, least / mu**2)
