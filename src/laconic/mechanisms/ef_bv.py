"""EF-BV: EF21 and DIANA as the two ends of one mechanism."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, as_contractive, as_joint
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, full_gradients_only
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known


@dataclass
class Memory:
    """What EF-BV keeps."""

    shift: Worker  # h_i, (local, *shape)
    mean: Server  # h = mean h_i, (*shape)


@dataclass(frozen=True)
class Moments:
    """||E C(x) - x|| <= bias ||x||, E||C(x) - E C(x)||^2 <= variance ||x||^2, and of the mean over workers
    <= averaged mean ||x_i||^2.
    """

    bias: float
    variance: float
    averaged: float

    def left(self, weight: float, variance: float) -> float:
        """Of ||x||^2 in E||x - weight C(x)||^2, at most."""
        return (1.0 - weight + weight * self.bias) ** 2 + weight**2 * variance

    def best(self, variance: float) -> float:
        """The weight of the paper."""
        return min((1.0 - self.bias) / ((1.0 - self.bias) ** 2 + variance), 1.0)


@dataclass(frozen=True)
class EFBV(Mechanism):
    """Worker i sends D_i = C(v_i - h_i); the estimate is h + nu mean D_i; h_i <- h_i + lambda D_i, h = mean h_i.

    lambda = nu = 1 is EF21; nu = 1 with an unbiased compressor is DIANA. Start: h_i = 0.

    For ||E C(x) - x|| <= eta ||x|| and E||C(x) - E C(x)||^2 <= omega ||x||^2, and omega_av of the mean over workers:
    lambda = min((1 - eta) / ((1 - eta)^2 + omega), 1), nu the same with omega_av. Unbiased compressors have eta = 0 and
    omega_av = omega / n (drawn jointly: A + max(-B, 0)); contractive ones eta = sqrt(1 - alpha), omega = 0, hence
    lambda = nu = 1. That holds for random contractive ones too, by Minkowski's inequality.

    Guarantee with r = (1 - lambda + lambda eta)^2 + lambda^2 omega, r_av the same with nu and omega_av, and
    s = sqrt((1 + r) / (2 r)) - 1: step <= 1 / (L + L~ sqrt(r_av / r) / s). Under PL V = f - f* + (step r_av / (2 r s
    (1 + s))) mean ||grad f_i(x) - h_i||^2 contracts in expectation by max(1 - step mu, (1 + r) / 2). V is read at the
    next x, as that of `diana`.

    Parameters
    ----------
    compressor : contractive or unbiased.
    rate : lambda of the shifts; None is the paper's.
    weight : nu of the estimate; None is the paper's.

    >>> from laconic.compressors.topk import TopK
    >>> str(EFBV(TopK(k=0.05)))
    'ef_bv(topk(k=0.05))'
    """

    compressor: Compressor
    rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    weight: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "ef_bv"
    example = "ef_bv(randk(k=0.1), rate=0.1, weight=0.5)"
    source = Source(
        "Condat, Yi, Richtarik",
        2022,
        "EF-BV: a unified theory of error feedback and variance reduction mechanisms for biased and unbiased "
        "compression in distributed optimization",
        "2205.04180",
        "Theorem 1",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await self.exchange(v, Memory(torch.zeros_like(v), v.new_zeros(v.shape[1:])), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if self.rate is None or self.weight is None:
            raise ValueError(f"{self} has no rate or no weight; use settled(), or give rate= and weight=")
        sent = await link.uplink(self.compressor, v, minus=memory.shift)
        change = sent.mean.dense()
        estimate = memory.mean + self.weight * change
        sent.own.add_to(memory.shift, scale=self.rate)
        memory.mean += self.rate * change
        return estimate, memory

    def settled(self, setting: Setting) -> EFBV:
        if self.rate is not None and self.weight is not None:
            return self
        moments = self.moments(setting)
        rate = moments.best(moments.variance) if self.rate is None else self.rate
        weight = moments.best(moments.averaged) if self.weight is None else self.weight
        return dataclasses.replace(self, rate=rate, weight=weight)

    def moments(self, setting: Setting) -> Moments:
        """eta, omega and omega_av of the compressor. Raises NoTheorem where it has no claim that gives them."""
        claim = self.compressor.claim(setting.d, setting.n)
        joint = as_joint(claim, setting.n)
        if joint is not None:
            return Moments(0.0, joint.omega, joint.A + max(-joint.B, 0.0))
        alpha = as_contractive(claim)
        if alpha is None:
            raise NoTheorem(
                f"the theorem of {self} needs an unbiased or contractive compressor and {self.compressor} is not known "
                "to be one; give explicit rate, weight and step"
            )
        return Moments(math.sqrt(1.0 - alpha), 0.0, 0.0)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        moments, own = self.moments(setting), self.settled(setting)
        r = moments.left(own.rate or 1.0, moments.variance)
        average = moments.left(own.weight or 1.0, moments.averaged)
        if r >= 1.0:
            raise NoTheorem(f"the theorem of {self} needs r < 1, and r = {r:.4g}; give a smaller rate or explicit step")
        c = setting.constants
        smooth, spread = known(L=c.L, L_tilde=c.L_tilde)
        rooted = math.sqrt(0.5 * (1.0 + r)) - math.sqrt(r)  # s sqrt(r), which is not 0 where r is
        largest = 1.0 / (smooth + spread * math.sqrt(average) / rooted)
        leans = estimates(L=c.L, L_tilde=c.L_tilde, mu=c.polyak)
        if c.polyak is None:
            return Guarantee(largest, self.source, assumes=("f and f_i smooth",), leans_on=leans)
        used = largest if step is None else step
        # r s (1 + s), in the same way
        drift = 0.5 * used * average / (rooted * math.sqrt(0.5 * (1.0 + r)))

        def lyapunov(snapshot: Snapshot) -> Terms:
            ahead = snapshot.x - used * snapshot.state.estimate
            behind = norm2(snapshot.oracles.gradients(ahead) - snapshot.state.memory.shift)
            gaps = snapshot.oracles.values(ahead) - snapshot.solution.value
            return Terms(0.0, gaps + behind * drift)

        slower = 0.5 * (1.0 + r) if average > 0.0 else 0.0
        rate = max(1.0 - used * float(c.polyak), slower)
        assumes = ("f and f_i smooth", "f strongly convex (or PL)")
        return Guarantee(largest, self.source, rate, lyapunov, 0.0, None, assumes, leans_on=leans)
