"""Regularisers: r in f(x) + r(x), convex, perhaps not smooth or not finite everywhere, known to everyone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from laconic.core.entry import Entry


class Regulariser(Entry, ABC):
    """A convex function of x with a proximal operator, applied to one point (*shape) or to several (rows, *shape)."""

    kind: ClassVar[str] = "regulariser"

    @abstractmethod
    def value(self, x: Tensor) -> float:
        """r(x) at a point (*shape); infinite where x is not admitted."""

    @abstractmethod
    def prox(self, x: Tensor, step: float | Tensor) -> Tensor:
        """argmin_u r(u) + ||u - x||^2 / (2 step), a fresh tensor; `step` is positive and broadcasts against x."""

    @abstractmethod
    def least_subgradient(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The shortest vector of gradient + (subgradients of r at x), all (*shape): zero exactly at a minimiser."""

    def excess(self, x: Tensor, at: Tensor, gradient: Tensor) -> float:
        """r(x) - r(at) - <p, x - at> >= 0, p being the subgradient of r at `at` that is nearest to -gradient.

        Where `at` minimises f + r and gradient = grad f(at), this plus f(x) - f(at) - <gradient, x - at> is the gap.
        Regularisers that can give it without cancellation should.
        """
        p = self.least_subgradient(at, gradient) - gradient
        return self.value(x) - self.value(at) - math.fsum((p * (x - at)).flatten().tolist())

    def certificate(self, x: Tensor, gradient: Tensor, above: float) -> float:
        """The supremum of <gradient, x - u> + r(x) - r(u) over the u with r(u) <= above; infinite where not known.

        With gradient = grad f(x), f convex, and `above` = f(x) + r(x) less a lower bound of f, it bounds the gap of x.
        """
        return math.inf
