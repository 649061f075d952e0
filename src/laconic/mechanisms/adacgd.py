"""AdaCGD: every worker sends as few coordinates as its gradient's own movement allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors.topk import TopK
from laconic.core.compressor import Packet
from laconic.core.entry import Amount, Count, Interval, Source, amount
from laconic.core.link import Link
from laconic.core.rows import norm2
from laconic.core.theory import Setting
from laconic.kernels.select import largest
from laconic.mechanisms.threepc import ThreePoint, split


@dataclass(frozen=True)
class AdaCGD(ThreePoint):
    """EF21 by Top-k_j, k_j the first of k / 2^(levels - 1), ..., k / 2, k that leaves a small error, or no message.

    Small is at most trigger ||v_i - y_i||^2, y_i being worker i's last vector; where no k_j is enough, it sends k. So
    it is :class:`CLAG` with several compressors from coarse to fine, and with one level it is CLAG. Which k_j a worker
    takes is its own affair, and costs a byte of flag for each level. Start: h_i = v_i, sent at full width.

    Guarantee: that of `clag` with A = theta, B = max(beta, trigger) of Top-k, the finest (derived anew: every other
    choice leaves an error of at most trigger ||v_i - y_i||^2).

    Parameters
    ----------
    k : the most coordinates of a message, a count or a fraction of d.
    levels : how many k_j there are; those below one coordinate are one.
    trigger : the constant zeta >= 0 of the rule.

    >>> str(AdaCGD(k=0.1, levels=4))
    'adacgd(k=0.1, levels=4)'
    """

    k: Annotated[int | float, Amount()]
    levels: Annotated[int, Count(1)] = 3
    trigger: Annotated[float, Interval(0.0)] = 1.0

    name = "adacgd"
    example = "adacgd(k=0.1, levels=3)"
    source = Source(
        "Makarenko, Gasanov, Islamov, Sadiev, Richtarik",
        2022,
        "Adaptive compression for communication-efficient distributed training",
        "2211.00188",
        "AdaCGD with TopK; constants derived anew",
    )

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        change = (v - shift).reshape(v.shape[0], math.prod(v.shape[1:]))
        allowed = self.trigger * norm2(v - previous)
        packets, left = [], norm2(change) > allowed  # whose place is still open
        for k in self._counts(change.shape[1]):
            enough = norm2(change.scatter(1, largest(change, amount(k, change.shape[1]))[0], 0.0)) <= allowed
            final = len(packets) == self.levels - 1
            who = link.volunteers(left if final else left & enough)
            packets.append(
                link.compress(TopK(k), change[torch.from_numpy(who.rows)].view(len(who.rows), *v.shape[1:]), who)
            )
            left &= ~enough
        return tuple(packets)

    def _counts(self, d: int) -> list[int]:
        most = amount(self.k, d)
        return [max(1, most >> halvings) for halvings in reversed(range(self.levels))]

    def constants(self, setting: Setting) -> tuple[float, float]:
        a, b = split(1.0 - amount(self.k, setting.d) / setting.d)
        return a, max(b, self.trigger)
