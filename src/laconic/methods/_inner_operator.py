"""Inner solver for operators: extragradient steps on a strongly monotone subproblem, with a relative stopping test."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from laconic.core.rows import square
from laconic.methods._inner import FLOOR, ROUNDING, SHORT


def zero(
    operator: Callable[[Tensor], Tensor],
    start: Tensor,
    smooth: float,
    monotone: float,
    relative: float,
    remark: Callable[[str, float], None],
    most: int = 10_000,
) -> Tensor:
    """A point u (*shape) with ||operator(u)|| <= relative ||start - u|| (or down to rounding).

    The operator is `smooth`-Lipschitz and `monotone`-strongly monotone; a step calls it twice, and so does the test
    once at the start. At least one step is taken; the last point is returned when `most` steps are not enough, or when
    it is not finite, and `remark` (of a link) is then told the ratio of the norm to what is allowed.
    """
    # at 1 / L the steepest direction of an L-smooth function would stand still
    step = min(0.5 / smooth, extragradient_step(smooth, monotone))
    u, slope, ratio = start, operator(start), 0.0
    for count in range(1, most + 1):
        u = u - step * operator(u - step * slope)
        slope = operator(u)
        allowed = max(relative**2 * square(start - u), FLOOR**2)
        allowed = max(allowed, (ROUNDING * torch.finfo(u.dtype).eps * smooth) ** 2 * square(u))
        norm2 = square(slope)
        if norm2 <= allowed:
            return u
        ratio = math.sqrt(norm2 / allowed)
        if count == most or not math.isfinite(norm2):
            break
    remark(SHORT, ratio)
    return u


def extragradient_step(smooth: float, monotone: float) -> float:
    """The largest s with s^2 smooth^2 + 2 s monotone <= 1: ||z - z*||^2 shrinks by 1 - s monotone per step of this."""
    return 1.0 / (math.sqrt(smooth**2 + monotone**2) + monotone)
