"""Partial participation: in every round some of the workers sleep."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Need, full_gradients_only
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.mechanisms._wrapped import Wrapping
from laconic.mechanisms.ef21 import EF21, contraction, three_point
from laconic.mechanisms.ef21_plus import EF21Plus


@dataclass(frozen=True)
class PartialParticipation(Wrapping):
    """The mechanism inside, where worker i takes part in a round with a probability, independently of all others.

    Who does not hears nothing, computes no gradient, says nothing and keeps its memory; in the first exchange all take
    part. The estimate stays (1/n) times a sum: over `ef21` the shifts of those who sleep count as they are. It needs
    a mechanism in which silence means no change.

    Guarantee over `ef21`, which is EF21-PP: with q = 1 - p, theta_p = p theta - q rho and B_p = p beta + q (1 + 1 /
    rho) for the rho that makes B_p / theta_p least, smooth f: step <= 1 / (L + L~ sqrt(B_p / theta_p)). Under PL: step
    <= min(1 / (L + L~ sqrt(2 B_p / theta_p)), theta_p / (2 mu)), and f - f* + (step / theta_p) mean ||g_i - grad
    f_i(x)||^2 contracts in expectation by 1 - step mu.

    Parameters
    ----------
    mechanism : a lazy one.
    probability : p; 1 is the mechanism itself. A round in which nobody takes part leaves the estimate as it is.

    >>> from laconic.compressors.topk import TopK
    >>> str(PartialParticipation(EF21(TopK(k=0.05)), probability=0.3))
    'partial(ef21(topk(k=0.05)), probability=0.3)'
    """

    probability: Annotated[float, Interval(0.0, 1.0, open="low")] = 0.5

    name = "partial"
    example = "partial(ef21(topk(k=0.05)), probability=0.3)"
    needs = frozenset({Need.COHORTS})
    source = Source(
        "Fatkhullin, Sokolov, Gorbunov, Li, Richtarik",
        2021,
        "EF21 with bells & whistles: practical algorithmic extensions of modern error feedback",
        "2110.03294",
        "EF21-PP; the rate under PL derived anew",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.mechanism.lazy:
            raise ValueError(
                f"{type(self).__name__}(mechanism={self.mechanism}) : mechanism must be one in which a silent worker "
                "changes nothing, such as ef21, ef14 or direct"
            )
        object.__setattr__(self, "lazy", False)
        if self.probability == 1.0:
            object.__setattr__(self, "needs", self.mechanism.needs)

    @property
    def participation(self) -> float:
        return float(self.probability)

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.mechanism.init(v, link, probe)

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.mechanism.exchange(v, memory, link, probe)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        p, inner = float(self.probability), self.mechanism
        if p == 1.0:
            return inner.guarantee(setting, estimator, step)
        if not isinstance(inner, (EF21, EF21Plus)):
            raise NoTheorem(f"no theorem is known for {self}; give an explicit step, or use ef21 inside")
        full_gradients_only(self, estimator)
        a, b = slowed(*contraction(self, inner.compressor, setting), p)
        c = setting.constants
        (spread,) = known(L_tilde=c.L_tilde)
        leans = estimates(L=c.L, L_tilde=c.L_tilde, mu=c.polyak)
        return three_point(self.source, setting, spread, a, b, step, leans)


def slowed(theta: float, beta: float, p: float) -> tuple[float, float]:
    """theta_p and B_p where a worker takes part with probability p < 1, for the rho that makes B_p / theta_p least.

    Its derivative is zero where (p beta + q) rho^2 + 2 q rho = p theta, q = 1 - p.
    """
    q = 1.0 - p
    lead = p * beta + q
    rho = p * theta / (q + math.sqrt(q * q + lead * p * theta))
    return p * theta - q * rho, p * beta + q * (1.0 + 1.0 / rho)
