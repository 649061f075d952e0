"""MARINA: compressed differences of gradients, and now and then the gradients themselves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need, full_gradients_only, unbiased_only
from laconic.core.rows import square
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting, Snapshot, Terms, estimates, known


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
    1 - step mu.

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
    source = Source(
        "Gorbunov, Burlachenko, Li, Richtarik",
        2021,
        "MARINA: faster non-convex distributed learning with compression",
        "2102.07845",
        "joint constants: Szlendak, Tyurin, Richtarik 2021, arXiv:2110.03300",
    )

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
        if self.probability is not None:
            return self
        return dataclasses.replace(self, probability=min(1.0, self.compressor.share(setting.d, setting.n)))

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        joint = unbiased_only(self, self.compressor, setting)
        p, c = self.settled(setting).probability or 1.0, setting.constants
        smooth, plus, variance = known(L=c.L, L_plus=c.L_plus, L_pm=c.L_pm)
        inner = max(0.0, (joint.A - joint.B) * plus**2 + joint.B * variance**2)
        m = math.sqrt((1.0 - p) / p * inner)
        leans = estimates(L=c.L, L_plus=c.L_plus, L_pm=c.L_pm, mu=c.mu)
        if c.mu is None:
            return Guarantee(1.0 / (smooth + m), self.source, assumes=("f and f_i smooth",), leans_on=leans)
        mu = float(c.mu)
        largest = min(1.0 / (smooth + math.sqrt(2.0) * m), p / (2.0 * mu))
        used = largest if step is None else step

        def lyapunov(snapshot: Snapshot) -> Terms:
            return Terms(snapshot.gap + used / p * square(snapshot.state.estimate - snapshot.gradient))

        return Guarantee(
            largest,
            self.source,
            1.0 - used * mu,
            lyapunov,
            0.0,
            1.0,
            ("f and f_i smooth", "f strongly convex (or PL)"),
            leans_on=leans,
        )
