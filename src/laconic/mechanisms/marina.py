"""MARINA: compressed differences of gradients, and now and then the gradients themselves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import AB, Compressor
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need, full_gradients_only, unbiased_only
from laconic.core.rows import square
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known

_SOURCE = Source(
    "Gorbunov, Burlachenko, Li, Richtarik",
    2021,
    "MARINA: faster non-convex distributed learning with compression",
    "2102.07845",
    "joint constants: Szlendak, Tyurin, Richtarik 2021, arXiv:2110.03300",
)


@dataclass
class Memory:
    """What MARINA keeps."""

    previous: Worker  # grad f_i at the last point, (local, *shape)
    estimate: Server  # g, (*shape)


@dataclass(frozen=True)
class MARINA(Mechanism):
    """With probability p (one coin for all) every worker sends its gradient; else Q_i(gradient - last gradient).

    Start: the gradients at full width. The vectors must be full gradients.

    Guarantee with joint constants A, B and M^2 = ((1 - p) / p) ((A - B) L+^2 + B L_pm^2): step <= 1 / (L + M); under
    PL step <= min(1 / (L + sqrt(2) M), p / (2 mu)), and E[f - f* + (step / p) ||g - grad f(x)||^2] contracts by
    1 - step mu. Where B < 0 (a support that all share) M^2 has A L+^2 - B L^2, and where B > A it has A L_pm^2: the
    general formula promises too much there.

    Parameters
    ----------
    compressor : unbiased; may be drawn jointly, as PermK.
    probability : p of a round at full width; None balances the two kinds of round (the share of a message).

    >>> from laconic.compressors.permk import PermK
    >>> str(MARINA(PermK()))
    'marina(permk)'
    """

    compressor: Compressor
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "marina"
    example = "marina(permk)"
    needs = frozenset({Need.FULL_GRADIENTS, Need.UNBIASED})
    instead = "use vr_marina for minibatches, and ef21 for a biased compressor"
    source = _SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        sent = await link.uplink(None, v)
        memory = Memory(previous=v.clone(), estimate=sent.mean.dense())
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if self.probability is None:
            raise ValueError(f"{self} has no probability; use settled(), or give probability=")
        if link.coin(self.probability):
            sent = await link.uplink(None, v)
            memory.estimate = sent.mean.dense()
        else:
            sent = await link.uplink(self.compressor, v - memory.previous)
            sent.mean.add_to(memory.estimate)
        memory.previous = v.clone()
        return memory.estimate, memory

    def settled(self, setting: Setting) -> MARINA:
        p = settled_probability(self.probability, self.compressor, setting)
        return self if self.probability is not None else dataclasses.replace(self, probability=p)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        joint = unbiased_only(self, self.compressor, setting)
        p = settled_probability(self.probability, self.compressor, setting)
        return by_coin(_SOURCE, setting, p, joint, 0.0, step)


def settled_probability(given: float | None, compressor: Compressor, setting: Setting) -> float:
    """p as given, or the share of a message, which balances the two kinds of round."""
    return min(1.0, compressor.share(setting.d, setting.n)) if given is None else given


def by_coin(source: Source, setting: Setting, p: float, joint: AB, scatter: float, step: float | None) -> Guarantee:
    """MARINA's theorem: ||g - grad f||^2 vanishes with the coin and else grows by U ||x+ - x||^2; M^2 = U (1 - p) / p.

    U bounds what the compressor adds to a difference of gradients, with what the difference of minibatches adds, whose
    variance is `scatter` times that of single terms.
    """
    c = setting.constants
    smooth, plus, variance = known(L=c.L, L_plus=c.L_plus, L_pm=c.L_pm)
    if joint.B < 0.0:
        inner = joint.A * plus**2 - joint.B * smooth**2
    else:
        inner = max(0.0, joint.A - joint.B) * plus**2 + min(joint.A, joint.B) * variance**2
    if scatter > 0.0:
        (sample,) = known(L_sample=c.L_sample)
        inner += (max(0.0, joint.A - joint.B / setting.n) + 1.0 / setting.n) * scatter * sample**2
    m = math.sqrt((1.0 - p) / p * inner)
    leans = estimates(L=c.L, L_plus=c.L_plus, L_pm=c.L_pm, mu=c.polyak, L_sample=c.L_sample if scatter > 0.0 else None)
    smoothness = "every term smooth" if scatter > 0.0 else "f and f_i smooth"
    if c.polyak is None:
        return Guarantee(1.0 / (smooth + m), source, assumes=(smoothness,), leans_on=leans)
    mu = float(c.polyak)
    largest = min(1.0 / (smooth + math.sqrt(2.0) * m), p / (2.0 * mu))
    used = largest if step is None else step

    def lyapunov(snapshot: Snapshot) -> Terms:
        return Terms(snapshot.gap + used / p * square(snapshot.state.estimate - snapshot.gradient))

    assumes = (smoothness, "f strongly convex (or PL)")
    return Guarantee(largest, source, 1.0 - used * mu, lyapunov, 0.0, 1.0, assumes, leans_on=leans)


# ---- minibatches -----------------------------------------------------------------------------------------------------


def common_point(mechanism: Mechanism, v: Tensor, probe: Probe | None) -> tuple[Tensor, Probe]:
    """The point of v, which must be one for all workers, and the probe. Raises ValueError where there is none."""
    if probe is None:
        raise ValueError(f"{mechanism} needs {Need.PROBE.value}, and was given none")
    if probe.at.shape != v.shape[1:]:
        raise ValueError(f"{mechanism} needs one point for all workers, and every worker has its own")
    return probe.at, probe


def minibatches_only(mechanism: Mechanism, estimator: Estimator) -> float:
    """`Estimator.scatter`. Raises NoTheorem where minibatch differences are not known to be unbiased."""
    scatter = estimator.scatter()
    if scatter is None:
        raise NoTheorem(
            f"the theorem of {mechanism} is about minibatches that are drawn afresh and independently (sgd), not "
            f"{estimator}; give an explicit step"
        )
    return scatter


@dataclass
class VRMemory:
    """What VR-MARINA keeps."""

    at: Shared  # the last point, which was broadcast, (*shape)
    estimate: Server  # g, (*shape)


@dataclass(frozen=True)
class VRMARINA(Mechanism):
    """With probability p (one coin for all) every worker sends its full gradient; else Q_i(a minibatch's difference).

    The minibatch is the estimator's (`sgd`), whose gradient is taken at x and at the last x. Start: the full gradients.
    The form for finite sums. The estimator's minibatch is drawn, and not used, in rounds with the coin too.

    Guarantee: that of `marina` with M^2 = ((1 - p) / p) (U + (max(A - B / n, 0) + 1 / n) l^2 / B'), U marina's bracket,
    B' the batch, l the smoothness of terms: for independent compressors ((1 - p) / (p n)) (omega L+^2 + (1 + omega)
    l^2 / B'), the paper's. Under PL f - f* + (step / p) ||g - grad f(x)||^2 contracts by 1 - step mu on average.

    Parameters
    ----------
    compressor : unbiased; may be drawn jointly, as PermK.
    probability : p of a round at full width; None balances the two kinds of round in what they send (the share of a
        message). The paper takes the smaller of that and B' / (B' + m), m the terms of a worker, which balances
        what they compute too.

    >>> from laconic.compressors.randk import RandK
    >>> str(VRMARINA(RandK(k=0.1)))
    'vr_marina(randk(k=0.1))'
    """

    compressor: Compressor
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "vr_marina"
    example = "vr_marina(randk(k=0.1))"
    needs = frozenset({Need.PROBE, Need.UNBIASED})
    instead = "use ef21 for a biased compressor"
    source = dataclasses.replace(_SOURCE, where="Theorem 3.2, derived anew with joint constants")

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, VRMemory]:
        at, probe = common_point(self, v, probe)
        sent = await link.uplink(None, probe.full(at))
        memory = VRMemory(at.clone(), sent.mean.dense())
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: VRMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, VRMemory]:
        if self.probability is None:
            raise ValueError(f"{self} has no probability; use settled(), or give probability=")
        at, probe = common_point(self, v, probe)
        if link.coin(self.probability):
            return await self.init(v, link, probe)
        sent = await link.uplink(self.compressor, v, minus=probe(memory.at))
        memory.at = at.clone()
        sent.mean.add_to(memory.estimate)
        return memory.estimate, memory

    def settled(self, setting: Setting) -> VRMARINA:
        p = settled_probability(self.probability, self.compressor, setting)
        return self if self.probability is not None else dataclasses.replace(self, probability=p)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        joint, scatter = unbiased_only(self, self.compressor, setting), minibatches_only(self, estimator)
        p = settled_probability(self.probability, self.compressor, setting)
        return by_coin(self.source, setting, p, joint, scatter, step)
