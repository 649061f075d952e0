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


@dataclass(frozen=True)
class Recursion:
    """How estimates follow the gradients when x moves by r; theorems about biased estimators are made of it.

    With e_i = v_i - grad f_i(x), l the smoothness of single terms in mean square, and some s <= kept < 1:
    mean E||e_i+||^2 <= kept mean ||e_i||^2 + noise l^2 r^2,
    E||mean e_i+||^2 <= s ||mean e_i||^2 + ((kept - s) mean ||e_i||^2 + noise l^2 r^2) / n,
    mean E||v_i+ - v_i||^2 <= (moved L_plus^2 + stirred l^2) r^2 + pulled mean ||e_i||^2.
    Where the estimator is not `vanishing`, multiples of the variance of single terms are added to all three.
    """

    kept: float = 0.0
    noise: float = 0.0
    moved: float = 1.0
    stirred: float = 0.0
    pulled: float = 0.0


class Estimator(Entry, ABC):
    """How a worker estimates grad f_i(x).

    `exact`: it is the gradient. `unbiased`: given the past, its mean is. `vanishing`: its error vanishes at the
    solution (variance reduction).
    """

    kind: ClassVar[str] = "estimator"
    exact: ClassVar[bool] = False
    unbiased: ClassVar[bool] = False
    vanishing: ClassVar[bool] = False

    @abstractmethod
    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        """The first estimate, at x^0."""

    @abstractmethod
    def estimate(self, x: Tensor, state: Any, oracles: Oracles, link: Link) -> Estimate:
        """The estimate at x, from the state of the last one, which stays untouched."""

    def renewal(self, terms: int) -> float:
        """The probability per estimate with which a worker of that many terms renews what it remembers of a term."""
        return float(self.exact)

    def recursion(self, terms: tuple[int, int]) -> Recursion | None:
        """Of workers with (fewest, most) terms, who draw independently; None where none is known."""
        return Recursion() if self.exact else None

    def scatter(self) -> float | None:
        """The variance of probe(x) - probe(y) over l^2 ||x - y||^2, given the past, independent over workers.

        None where the probe's differences are biased, or no such bound is known.
        """
        return 0.0 if self.exact else None

    def aged(self, state: Any, x: Tensor, oracles: Oracles) -> Tensor | None:
        """What remembered gradients of terms are away from those at x (*shape), per local worker (local,).

        Squared, averaged over terms, and added up over all estimates to come, by how many times each is expected to be
        used yet. None where nothing of the kind is remembered.
        """
        return None
