"""Regularisers: r in f(x) + r(x), convex, perhaps not smooth or not finite everywhere, known to everyone."""

from __future__ import annotations

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
