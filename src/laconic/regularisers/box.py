"""A box: every coordinate between two ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.regulariser import Regulariser
from laconic.core.rows import inner


@dataclass(frozen=True)
class Box(Regulariser):
    """r(x) = 0 where low <= x_j <= high for every j, and infinite elsewhere; its proximal operator is the projection.

    Parameters
    ----------
    low, high : the ends, the same for every coordinate; None is no end. `box(low=0.0, high=None)` is the orthant.

    >>> Box(low=0.0, high=1.0).prox(torch.tensor([3.0, -0.5, 0.25]), step=1.0).tolist()
    [1.0, 0.0, 0.25]
    """

    low: Annotated[float | None, Interval()] = -1.0
    high: Annotated[float | None, Interval()] = 1.0

    name = "box"
    example = "box(low=-1.0, high=1.0)"
    source = Source("Goldstein", 1964, "Convex programming in Hilbert space")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self._low > self._high:
            raise ValueError(f"Box(low={self.low!r}, high={self.high!r}) : low must be at most high")

    @property
    def _low(self) -> float:
        return -math.inf if self.low is None else float(self.low)

    @property
    def _high(self) -> float:
        return math.inf if self.high is None else float(self.high)

    def value(self, x: Tensor) -> float:
        return 0.0 if bool(((x >= self._low) & (x <= self._high)).all()) else math.inf

    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        return x.clamp(self._low, self._high)

    def least_subgradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        least = torch.where(x <= self._low, gradient.clamp_max(0.0), gradient)
        least = torch.where(x >= self._high, least.clamp_min(0.0), least)
        outside = (x < self._low) | (x > self._high)  # no subgradient at all
        return torch.where(outside, torch.full_like(least, math.inf), least)

    def excess(self, x: Tensor, at: Tensor, gradient: Tensor) -> float:
        if not math.isfinite(self.value(x)):
            return math.inf
        rises = torch.where(at <= self._low, gradient.clamp_min(0.0), torch.zeros_like(gradient))
        falls = torch.where(at >= self._high, gradient.clamp_max(0.0), torch.zeros_like(gradient))
        return inner(rises + falls, x - at)

    def certificate(self, x: Tensor, gradient: Tensor, above: float) -> float:
        if not math.isfinite(self.value(x)):
            return math.inf
        end = torch.where(gradient > 0.0, torch.full_like(x, self._low), torch.full_like(x, self._high))
        moved = torch.where(gradient == 0.0, torch.zeros_like(x), gradient * (x - end))
        return inner(moved, torch.ones_like(moved))
