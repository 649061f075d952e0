"""Inner solver: accelerated gradient descent on a strongly convex subproblem, with a relative stopping test."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from laconic.core.rows import norm2

FLOOR = 1e-14  # below this gradient norm rounding decides


def minimise(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    smooth: float,
    convex: float,
    relative: float,
    most: int = 10_000,
) -> Tensor:
    """Points w (rows, *shape) with ||gradient(w)|| <= relative ||start - w|| in every row (or at most 1e-14).

    `gradient` maps (rows, *shape) to the same; each row is a subproblem, `smooth`-smooth and `convex`-strongly convex.
    At least one step is taken; the last point is returned when `most` steps are not enough.
    """
    root = math.sqrt(convex / smooth)
    momentum = (1.0 - root) / (1.0 + root)
    w = y = start
    for _ in range(most):
        ahead = y - gradient(y) / smooth
        y = ahead + momentum * (ahead - w)
        w = ahead
        slope = norm2(gradient(w))
        if bool((slope <= (relative**2 * norm2(start - w)).clamp(min=FLOOR**2)).all()):
            break
    return w
