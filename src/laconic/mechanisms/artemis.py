"""Artemis and its kin: unbiased compression of gradients up, and of the estimate down, so that all step alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.compressors.identity import Identity
from laconic.core.compressor import Compressor, as_unbiased
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, full_gradients_only
from laconic.core.rows import square
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.diana import noise_of, shifted

_SOURCE = Source(
    "Philippenko, Dieuleveut",
    2020,
    "Bidirectional compression in heterogeneous settings for distributed or federated learning with partial "
    "participation: tight convergence guarantees",
    "2006.14591",
    "with constants derived anew",
)
_Rate = Annotated[float | None, Interval(0.0, 1.0, open="low")]


def _down(mechanism: Mechanism, compressor: Compressor, setting: Setting) -> float:
    """omega of the server's compressor. Raises NoTheorem where it is not known to be unbiased."""
    omega = as_unbiased(compressor.claim(setting.d, setting.n))
    if omega is None:
        raise NoTheorem(
            f"the theorem of {mechanism} needs unbiased compressors and {compressor} is not known to be one; give "
            "explicit parameters and step, or use ef21_bc"
        )
    return omega


@dataclass(frozen=True)
class BiQGD(Mechanism):
    """Worker i sends C_up(v_i), the server C_down of their mean to everyone: gradient descent quantised both ways.

    Guarantee, C_up independent over workers, f mu-strongly convex, f_i convex: for step <= 1 / ((1 + omega_down)
    (L + 2 omega_up L_max / n)), E||x_k - x*||^2 <= (1 - step mu)^k ||x_0 - x*||^2 + 2 (1 + omega_down) step omega_up
    sigma*^2 / (n mu) (the step of the authors' code; derived anew with the plateau).

    Parameters
    ----------
    up : the workers' compressor, unbiased.
    down : the server's compressor, unbiased.

    >>> from laconic.compressors.natural import Natural
    >>> str(BiQGD(Natural(), Natural()))
    'bi_qgd(natural, natural)'
    """

    up: Compressor
    down: Compressor = field(default_factory=Identity)

    name = "bi_qgd"
    aliases = ("bi_qsgd", "direct_both")
    example = "bi_qgd(natural, natural)"
    public = True
    source = dataclasses.replace(_SOURCE, where="Bi-QSGD, with constants derived anew")

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.exchange(v, None, link)

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await link.uplink(self.up, v)
        return await link.broadcast(sent.mean.dense(), self.down), memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        noise, down = noise_of(self, self.up, setting), _down(self, self.down, setting)
        if not setting.convex:
            raise NoTheorem(f"the theorem of {self} needs convex f_i; give an explicit step")
        c, n = setting.constants, setting.n
        smooth, mu = known(L=c.L, mu=c.mu)
        largest = 1.0 / ((1.0 + down) * (smooth + 2.0 * noise.level / n))
        used = largest if step is None else step
        sigma = float(c.sigma_star) if c.sigma_star is not None else float("nan")
        plateau = 2.0 * (1.0 + down) * used * noise.omega * sigma**2 / (n * mu) if noise.omega > 0.0 else 0.0
        return Guarantee(
            largest,
            self.source,
            1.0 - used * mu,
            _distance,
            plateau,
            0.5 * smooth,
            ("f strongly convex", "f_i convex and smooth", "independent unbiased compressors"),
            leans_on=estimates(L=c.L, L_max=c.L_max, mu=c.mu),
        )


def _distance(snapshot: Snapshot) -> Terms:
    return Terms(square(snapshot.x - snapshot.solution.x))


@dataclass
class Memory:
    """What Artemis keeps."""

    shift: Worker  # h_i, (local, *shape)
    mean: Server  # h = mean h_i, (*shape)


async def _learn(
    compressor: Compressor, v: Tensor, memory: Memory, a: float, down: Compressor, link: Link, known: Tensor | None
) -> tuple[Tensor, Memory]:
    """DIANA up, and what the server's compressor makes of h + mean D_i, less what everyone knows, on the way down."""
    sent = await link.uplink(compressor, v.sub_(memory.shift))
    change = sent.mean.dense()
    estimate = memory.mean + change
    heard = await link.broadcast(estimate if known is None else estimate - known, down)
    sent.own.add_to(memory.shift, scale=a)
    memory.mean += a * change
    return heard, memory


def _open_rate(mechanism: Mechanism) -> ValueError:
    return ValueError(f"{mechanism} has an open rate; use settled(), or give a number")


@dataclass(frozen=True)
class Artemis(Mechanism):
    """DIANA up, D_i = Q(v_i - h_i) and h_i <- h_i + a D_i; the server sends C_down(h + mean D_i), and all step by that.

    Guarantee for unbiased compressors, Q independent over workers, a <= 1 / (1 + omega), f mu-strongly convex, f_i
    convex: step <= 1 / ((1 + omega_down) (L + 6 omega L_max / n)), and V = ||x - x*||^2 + (4 omega (1 + omega_down)
    step^2 / (n a)) mean ||h_i - grad f_i(x*)||^2 contracts in expectation by max(1 - step mu, 1 - a / 2): DIANA's proof
    with a second moment that is 1 + omega_down times as large (derived). V is read at the next x, as DIANA's.

    Parameters
    ----------
    up : the workers' compressor, unbiased, independent over workers.
    down : the server's compressor, unbiased.
    rate : a of the shifts; None is 1 / (2 (1 + omega)), that of the authors' code.

    >>> from laconic.compressors.natural import Natural
    >>> str(Artemis(Natural(), Natural()))
    'artemis(natural, natural)'
    """

    up: Compressor
    down: Compressor = field(default_factory=Identity)
    rate: _Rate = None

    name = "artemis"
    example = "artemis(natural, natural)"
    public = True
    source = _SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await self.exchange(v, Memory(torch.zeros_like(v), v.new_zeros(v.shape[1:])), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if self.rate is None:
            raise _open_rate(self)
        return await _learn(self.up, v, memory, self.rate, self.down, link, None)

    def settled(self, setting: Setting) -> Artemis:
        if self.rate is not None:
            return self
        return dataclasses.replace(self, rate=0.5 / (1.0 + noise_of(self, self.up, setting).own))

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        noise, down = noise_of(self, self.up, setting), _down(self, self.down, setting)
        largest = 1.0 / (1.0 + noise.own)
        a = 0.5 * largest if self.rate is None else self.rate
        if a > largest + 1e-12:
            raise NoTheorem(
                f"the theorem of {self} needs rate <= 1 / (1 + omega) = {largest:.6g}; give an explicit step"
            )
        if not setting.convex:
            raise NoTheorem(f"the theorem of {self} needs convex f_i; give an explicit step")
        return shifted(self.source, setting, noise, a, step, down)


@dataclass
class BothMemory:
    """What Artemis with a memory on either side keeps."""

    up: Memory
    known: Shared  # H, (*shape)


@dataclass(frozen=True)
class ArtemisMemory(Mechanism):
    """Artemis where the server too sends a difference: everyone steps by H + C_down(h + mean D_i - H), and H learns.

    H <- H + a_down C_down(h + mean D_i - H), H^0 = 0. No theorem: give an explicit step.

    Parameters
    ----------
    up : the workers' compressor, unbiased, independent over workers.
    down : the server's compressor, unbiased.
    rate : a of the shifts; None is 1 / (2 (1 + omega)), that of the authors' code.
    down_rate : a_down of H; None is 1 / (2 (1 + omega_down)).

    >>> from laconic.compressors.natural import Natural
    >>> str(ArtemisMemory(Natural(), Natural()))
    'artemis_memory(natural, natural)'
    """

    up: Compressor
    down: Compressor = field(default_factory=Identity)
    rate: _Rate = None
    down_rate: _Rate = None

    name = "artemis_memory"
    example = "artemis_memory(natural, natural)"
    public = True
    source = dataclasses.replace(_SOURCE, where="the authors' code, with a downlink memory")

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, BothMemory]:
        nothing = v.new_zeros(v.shape[1:])
        return await self.exchange(v, BothMemory(Memory(torch.zeros_like(v), nothing.clone()), nothing), link)

    async def exchange(
        self, v: Tensor, memory: BothMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, BothMemory]:
        if self.rate is None or self.down_rate is None:
            raise _open_rate(self)
        change, _ = await _learn(self.up, v, memory.up, self.rate, self.down, link, memory.known)
        estimate = memory.known + change
        memory.known = memory.known + self.down_rate * change
        return estimate, memory

    def settled(self, setting: Setting) -> ArtemisMemory:
        rate, down_rate = self.rate, self.down_rate
        if rate is None:
            rate = 0.5 / (1.0 + noise_of(self, self.up, setting).own)
        if down_rate is None:
            down_rate = 0.5 / (1.0 + _down(self, self.down, setting))
        return dataclasses.replace(self, rate=rate, down_rate=down_rate)
