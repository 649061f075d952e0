"""Delayed updates: what is applied now was sent some rounds ago."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.core.compressor import as_unbiased
from laconic.core.entry import Count, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.rows import square
from laconic.core.state import Server, Shared
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms._wrapped import Wrapping, inside
from laconic.mechanisms.direct import Direct


@dataclass
class Memory:
    """What the mechanism inside keeps, and its estimates that still wait, the oldest first."""

    inner: Any
    queue: Server  # (delay, *shape)


@dataclass
class PublicMemory:
    """The same where every party can compute the estimates."""

    inner: Any
    queue: Shared  # (delay, *shape)


@dataclass(frozen=True)
class Delayed(Wrapping):
    """The estimate is what the mechanism inside gave `delay` rounds ago, and 0 in the first `delay` rounds.

    The queue is one more memory of what is owed: over `ef14` the virtual iterate x - step (mean e_i + sum of the queue)
    takes exact gradient steps. Where the step varies, `ef14_inside` owes steps.

    Guarantee (derived anew) for gradients as they are, `direct(identity)`, f convex and mu-strongly so: step <=
    1 / (4 L max(1, sqrt(3) delay)), and V = ||y - x*||^2 + 12 L step^3 delay^2 sum_j (1 - (j - 1) / (2 delay))
    ||g_j||^2 with the virtual iterate y and the j-th newest gradient g_j of the queue contracts by max(1 - step mu / 2,
    1 - 1 / (4 delay)). With delay = 0 it is that of the mechanism inside; for others none.

    Parameters
    ----------
    mechanism : whose estimates wait.
    delay : in rounds; 0 is the mechanism itself.

    >>> from laconic.compressors.topk import TopK
    >>> from laconic.mechanisms.ef14 import EF14
    >>> str(Delayed(EF14(TopK(k=0.05)), delay=3))
    'delayed(ef14(topk(k=0.05)), delay=3)'
    """

    delay: Annotated[int, Count(0)] = 1

    name = "delayed"
    example = "delayed(ef21(topk(k=0.05)), delay=2)"
    source = Source(
        "Stich, Karimireddy",
        2019,
        "The error-feedback framework: better rates for SGD with delayed gradients and compressed communication",
        "1909.05350",
        "SGD with delayed updates; the guarantee derived anew",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory | PublicMemory]:
        queue = v.new_zeros(self.delay, *v.shape[1:])
        newest, inner = await self.mechanism.init(v, link, probe)
        return self._served(newest, inner, queue)

    async def exchange(
        self, v: Tensor, memory: Memory | PublicMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory | PublicMemory]:
        newest, inner = await self.mechanism.exchange(v, memory.inner, link, probe)
        return self._served(newest, inner, memory.queue)

    def _served(self, newest: Tensor, inner: Any, queue: Tensor) -> tuple[Tensor, Memory | PublicMemory]:
        waiting = torch.cat([queue, newest[None]])
        return waiting[0], (PublicMemory if self.public else Memory)(inner, waiting[1:])

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        inner = self.mechanism
        if self.delay == 0:
            return inside(inner.guarantee(setting, estimator, step))
        plain = isinstance(inner, Direct) and as_unbiased(inner.compressor.claim(setting.d, setting.n)) == 0.0
        if not (plain and estimator.exact):
            raise NoTheorem(
                f"no theorem is known for {self}: only full gradients that are not compressed have one; "
                "give an explicit step"
            )
        return _delayed(self.source, setting, self.delay, step)


def _delayed(source: Source, setting: Setting, delay: int, step: float | None) -> Guarantee:
    c = setting.constants
    smooth, mu = known(L=c.L, mu=c.mu)
    largest = 0.25 / (smooth * max(1.0, math.sqrt(3.0) * delay))
    used = largest if step is None else step

    def lyapunov(snapshot: Snapshot) -> Terms:
        state, queue = snapshot.state, snapshot.state.memory.queue
        virtual = snapshot.x - used * (state.estimate + queue.sum(0))
        total = square(virtual - snapshot.solution.x)
        for j in range(1, delay + 1):
            weight = 12.0 * smooth * used**3 * delay**2 * (1.0 - (j - 1.0) / (2.0 * delay))
            total += weight * square(queue[delay - j])
        return Terms(total)

    return Guarantee(
        largest,
        source,
        max(1.0 - 0.5 * used * mu, 1.0 - 0.25 / delay),
        lyapunov,
        assumes=("f strongly convex and smooth",),
        leans_on=estimates(L=c.L, mu=c.mu),
    )
