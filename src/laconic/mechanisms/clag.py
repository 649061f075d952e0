"""CLAG: compressed lazy aggregation. Workers whose gradient hardly moved send nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import Compressor, Packet
from laconic.core.entry import Interval
from laconic.core.link import Cohort, Link
from laconic.core.rows import norm2
from laconic.core.theory import Setting
from laconic.mechanisms.ef21 import contraction
from laconic.mechanisms.threepc import ThreePoint, paper


def triggered(change: Tensor, v: Tensor, previous: Tensor, trigger: float, link: Link) -> Cohort:
    """The workers with ||v_i - h_i||^2 > trigger ||v_i - y_i||^2; `change` is v - h (local, *shape)."""
    return link.volunteers(norm2(change) > trigger * norm2(v - previous))


@dataclass(frozen=True)
class CLAG(ThreePoint):
    """EF21, but worker i speaks only if ||v_i - h_i||^2 > trigger ||v_i - y_i||^2, y_i its last vector.

    Whether a worker speaks is its own affair and costs a byte of flag. With the identity this is :class:`LAG`, with
    trigger 0 EF21 (but for silent workers whose difference is zero). Start: h_i = v_i, sent at full width.

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
    source = paper("Lemma on CLAG")

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        change = v - shift
        who = triggered(change, v, previous, self.trigger, link)
        return (link.compress(self.compressor, change[who.rows], who),)

    def constants(self, setting: Setting) -> tuple[float, float]:
        a, beta = contraction(self, self.compressor, setting)
        return a, max(beta, self.trigger)
