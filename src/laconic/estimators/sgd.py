"""Minibatch stochastic gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from laconic.core.entry import Count, Source
from laconic.core.estimator import Estimate, Estimator, Probe, of_server
from laconic.core.link import Link
from laconic.core.problem import Oracles


@dataclass(frozen=True)
class SGD(Estimator):
    """v_i = the mean gradient of `batch` of worker i's terms, drawn with replacement, fresh every time.

    Parameters
    ----------
    batch : terms per worker and estimate.

    >>> str(SGD(batch=32))
    'sgd(batch=32)'
    """

    batch: Annotated[int, Count(1)] = 1

    name = "sgd"
    aliases = ("minibatch",)
    example = "sgd(batch=32)"
    unbiased = True
    source = Source("Robbins, Monro", 1951, "A stochastic approximation method")

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        batch = oracles.sample(link.keys("batch"), self.batch)
        probe = Probe(x, lambda y: oracles.gradients(y, batch=batch), oracles.gradients, of_server(oracles))
        return Estimate(oracles.gradients(x, batch=batch), None, probe)

    def estimate(self, x: Tensor, state: Any, oracles: Oracles, link: Link) -> Estimate:
        return self.init(x, oracles, link)

    def scatter(self) -> float:
        return 1.0 / self.batch
