"""DIANA: unbiased compression of differences to learned shifts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor, MatrixUnbiased, Unbiased
from laconic.core.entry import Entry, Interval, Source
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
class Noise:
    """What an unbiased compressor, independent over workers, costs a method with shifts for convex f_i.

    Attributes
    ----------
    omega : of the compressor.
    own : omega in the norm in which the shifts' distances are measured: the rate is at most 1 / (1 + own).
    level : E||Q_i(g - h) - (g - h)||^2 is at most weight ||g - h||_i^2, and level stands for weight times smoothness.
    norm2 : ||v_r||_i^2 per row, i being the worker of the row.
    """

    omega: float
    own: float
    level: float
    weight: float
    norm2: Callable[[Tensor, np.ndarray], Tensor]


def noise_of(entry: Entry, compressor: Compressor, setting: Setting) -> Noise:
    """omega and level = omega L_max in the Euclidean norm, or what is known in that of smoothness matrices.

    Raises NoTheorem where the compressor is not known to be unbiased and independent over workers.
    """
    claim = compressor.claim(setting.d, setting.n)
    if isinstance(claim, MatrixUnbiased):
        return Noise(claim.omega, claim.own, claim.expected, claim.expected, claim.norm2)
    if not isinstance(claim, Unbiased):
        raise NoTheorem(
            f"the theorem of {entry} needs an unbiased compressor, independent over workers, and {compressor} "
            "is not known to be one; give explicit rate and step, or use ef21 for a biased and marina for a "
            "joint one"
        )
    (worst,) = known(L_max=setting.constants.L_max)
    return Noise(claim.omega, claim.omega, claim.omega * worst, claim.omega, lambda v, _: norm2(v))


def shifted(
    source: Source, setting: Setting, noise: Noise, a: float, step: float | None, down: float = 0.0
) -> Guarantee:
    """DIANA's theorem for exact gradients; the estimate may be compressed once more, without bias, with omega `down`.

    E||estimate||^2 then is at most 1 + down times as large, and so is everything that comes of it: step <=
    1 / ((1 + down) (L + 6 level / n)), and the weight of the shifts in V is 4 (1 + down) weight step^2 / (n a).
    """
    c, n = setting.constants, setting.n
    smooth, mu = known(L=c.L, mu=c.mu)
    largest = 1.0 / ((1.0 + down) * (smooth + 6.0 * noise.level / n))
    used = largest if step is None else step
    rate = max(1.0 - used * mu, 1.0 - a / 2.0) if noise.omega > 0.0 else 1.0 - used * mu

    def lyapunov(snapshot: Snapshot) -> Terms:
        state, solution, workers = snapshot.state, snapshot.solution, snapshot.oracles.block.workers
        ahead, regulariser = snapshot.x - used * state.estimate, snapshot.oracles.regulariser
        if regulariser is not None:
            ahead = regulariser.prox(ahead, used)
        drift = noise.norm2(state.memory.shift - snapshot.oracles.gradients(solution.x), workers)
        return Terms(square(ahead - solution.x), drift * (4.0 * (1.0 + down) * noise.weight * used**2 / (n * a)))

    return Guarantee(
        largest,
        source,
        rate,
        lyapunov,
        0.0,
        0.5 * smooth / rate if rate > 0.0 else None,
        ("f strongly convex", "f_i convex and smooth", "independent unbiased compressor"),
        leans_on=estimates(L=c.L, L_max=c.L_max, mu=c.mu),
    )


@dataclass(frozen=True)
class DIANA(Mechanism):
    """Worker i sends D_i = Q(v_i - h_i); the estimate is h + mean D_i; the shifts learn, h_i <- h_i + a D_i.

    Guarantee for independent unbiased compressors, a = 1 / (1 + omega), f mu-strongly convex and f_i convex:
    step <= 1 / (L + 6 omega L_max / n), and V = ||x - x*||^2 + (4 omega step^2 / (n a)) mean ||h_i - grad f_i(x*)||^2
    contracts in expectation by max(1 - step mu, 1 - a / 2). With lsvrg or saga (VR-DIANA), l the smoothness of terms:
    step <= 1 / (l (1 + (36 omega + 34) / n)) and max(1 - step mu, 1 - a / 2, 1 - p / 2), p the probability with which
    what is remembered of a term is renewed. V then also has ((20 omega + 4) step^2 / n) mean s_i, s_i being the mean
    over terms of ||remembered gradient - grad f_ij(x*)||^2 times 1 / p (saga) or (1 - p) / p (lsvrg). The derivation
    would allow 1 / (L + l (36 omega + 6) / n).

    A compressor that knows smoothness matrices (`matrix_smooth_sparsification`; DIANA+) has its expected smoothness in
    place of omega L_max: the shifts' distances are in the norm of L_i^-1, with the expected smoothness in place of
    omega, and a = 1 / (1 + omega') with omega' in that norm (derived in the same way).

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
    proximal = True
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
        return dataclasses.replace(self, rate=1.0 / (1.0 + self._noise(setting).own))

    def _noise(self, setting: Setting) -> Noise:
        return noise_of(self, self.compressor, setting)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        noise = self._noise(setting)
        a = self.rate if self.rate is not None else 1.0 / (1.0 + noise.own)
        own, omega = noise.own if estimator.exact else noise.omega, noise.omega
        if a > 1.0 / (1.0 + own) + 1e-12:
            raise NoTheorem(
                f"the theorem of DIANA needs rate <= 1 / (1 + omega) = {1.0 / (1.0 + own):.6g}; give an explicit step"
            )
        if not setting.convex:
            raise NoTheorem(f"the theorem of {self} needs convex f_i; give an explicit step")
        if estimator.exact:
            return shifted(self.source, setting, noise, a, step)
        if not (estimator.vanishing and estimator.unbiased):
            raise NoTheorem(
                f"the theorem of {self} needs full or unbiased variance-reduced gradients (lsvrg, saga), not "
                f"{estimator}; give an explicit step"
            )
        return self._reduced(setting, estimator, omega, a, step)

    def _reduced(self, setting: Setting, estimator: Estimator, omega: float, a: float, step: float | None) -> Guarantee:
        c, n = setting.constants, setting.n
        sample, smooth, mu = known(L_sample=c.L_sample, L=c.L, mu=c.mu)
        largest = 1.0 / (sample * (1.0 + (36.0 * omega + 34.0) / n))
        used = largest if step is None else step
        rate = max(1.0 - used * mu, 1.0 - a / 2.0, 1.0 - estimator.renewal(setting.terms[1]) / 2.0)

        def lyapunov(snapshot: Snapshot) -> Terms:
            state, x, oracles = snapshot.state, snapshot.solution.x, snapshot.oracles
            drift = norm2(state.memory.shift - oracles.gradients(x)) * (4.0 * omega * used**2 / (n * a))
            aged = estimator.aged(state.estimator, x, oracles)
            assert aged is not None
            ahead = snapshot.x - used * state.estimate
            return Terms(square(ahead - x), drift + aged * ((20.0 * omega + 4.0) * used**2 / n))

        return Guarantee(
            largest,
            _VR,
            rate,
            lyapunov,
            0.0,
            0.5 * smooth / rate if rate > 0.0 else None,
            ("f strongly convex", "every term convex and smooth"),
            leans_on=estimates(L_sample=c.L_sample, mu=c.mu),
        )
