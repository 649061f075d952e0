"""Estimators: how each worker estimates its gradient. They are local: no estimator talks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from laconic.core.entry import Entry
from laconic.core.link import Link
from laconic.core.problem import Oracles


@dataclass(frozen=True)
class Probe:
    """Gradients on the same data as an estimate: `probe(x)` at another point, `probe.full(x)` on all data.

    `at` is the point of the estimate, (*shape) or (local, *shape); both calls give (local, *shape). `server`, to be
    called where the server is, gives gradients (*shape) of its own function; None where an estimator knows none.
    """

    at: Tensor
    same: Callable[[Tensor], Tensor]
    full: Callable[[Tensor], Tensor]
    server: Callable[[Tensor], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        return self.same(x)


def of_server(oracles: Oracles) -> Callable[[Tensor], Tensor]:
    """Gradients of the server's own copy of worker 0's function at a point (*shape), made where they are asked for."""
    return lambda x: oracles.server.gradients(x)[0]


@dataclass(frozen=True)
class Estimate:
    """One vector per local worker (local, *shape), owned by the caller, the estimator's next state, and a probe."""

    v: Tensor
    state: Any
    probe: Probe


class Estimator(Entry, ABC):
    """How a worker estimates grad f_i(x).

    `exact`: it is the gradient. `vanishing`: its variance vanishes at the solution (variance reduction).
    """

    kind: ClassVar[str] = "estimator"
    exact: ClassVar[bool] = False
    vanishing: ClassVar[bool] = False

    @abstractmethod
    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        """The first estimate, at x^0."""

    @abstractmethod
    def estimate(self, x: Tensor, state: Any, oracles: Oracles, link: Link) -> Estimate:
        """The estimate at x, from the state of the last one, which stays untouched."""

    def renewal(self, terms: int) -> float:
        """The probability per estimate with which a worker of that many terms takes a full gradient."""
        return float(self.exact)
