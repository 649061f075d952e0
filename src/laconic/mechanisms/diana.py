"""DIANA: unbiased compression of differences to learned shifts."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Unbiased
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.rows import norm2, square
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known

_VR = Source(
    "Horvath, Kovalev, Mishchenko, Stich, Richtarik",
    2019,
    "Stochastic distributed learning with gradient quantization and variance reduction",
    "1904.05115",
    "VR-DIANA, with constants derived anew",
)


@dataclass
class Memory:
    """What DIANA keeps."""

    shift: Worker  # h_i, (local, *shape)
    mean: Server  # h = mean h_i, (*shape)


@dataclass(frozen=True)
class DIANA(Mechanism):
    """Worker i sends D_i = Q(v_i - h_i); the estimate is h + mean D_i; the shifts learn, h_i <- h_i + a D_i.

    Guarantee for independent unbiased compressors, a = 1 / (1 + omega), f mu-strongly convex and f_i convex:
    step <= 1 / (L + 6 omega L_max / n), and V = ||x - x*||^2 + (4 omega step^2 / (n a)) mean ||h_i - grad f_i(x*)||^2
    contracts in expectation by max(1 - step mu, 1 - a / 2). With a variance-reduced estimator of m terms (VR-DIANA):
    step <= 1 / (L (1 + (36 omega + 34) / n)) and max(1 - step mu, 1 - a / 2, 1 - p / 2), p the probability of renewal.

    The state of gradient descent holds x and the estimate made there; V is read at the next x, which goes with the
    shifts as they are now.

    Parameters
    ----------
    compressor : unbiased, independent over workers.
    rate : a of the shifts; None is 1 / (1 + omega).

    >>> from laconic.compressors.natural import Natural
    >>> str(DIANA(Natural()))
    'diana(natural)'
    """

    compressor: Compressor
    rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "diana"
    example = "diana(natural)"
    source = Source(
        "Mishchenko, Gorbunov, Takac, Richtarik",
        2019,
        "Distributed learning with compressed gradient differences",
        "1901.09269",
        "with constants derived anew",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await self.exchange(v, Memory(torch.zeros_like(v), v.new_zeros(v.shape[1:])), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        a = self.rate
        if a is None:
            raise ValueError(f"{self} has no rate for its shifts; use settled(), or give rate=")
        sent = await link.uplink(self.compressor, v.sub_(memory.shift))
        change = sent.mean.dense()
        estimate = memory.mean + change
        sent.own.add_to(memory.shift, scale=a)
        memory.mean += a * change
        return estimate, memory

    def settled(self, setting: Setting) -> DIANA:
        if self.rate is not None:
            return self
        return dataclasses.replace(self, rate=1.0 / (1.0 + self._omega(setting)))

    def _omega(self, setting: Setting) -> float:
        claim = self.compressor.claim(setting.d, setting.n)
        if not isinstance(claim, Unbiased):
            raise NoTheorem(
                f"the theorem of {self} needs an unbiased compressor, independent over workers, and {self.compressor} "
                "is not known to be one; give explicit rate and step, or use ef21 for a biased and marina for a "
                "joint one"
            )
        return claim.omega

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        omega, n, c = self._omega(setting), setting.n, setting.constants
        a = self.rate if self.rate is not None else 1.0 / (1.0 + omega)
        if a > 1.0 / (1.0 + omega) + 1e-12:
            raise NoTheorem(
                f"the theorem of DIANA needs rate <= 1 / (1 + omega) = {1.0 / (1.0 + omega):.6g}; give an explicit step"
            )
        if not setting.convex:
            raise NoTheorem(f"the theorem of {self} needs convex f_i; give an explicit step")
        if estimator.exact:
            return self._exact(setting, omega, a, step)
        if not estimator.vanishing:
            raise NoTheorem(
                f"the theorem of {self} needs full or variance-reduced gradients, not {estimator}; "
                "give an explicit step"
            )
        (sample, mu) = known(L_sample=c.L_sample, mu=c.mu)
        largest = 1.0 / (sample * (1.0 + (36.0 * omega + 34.0) / n))
        used = largest if step is None else step
        rate = max(1.0 - used * mu, 1.0 - a / 2.0, 1.0 - estimator.renewal(setting.terms[1]) / 2.0)
        return Guarantee(
            largest,
            _VR,
            rate,
            None,
            assumes=("f strongly convex", "every term convex and smooth"),
            leans_on=estimates(L_sample=c.L_sample, mu=c.mu),
        )

    def _exact(self, setting: Setting, omega: float, a: float, step: float | None) -> Guarantee:
        c, n = setting.constants, setting.n
        smooth, worst, mu = known(L=c.L, L_max=c.L_max, mu=c.mu)
        largest = 1.0 / (smooth + 6.0 * omega * worst / n)
        used = largest if step is None else step
        rate = max(1.0 - used * mu, 1.0 - a / 2.0) if omega > 0.0 else 1.0 - used * mu

        def lyapunov(snapshot: Snapshot) -> Terms:
            state, solution = snapshot.state, snapshot.solution
            ahead = snapshot.x - used * state.estimate
            drift = norm2(state.memory.shift - snapshot.oracles.gradients(solution.x))
            return Terms(square(ahead - solution.x), drift * (4.0 * omega * used**2 / (n * a)))

        return Guarantee(
            largest,
            self.source,
            rate,
            lyapunov,
            0.0,
            0.5 * smooth / rate if rate > 0.0 else None,
            ("f strongly convex", "f_i convex and smooth", "independent unbiased compressor"),
            leans_on=estimates(L=c.L, L_max=c.L_max, mu=c.mu),
        )
