"""The full gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from laconic.core.estimator import Estimate, Estimator, Probe, of_server
from laconic.core.link import Link
from laconic.core.problem import Oracles


@dataclass(frozen=True)
class FullGradient(Estimator):
    """v_i = grad f_i(x).

    >>> str(FullGradient())
    'full'
    """

    name = "full"
    aliases = ("full_gradient",)
    example = "full"
    exact = True
    unbiased = True
    vanishing = True

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        return Estimate(oracles.gradients(x), None, Probe(x, oracles.gradients, oracles.gradients, of_server(oracles)))

    def estimate(self, x: Tensor, state: Any, oracles: Oracles, link: Link) -> Estimate:
        return self.init(x, oracles, link)
