"""Inner solver: accelerated gradient descent on a strongly convex subproblem, with a relative stopping test."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from laconic.core.rows import norm2

FLOOR = 1e-14  # below this gradient norm rounding decides
ROUNDING = 4.0  # and below this many times the rounding of the largest number in a gradient
SHORT = "an inner solver stopped short of its accuracy (gradient norm over what is allowed)"

Remark = Callable[[str, float], None]


def minimise(
    gradient: Callable[[Tensor], Tensor],
    start: Tensor,
    smooth: float,
    convex: float,
    relative: float,
    most: int = 10_000,
    remark: Remark | None = None,
) -> Tensor:
    """Points w (rows, *shape) with ||gradient(w)|| <= relative ||start - w|| in every row (or down to rounding).

    `gradient` maps (rows, *shape) to the same; each row is a subproblem, `smooth`-smooth and `convex`-strongly convex.
    At least one step is taken; the last point is returned when `most` steps are not enough, or when it is not finite.
    `remark` (of a link) is then told the worst ratio of a row's gradient norm to what is allowed.

    All rows are asked for until the last one is done; several workers' subproblems are for `minimise_rows`.
    """
    everywhere = start.clone()

    def of_rows(w: Tensor, rows: np.ndarray) -> Tensor:
        if len(rows) == len(everywhere):
            return gradient(w)
        everywhere[torch.from_numpy(rows)] = w
        return gradient(everywhere)[torch.from_numpy(rows)]

    return minimise_rows(of_rows, start, smooth, convex, relative, most, remark)


def minimise_rows(
    gradient: Callable[[Tensor, np.ndarray], Tensor],
    start: Tensor,
    smooth: float,
    convex: float,
    relative: float,
    most: int = 10_000,
    remark: Remark | None = None,
) -> Tensor:
    """As `minimise`, with gradients of the rows that are asked for: `gradient(w, rows)`, w being theirs.

    A row that is done asks for nothing any more, so what a worker computes depends on nobody who shares its block.
    """
    root = math.sqrt(convex / smooth)
    momentum = (1.0 - root) / (1.0 + root)
    rounding = (ROUNDING * torch.finfo(start.dtype).eps * smooth) ** 2
    found, rows = start.clone(), np.arange(len(start))
    w = y = start
    worst = 0.0
    for step in range(1, most + 1):
        if not len(rows):
            break
        ahead = y - gradient(y, rows) / smooth
        y = ahead + momentum * (ahead - w)
        w = ahead
        slope = norm2(gradient(w, rows))
        allowed = (relative**2 * norm2(start - w)).clamp(min=FLOOR**2)
        allowed = torch.maximum(allowed, rounding * norm2(w))
        short = ~(slope <= allowed)
        over = ~short | ~torch.isfinite(slope) if step < most else torch.ones_like(short)
        if not bool(over.any()):
            continue
        found[torch.from_numpy(rows)[over]] = w[over]
        if bool((over & short).any()):
            worst = max(worst, _ratio((slope / allowed)[over & short]))
        w, y, start, rows = w[~over], y[~over], start[~over], rows[(~over).numpy()]
    if worst > 0.0 and remark is not None:
        remark(SHORT, worst)
    return found


def _ratio(squares: Tensor) -> float:
    """The root of the largest, infinite where something is not finite."""
    return math.sqrt(float(squares.max())) if bool(torch.isfinite(squares).all()) else math.inf
