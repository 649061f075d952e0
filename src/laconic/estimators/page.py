"""PAGE: full gradients now and then, and in between how a minibatch's gradient changed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.estimator import Estimate, Estimator, Probe, Recursion, of_server
from laconic.core.link import Link
from laconic.core.problem import Batch, Oracles
from laconic.core.state import Worker


@dataclass
class Last:
    """Where the last estimate was made, and the estimate."""

    point: Worker  # (local, *shape)
    value: Worker  # v_i, (local, *shape)


@dataclass(frozen=True)
class PAGE(Estimator):
    """v_i becomes grad f_i(x) with probability p, each worker's own coin, else v_i + grad f_iB(x) - grad f_iB(last x).

    Parameters
    ----------
    batch : terms in the minibatch B, drawn with replacement.
    probability : p; None is batch / (batch + number of the worker's terms), the paper's choice for a large m.

    The start is the full gradient. The error e_i = v_i - grad f_i(x) obeys E||e_i+||^2 <= (1 - p) (||e_i||^2 +
    l^2 ||x+ - x||^2 / batch) with the smoothness l of single terms. Theorems are stated for one p for all workers: with
    the default and unequal numbers of terms there are none.

    >>> str(PAGE(batch=8))
    'page(batch=8)'
    """

    batch: Annotated[int, Count(1)] = 1
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "page"
    example = "page(batch=8)"
    vanishing = True
    source = Source(
        "Li, Bao, Zhang, Richtarik",
        2021,
        "PAGE: a simple and optimal probabilistic gradient estimator for nonconvex optimization",
        "2008.10898",
    )

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        v = oracles.gradients(x)
        last = Last(x.expand(v.shape).clone(), v.clone())
        return Estimate(v, last, Probe(x, oracles.gradients, oracles.gradients, of_server(oracles)))

    def estimate(self, x: Tensor, state: Last, oracles: Oracles, link: Link) -> Estimate:
        coins = link.coins(self._probabilities(oracles)).numpy()
        whole, rest = np.flatnonzero(coins), np.flatnonzero(~coins)
        batch = oracles.sample(link.keys("batch"), self.batch, rest)
        at = torch.from_numpy(rest)
        base = state.value[at] - oracles.gradients(state.point[at], rest, batch)

        def same(y: Tensor) -> Tensor:
            return self._at(y, base, whole, batch, oracles)

        v = same(x)
        probe = Probe(x, same, oracles.gradients, of_server(oracles))
        return Estimate(v, Last(x.expand(v.shape).clone(), v.clone()), probe)

    def _at(self, y: Tensor, base: Tensor, whole: np.ndarray, batch: Batch, oracles: Oracles) -> Tensor:
        """The full gradients at y of `whole`, and base + grad f_iB(y) of the others."""
        if not len(batch.rows):
            return oracles.gradients(y)
        out = base.new_empty((len(whole) + len(batch.rows), *oracles.shape))
        for rows, part in ((whole, None), (batch.rows, batch)):
            index = torch.from_numpy(rows)
            there = y if y.dim() == len(oracles.shape) else y[index]
            slopes = oracles.gradients(there, rows, part)
            out[index] = slopes if part is None else base + slopes
        return out

    def _probabilities(self, oracles: Oracles) -> Tensor:
        """p of each local worker, (local,)."""
        terms = torch.from_numpy(oracles.terms()).to(torch.float64)
        return self.batch / (self.batch + terms) if self.probability is None else terms.fill_(self.probability)

    def renewal(self, terms: int) -> float:
        return self.probability if self.probability is not None else self.batch / (self.batch + terms)

    def recursion(self, terms: tuple[int, int]) -> Recursion | None:
        """With q = sqrt(1 - p): v_i moves by the gradient less e_i with p, else by a minibatch difference."""
        p = self.renewal(terms[1])
        if p != self.renewal(terms[0]):
            return None
        q = math.sqrt(1.0 - p)
        pulled = p * (1.0 + 1.0 / q) if q > 0.0 else 0.0
        return Recursion(1.0 - p, q * q / self.batch, 1.0 + p * q, q * q / self.batch, pulled)

    def scatter(self) -> float:
        return 1.0 / self.batch
