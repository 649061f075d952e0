"""CBAG: compressed Bernoulli aggregation. Who sends is drawn, and the rest stay silent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Packet
from laconic.core.entry import Interval, Source
from laconic.core.link import Link
from laconic.core.mechanism import contractive_only
from laconic.core.theory import Setting
from laconic.mechanisms.threepc import ThreePoint, split


@dataclass(frozen=True)
class CBAG(ThreePoint):
    """With probability p, drawn for each worker, h_i <- h_i + C(v_i - h_i), else h_i stays: EF21, now and then.

    The coins are shared by all parties, so that a silent worker sends no flag. Everyone computes v_i; in
    `partial(ef21(...))`, which draws likewise, the silent do not. With the identity it is Bernoulli aggregation (BAG).
    Start: h_i = v_i, sent at full width.

    Guarantee: that of `clag` with A = 1 - sqrt(1 - p alpha), B = (1 - p alpha) / A (derived: E||h+ - v||^2 <=
    (1 - p alpha) ||h - v||^2, and Young's inequality).

    Parameters
    ----------
    compressor : C, contractive.
    probability : p, of a worker's sending.

    >>> from laconic.compressors.topk import TopK
    >>> str(CBAG(TopK(k=0.1), probability=0.25))
    'cbag(topk(k=0.1), probability=0.25)'
    """

    compressor: Compressor
    probability: Annotated[float, Interval(0.0, 1.0, open="low")] = 0.5

    name = "cbag"
    aliases = ("bag",)
    example = "cbag(topk(k=0.1), probability=0.5)"
    source = Source(
        "Islamov, Qian, Hanzely, Safaryan, Richtarik",
        2022,
        "Distributed Newton-type methods with communication compression and Bernoulli aggregation",
        "2206.03588",
        "CBAG, with constants derived anew",
    )

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        who = link.bernoulli(self.probability)
        rows = torch.from_numpy(who.rows)
        return (link.compress(self.compressor, v[rows], who, minus=shift[rows]),)

    def constants(self, setting: Setting) -> tuple[float, float]:
        return split(1.0 - self.probability * contractive_only(self, self.compressor, setting))
