"""Where importances are sought: the scaled simplex and the cube, and the steps of the search."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from laconic.core import rows
from laconic.core.entry import Entry, Interval, Source


class Domain(Entry, ABC):
    """A convex set of importances w, one row per worker, and a first-order step inside it."""

    kind: ClassVar[str] = "domain"

    @abstractmethod
    def start(self, like: Tensor) -> Tensor:
        """Where the search begins, of the shape (rows, d) and dtype of `like`."""

    @abstractmethod
    def moved(self, weights: Tensor, descent: Tensor) -> Tensor:
        """w (rows, d) moved by `descent` (rows, d), whose largest magnitude is the stepsize, and back in the set."""


@dataclass(frozen=True)
class Simplex(Domain):
    """The scaled simplex {w >= 0, sum w = d}, searched by entropic mirror descent from w = 1.

    A step is w <- w exp(descent), scaled back to the sum d; it is done in logarithms, less their largest, so nothing
    overflows. Weights that have become 0 can come back.

    >>> str(Simplex())
    'simplex'
    """

    name = "simplex"
    example = "simplex"
    source = Source(
        "Beck, Teboulle",
        2003,
        "Mirror descent and nonlinear projected subgradient methods for convex optimization",
        where="Section 5, the entropic descent algorithm",
    )

    def start(self, like: Tensor) -> Tensor:
        return torch.ones_like(like)

    def moved(self, weights: Tensor, descent: Tensor) -> Tensor:
        logs = weights.clamp(min=torch.finfo(weights.dtype).tiny).log_().add_(descent)
        fresh = logs.sub_(logs.amax(dim=1, keepdim=True)).exp_()
        return fresh.mul_(weights.shape[1] / rows.dot(fresh, torch.ones_like(fresh))[:, None])


@dataclass(frozen=True)
class Cube(Domain):
    """The cube [low, high]^d, searched by projected gradient from its centre.

    Parameters
    ----------
    low, high : the least and largest importance of a coordinate.

    >>> str(Cube(low=0.5))
    'cube(low=0.5)'
    """

    low: Annotated[float, Interval(0.0)] = 1.0
    high: Annotated[float, Interval(0.0, open="low")] = 2.0

    name = "cube"
    example = "cube(low=1.0, high=2.0)"
    source = Source(
        "Goldstein", 1964, "Convex programming in Hilbert space", where="the projected gradient method; from memory"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high < self.low:
            raise ValueError(f"Cube(high={self.high!r}) : high must be at least low={self.low!r}")

    def start(self, like: Tensor) -> Tensor:
        return torch.full_like(like, 0.5 * self.low + 0.5 * self.high)

    def moved(self, weights: Tensor, descent: Tensor) -> Tensor:
        return (weights + descent).clamp_(self.low, self.high)


def scale_free(a: Tensor, b: Tensor) -> Tensor:
    """a . b per row (rows, d), scaled to a largest magnitude of 1; zero where that is not a finite positive number."""
    product = _scaled(_scaled(a) * _scaled(b))
    there = torch.isfinite(product).all(dim=1, keepdim=True)
    return torch.where(there, product, 0.0)


def _scaled(v: Tensor) -> Tensor:
    return v / v.abs().amax(dim=1, keepdim=True) if v.shape[1] else v


def importances(
    domain: Domain,
    weights: Tensor,
    x: Tensor,
    g: Tensor,
    gradient: Callable[[Tensor], Tensor],
    *,
    trial: float,
    step: float,
    steps: int,
) -> Tensor:
    """w after some steps on phi(w) = f(x - trial w . g), each row a problem of its own.

    The gradient of phi is -trial g . grad f(x - trial w . g); a step goes against it, as far in the largest coordinate
    as `step`, whatever its scale. A row whose gradient vanishes or is not finite stays where it is: it would stay
    there at every further step. All rows take part in all evaluations, so that their number depends on nothing else.

    Parameters
    ----------
    domain : of w.
    weights : w to begin with, (rows, d), in the dtype that arithmetic is done in.
    x, g : (rows, *shape), or x of (*shape).
    gradient : of f at one point per row, (rows, *shape) to the same.
    trial : the stepsize eta of phi.
    step, steps : the stepsize of the search, and how many evaluations of `gradient` it takes.
    """
    direction = g.reshape(weights.shape).to(weights.dtype)
    for _ in range(steps):
        there = x - (trial * weights * direction).view(g.shape).to(g.dtype)
        slope = gradient(there).reshape(weights.shape).to(weights.dtype)
        ascent = scale_free(direction, slope)  # minus the gradient of phi is trial times g . slope
        moves = (ascent != 0.0).any(dim=1, keepdim=True)
        weights = torch.where(moves, domain.moved(weights, step * ascent), weights)
    return weights
