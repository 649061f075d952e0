"""DASHA: compressed differences with momentum, of gradients or of recursive estimates of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe, Recursion
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need, unbiased_only
from laconic.core.rows import norm2, square
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms._recursive import ALL, HALF, Drifts, drifts, recursion_of
from laconic.mechanisms.marina import common_point, minibatches_only, settled_probability

_SOURCE = Source(
    "Tyurin, Richtarik",
    2022,
    "DASHA: distributed nonconvex optimization with communication compression, optimal oracle complexity, and no "
    "client synchronization",
    "2202.01268",
    "with constants derived anew",
)


@dataclass
class Memory:
    """What DASHA keeps."""

    gradient: Worker  # h_i, the last vectors, (local, *shape)
    shift: Worker  # g_i, (local, *shape)
    estimate: Server  # g = mean g_i, (*shape)


@dataclass(frozen=True)
class Momentum:
    """What a bound on ||g - mean h_i||^2 is made of; it has the weight `mean` in V, and mean ||g_i - h_i||^2 `own`.

    A move of the h_i adds `weight` mean ||h_i+ - h_i||^2 in all.
    """

    mean: float
    own: float
    weight: float

    @staticmethod
    def of(a: float, spread: float, omega: float, left: float) -> Momentum:
        """For a <= 1 / (2 omega + 1), D = ||g - mean h_i||^2, G = mean ||g_i - h_i||^2, H = mean ||h_i+ - h_i||^2:

        E D+ <= (1 - a)^2 D + spread (2 a^2 G + 2 H) and E G+ <= (1 - a) G + 2 omega H.
        """
        mean = 0.5 / (a * (1.0 + left - a))
        own = 2.0 * a * spread * mean / left
        return Momentum(mean, own, 2.0 * (2.0 * spread * mean + 2.0 * omega * own))


def settled_momentum(mechanism: Mechanism, momentum: float | None, compressor: Compressor, setting: Setting) -> float:
    """a as given, or 1 / (2 omega + 1). Raises ValueError for a compressor that is not known to be unbiased."""
    if momentum is not None:
        return momentum
    return 1.0 / (2.0 * unbiased_only(mechanism, compressor, setting).omega + 1.0)


def bound_of(
    mechanism: Mechanism, given: float | None, compressor: Compressor, setting: Setting, left: float
) -> tuple[float, Momentum]:
    """a, and what it is worth. Raises NoTheorem where it is too large."""
    joint = unbiased_only(mechanism, compressor, setting)
    a, largest = settled_momentum(mechanism, given, compressor, setting), 1.0 / (2.0 * joint.omega + 1.0)
    if a > largest * (1.0 + 1e-12):
        raise NoTheorem(
            f"the theorem of {mechanism} needs momentum <= 1 / (2 omega + 1) = {largest:.6g}; give an explicit step"
        )
    return a, Momentum.of(a, joint.A - min(joint.B, 0.0), joint.omega, left)


def promise(setting: Setting, found: Drifts, a: float, step: float | None, left: float) -> Guarantee:
    """step <= 1 / (L + own + noise), and step <= min(a, forgets) / (2 mu) for the rate 1 - step mu if that is asked."""
    c = setting.constants
    (smooth,) = known(L=c.L)
    largest, assumes = 1.0 / (smooth + found.own + found.noise), ("f and f_i smooth",)
    leans = estimates(L=c.L, L_plus=c.L_plus, L_sample=c.L_sample if found.noise else None)
    if left == ALL:
        return Guarantee(largest, _SOURCE, assumes=assumes, leans_on=leans)
    (mu,) = known(mu=c.polyak)
    largest = min(largest, min(a, found.forgets) / (2.0 * mu))
    used = largest if step is None else step
    leans += estimates(mu=c.polyak)
    return Guarantee(largest, _SOURCE, 1.0 - used * mu, assumes=(*assumes, "f strongly convex (or PL)"), leans_on=leans)


@dataclass(frozen=True)
class DASHA(Mechanism):
    """Worker i sends m_i = Q(v_i - h_i - a (g_i - h_i)) and adds it to g_i; h_i becomes v_i; the estimate is mean g_i.

    Start: h_i = g_i = v_i, sent at full width. Never again does a worker send as much, and no coin is shared. With the
    estimators page and mvr this is DASHA-PAGE and DASHA-MVR.

    Guarantee for a <= 1 / (2 omega + 1), here at its largest, with joint constants A, B of the compressor and
    A' = max(A, A - B), omega / n where independent: step <= 1 / (L + L+ sqrt(2 A' (2 omega + 1))); under PL
    step <= min(1 / (L + L+ sqrt(4 A' (2 omega + 1))), a / (2 mu)), and E[f - f* + step (c ||g - grad f||^2 + c' mean
    ||g_i - grad f_i||^2)] contracts by 1 - step mu, c = 1 / (a (3 - 2 a)), c' = 4 a A' c (derived; the paper has
    16 omega (2 omega + 1) under its root).

    DASHA-PAGE with minibatches of size B, one p for all, q^2 = 1 - p and the smoothness l of terms: step <= 1 / (L +
    sqrt(2 A' (2 omega + 1) ((1 + p q) L+^2 + (2 q^2 + q) l^2 / B)) + q l / sqrt(p n B)). Under PL 4 stands for the 2,
    3 q^2 + 2 q for 2 q^2 + q, and p / 2 for p under the last root; step <= min(a, p) / (2 mu), rate 1 - step mu.
    DASHA-MVR with b: step <= 1 / (L + sqrt(2 A' (2 omega + 1) ((1 + b) L+^2 + 6 (1 - b)^2 / (2 - b) l^2 / B)) +
    (1 - b) l sqrt(2 / (b (2 - b) n B))), to a floor that the variance of single terms makes. Both derived.

    Parameters
    ----------
    compressor : unbiased.
    momentum : a; None is 1 / (2 omega + 1).

    >>> from laconic.compressors.randk import RandK
    >>> str(DASHA(RandK(k=0.1)))
    'dasha(randk(k=0.1))'
    """

    compressor: Compressor
    momentum: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "dasha"
    example = "dasha(randk(k=0.1))"
    needs = frozenset({Need.UNBIASED})
    instead = "use ef21 for a biased compressor"
    lazy = True
    source = _SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        sent = await link.uplink(None, v)
        memory = Memory(gradient=v.clone(), shift=sent.own.dense(), estimate=sent.mean.dense())
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if self.momentum is None:
            raise ValueError(f"{self} has no momentum; use settled(), or give momentum=")
        expected = (1.0 - self.momentum) * memory.gradient + self.momentum * memory.shift
        sent = await link.uplink(self.compressor, v, minus=expected)
        memory.gradient = v.clone()
        sent.own.add_to(memory.shift)
        sent.mean.add_to(memory.estimate)
        return memory.estimate, memory

    def settled(self, setting: Setting) -> DASHA:
        a = settled_momentum(self, self.momentum, self.compressor, setting)
        return self if self.momentum is not None else dataclasses.replace(self, momentum=a)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        left = HALF if setting.constants.polyak is not None and estimator.vanishing else ALL
        a, bound = bound_of(self, self.momentum, self.compressor, setting, left)
        found = drifts(recursion_of(self, estimator, setting), setting, bound.weight, left)
        made = promise(setting, found, a, step, left)
        if not estimator.vanishing:
            return dataclasses.replace(made, assumes=(*made.assumes, "gradients of single terms of bounded variance"))
        if left == ALL or not estimator.exact:
            return made
        used = made.step if step is None else step

        def lyapunov(snapshot: Snapshot) -> Terms:
            memory, estimate = snapshot.state.memory, snapshot.state.estimate
            drift = norm2(memory.shift - memory.gradient) * (used * bound.own)
            return Terms(snapshot.gap + used * bound.mean * square(estimate - snapshot.gradient), drift)

        return dataclasses.replace(made, lyapunov=lyapunov, gap_factor=1.0)


@dataclass
class SyncMemory:
    """What DASHA-SYNC-MVR keeps."""

    at: Shared  # the last point, which was broadcast, (*shape)
    gradient: Worker  # h_i, (local, *shape)
    shift: Worker  # g_i, (local, *shape)
    estimate: Server  # g = mean g_i, (*shape)


@dataclass(frozen=True)
class DASHASyncMVR(Mechanism):
    """With probability p (one coin for all) h_i and g_i become the full gradient, which is sent; else DASHA's step.

    Between coins h_i grows by how one minibatch's gradient changed between the last two points, and worker i sends
    m_i = Q(h_i+ - h_i - a (g_i - h_i)) and adds it to g_i. The estimate is mean g_i. Start: as with the coin. The paper
    takes a large minibatch where this takes all terms. The estimator's minibatch is drawn, and not used, in rounds with
    the coin too.

    Guarantee with a, A' and l as in `dasha` and c / B the variance of a minibatch difference: step <= 1 / (L +
    sqrt(2 A' (2 omega + 1) (1 - p) (L+^2 + l^2 / B)) + l sqrt((1 - p) / (p n B))); under PL 4 stands for the 2 and
    p / 2 for p under the last root, step <= min(a, p) / (2 mu), and the rate is 1 - step mu (derived).

    Parameters
    ----------
    compressor : unbiased.
    momentum : a; None is 1 / (2 omega + 1).
    probability : p of a round at full width; None balances the two kinds of round (the share of a message).

    >>> from laconic.compressors.randk import RandK
    >>> str(DASHASyncMVR(RandK(k=0.1)))
    'dasha_sync_mvr(randk(k=0.1))'
    """

    compressor: Compressor
    momentum: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "dasha_sync_mvr"
    example = "dasha_sync_mvr(randk(k=0.1))"
    needs = frozenset({Need.PROBE, Need.UNBIASED})
    instead = "use ef21 for a biased compressor"
    source = _SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, SyncMemory]:
        at, probe = common_point(self, v, probe)
        gradient = probe.full(at)
        sent = await link.uplink(None, gradient)
        memory = SyncMemory(at.clone(), gradient, sent.own.dense(), sent.mean.dense())
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: SyncMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, SyncMemory]:
        a, p = self.momentum, self.probability
        if a is None or p is None:
            raise ValueError(f"{self} has no momentum or no probability; use settled(), or give both")
        at, probe = common_point(self, v, probe)
        if link.coin(p):
            return await self.init(v, link, probe)
        gradient = memory.gradient + (v - probe(memory.at))
        expected = (1.0 - a) * memory.gradient + a * memory.shift
        sent = await link.uplink(self.compressor, gradient, minus=expected)
        memory.at, memory.gradient = at.clone(), gradient
        sent.own.add_to(memory.shift)
        sent.mean.add_to(memory.estimate)
        return memory.estimate, memory

    def settled(self, setting: Setting) -> DASHASyncMVR:
        a = settled_momentum(self, self.momentum, self.compressor, setting)
        p = settled_probability(self.probability, self.compressor, setting)
        return dataclasses.replace(self, momentum=a, probability=p)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        left = HALF if setting.constants.polyak is not None else ALL
        a, bound = bound_of(self, self.momentum, self.compressor, setting, left)
        p = settled_probability(self.probability, self.compressor, setting)
        scatter = minibatches_only(self, estimator)
        recursion = Recursion(1.0 - p, (1.0 - p) * scatter, 1.0, scatter)
        found = drifts(recursion, setting, (1.0 - p) * bound.weight, left)
        return promise(setting, found, a, step, left)
