"""CLAG: compressed lazy aggregation. Workers whose gradient hardly moved send nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, full_gradients_only
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting, estimates, known
from laconic.mechanisms.ef21 import contraction, three_point


@dataclass
class Memory:
    """What CLAG keeps."""

    shift: Worker  # h_i, (local, *shape)
    previous: Worker  # y_i, the last vectors, (local, *shape)
    estimate: Server  # mean h_i, (*shape)


@dataclass(frozen=True)
class CLAG(Mechanism):
    """EF21, but worker i speaks only if ||v_i - h_i||^2 > trigger ||v_i - y_i||^2, y_i its last vector.

    Whether a worker speaks is its own affair and costs a byte of flag. With the identity this is LAG's rule of the
    3PC paper, with trigger 0 EF21 (but for silent workers whose difference is zero). Start: h_i = v_i, sent at full
    width.

    Guarantee (3PC with A = theta, B = max(beta, trigger)): step <= 1 / (L + L+ sqrt(B / A)); under PL
    step <= min(1 / (L + L+ sqrt(2 B / A)), A / (2 mu)) and E[f - f* + (step / A) mean ||h_i - grad f_i||^2] contracts
    by 1 - step mu.

    Parameters
    ----------
    compressor : contractive.
    trigger : the constant zeta >= 0 of the rule.

    >>> from laconic.compressors.topk import TopK
    >>> str(CLAG(TopK(k=0.1), trigger=4.0))
    'clag(topk(k=0.1), trigger=4.0)'
    """

    compressor: Compressor
    trigger: Annotated[float, Interval(0.0)] = 1.0

    name = "clag"
    example = "clag(topk(k=0.1), trigger=4.0)"
    source = Source(
        "Richtarik, Sokolov, Gasanov, Fatkhullin, Li, Gorbunov",
        2022,
        "3PC: three point compressors for communication-efficient distributed training and a better theory for "
        "lazy aggregation",
        "2202.00998",
        "Lemma on CLAG",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        sent = await link.uplink(None, v)
        memory = Memory(shift=sent.own.dense(), previous=v.clone(), estimate=sent.mean.dense())
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        change = v - memory.shift
        who = link.volunteers(norm2(change) > self.trigger * norm2(v - memory.previous))
        sent = await link.uplink(self.compressor, change[who.rows], who)
        sent.own.add_to(memory.shift)
        sent.mean.add_to(memory.estimate)
        memory.previous = v.clone()
        return memory.estimate, memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        a, beta = contraction(self, self.compressor, setting)
        c = setting.constants
        (spread,) = known(L_plus=c.L_plus)
        leans = estimates(L=c.L, L_plus=c.L_plus, mu=c.mu)
        return three_point(self.source, setting, spread, a, max(beta, self.trigger), step, leans)
