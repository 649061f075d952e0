"""MVR: momentum that corrects itself (STORM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.estimator import Estimate, Estimator, Probe, Recursion, of_server
from laconic.core.link import Link
from laconic.core.problem import Oracles
from laconic.core.state import Worker


@dataclass
class Last:
    """Where the last estimate was made, and the estimate."""

    point: Worker  # (local, *shape)
    value: Worker  # v_i, (local, *shape)


@dataclass(frozen=True)
class MVR(Estimator):
    """v_i becomes grad f_iB(x) + (1 - b) (v_i - grad f_iB(last x)), a fresh minibatch B at both points.

    Parameters
    ----------
    batch : terms in the minibatch B, drawn with replacement.
    rate : b, the weight of what is new; 1 is sgd.
    first : terms in the minibatch of the start; None is the full gradient.

    The error e_i = v_i - grad f_i(x) obeys E||e_i+||^2 <= (1 - b)^2 ||e_i||^2 + (2 (1 - b)^2 l^2 ||x+ - x||^2 +
    2 b^2 sigma^2) / batch with the smoothness l of single terms and the variance sigma^2 of their gradients: it keeps a
    floor of order b sigma^2.

    >>> str(MVR(batch=8, rate=0.1))
    'mvr(batch=8)'
    """

    batch: Annotated[int, Count(1)] = 1
    rate: Annotated[float, Interval(0.0, 1.0, open="low")] = 0.1
    first: Annotated[int | None, Count(1)] = None

    name = "mvr"
    aliases = ("storm",)
    example = "mvr(batch=8, rate=0.1)"
    source = Source(
        "Cutkosky, Orabona", 2019, "Momentum-based variance reduction in non-convex SGD", "1905.10018", "Algorithm 1"
    )

    def init(self, x: Tensor, oracles: Oracles, link: Link) -> Estimate:
        batch = None if self.first is None else oracles.sample(link.keys("batch"), self.first)
        v = oracles.gradients(x, batch=batch)
        probe = Probe(x, lambda y: oracles.gradients(y, batch=batch), oracles.gradients, of_server(oracles))
        return Estimate(v, Last(x.expand(v.shape).clone(), v.clone()), probe)

    def estimate(self, x: Tensor, state: Last, oracles: Oracles, link: Link) -> Estimate:
        batch = oracles.sample(link.keys("batch"), self.batch)
        carried = (1.0 - self.rate) * (state.value - oracles.gradients(state.point, batch=batch))

        def same(y: Tensor) -> Tensor:
            return oracles.gradients(y, batch=batch) + carried

        v = same(x)
        probe = Probe(x, same, oracles.gradients, of_server(oracles))
        return Estimate(v, Last(x.expand(v.shape).clone(), v.clone()), probe)

    def recursion(self, terms: tuple[int, int]) -> Recursion:
        """v_i moves by the gradient's change less b e_i, and by noise."""
        b = self.rate
        noise = 2.0 * (1.0 - b) ** 2 / self.batch
        return Recursion((1.0 - b) ** 2, noise, 1.0 + b, noise, b * (1.0 + b))

    def scatter(self) -> float:
        return 1.0 / self.batch
