"""The weighted average of a curve's iterates, where its theorem is about that."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from laconic.core.link import Link

PREFIX = "average/"  # of its tensors in a checkpoint


class Average:
    """sum_k w_k x^k / sum_k w_k, taken on with every iterate: mean <- mean + (w_k / W_k) (x^k - mean).

    Weights come as logs and W_k is kept as one, so that weights may grow or shrink geometrically without end. The mean
    is kept in float64, for late iterates change it by less than a short format can tell.
    """

    def __init__(self, weight: Callable[[int], float]) -> None:
        self._weight = weight
        self._total = -math.inf  # log W_k
        self.mean: Tensor | None = None  # None before the first weight

    def add(self, iteration: int, x: Tensor) -> None:
        """Takes x^k in; x stays untouched."""
        weight = self._weight(iteration)
        if weight == -math.inf:
            return
        high, low = max(self._total, weight), min(self._total, weight)
        self._total = high + math.log1p(math.exp(low - high))
        if self.mean is None:
            self.mean = x.double().clone()
        else:
            self.mean += math.exp(weight - self._total) * (x.double() - self.mean)

    def point(self, like: Tensor) -> Tensor:
        """The average in the format of an iterate; NaN before the first weight."""
        return torch.full_like(like, torch.nan) if self.mean is None else self.mean.to(like.dtype)

    async def capture(self, link: Link) -> dict[str, Tensor]:
        """What a checkpoint keeps, the server's mean on every party."""
        if self.mean is None:
            return {}
        total = torch.tensor(self._total, dtype=torch.float64)
        return {f"{PREFIX}mean": await link.show(self.mean), f"{PREFIX}total": total}

    def load(self, tensors: Mapping[str, Tensor], link: Link, x: Tensor) -> None:
        """Goes on from the checkpoint with these tensors; x is an iterate. Raises ValueError where they do not fit."""
        mean, total = tensors.get(f"{PREFIX}mean"), tensors.get(f"{PREFIX}total")
        if mean is None or total is None:
            return
        if mean.shape != x.shape:
            raise ValueError(f"the checkpoint's average is {tuple(mean.shape)} and the run needs {tuple(x.shape)}")
        self.mean = mean.clone() if link.holds_server else torch.full_like(mean, torch.nan)
        self._total = float(total)
