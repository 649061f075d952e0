"""Loopless SVRG."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.estimator import Estimate, Estimator, Probe, of_server
from laconic.core.link import Link
from laconic.core.problem import Oracles
from laconic.core.state import Worker
from laconic.estimators._terms import every_term, mean_of_squares, of_terms


@dataclass
class Reference:
    """Where each worker last took a full gradient."""

    point: Worker  # (local, *shape)
    gradient: Worker  # (local, *shape)


@dataclass(frozen=True)
class LSVRG(Estimator):
    """v_i = grad f_iB(x) - grad f_iB(w_i) + grad f_i(w_i); w_i becomes x with probability p, each worker's own coin.

    Parameters
    ----------
    batch : terms in the minibatch B, drawn with replacement.
    probability : p of a new reference point; None is batch / (number of the worker's terms), so that the refreshes
        cost as much as the minibatches.

    The reference moves before the estimate at x is made (the paper moves it after): with p = 1 every estimate is the
    full gradient.

    >>> str(LSVRG(batch=8))
    'lsvrg(batch=8)'
    """

    batch: Annotated[int, Count(1)] = 1
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "lsvrg"
    aliases = ("l_svrg",)
    example = "lsvrg(batch=8)"
    unbiased = True
    vanishing = True
    source = Source(
        "Kovalev, Horvath, Richtarik",
        2019,
        "Don't jump through hoops and remove those loops: SVRG and Katyusha are better without the outer loop",
        "1901.08689",
    )

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        gradient = oracles.gradients(x)
        reference = Reference(x.expand(gradient.shape).clone(), gradient)
        return Estimate(gradient.clone(), reference, Probe(x, oracles.gradients, oracles.gradients, of_server(oracles)))

    def estimate(self, x: Tensor, state: Reference, oracles: Oracles, link: Link) -> Estimate:
        reference = self._renewed(x, state, oracles, link)
        batch = oracles.sample(link.keys("batch"), self.batch)

        def same(y: Tensor) -> Tensor:
            return oracles.gradients(y, batch=batch) - correction

        correction = oracles.gradients(reference.point, batch=batch) - reference.gradient
        return Estimate(same(x), reference, Probe(x, same, oracles.gradients, of_server(oracles)))

    def _renewed(self, x: Tensor, state: Reference, oracles: Oracles, link: Link) -> Reference:
        rows = link.coins(self._renewals(oracles)).nonzero()[:, 0]
        if not len(rows):
            return state
        point, gradient = state.point.clone(), state.gradient.clone()
        there = x[rows] if x.dim() == point.dim() else x
        gradient[rows] = oracles.gradients(there, rows.numpy())
        point[rows] = there
        return Reference(point, gradient)

    def renewal(self, terms: int) -> float:
        return self.probability if self.probability is not None else min(1.0, self.batch / terms)

    def _renewals(self, oracles: Oracles) -> Tensor:
        """`renewal` of each local worker, (local,)."""
        terms = torch.from_numpy(oracles.terms()).to(torch.float64)
        return (self.batch / terms).clamp(max=1.0) if self.probability is None else terms.fill_(self.probability)

    def scatter(self) -> float:
        return 1.0 / self.batch

    def aged(self, state: Reference, x: Tensor, oracles: Oracles) -> Tensor:
        """||grad f_ij(w_i) - grad f_ij(x)||^2 for (1 - p) / p more estimates: the coin falls before each."""
        p, rows, terms = self._renewals(oracles), *every_term(oracles)
        moved = of_terms(state.point, rows, terms, oracles) - of_terms(x, rows, terms, oracles)
        return (1.0 - p) / p * mean_of_squares(moved, rows, oracles)
