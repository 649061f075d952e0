"""EF0, EF1 and EF2: three memories for TopK behind a mask that PermK deals."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.topk_permk import TopKPermK
from laconic.core.compressor import Compressor
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, Need
from laconic.core.theory import Guarantee, NoTheorem, Setting
from laconic.mechanisms.ef14 import Memory, feed, promise

_SOURCE = Source(
    "Acharya, Kharisov, Beznosikov",
    2023,
    "Research on the combination of Top-K and Perm-K gradient sparsification algorithms for distributed setting",
    where="slides; no paper is known",
)


@dataclass(frozen=True)
class Masked(Mechanism, ABC):
    """A memory e_i that sends C(Q_i u_i), u_i = e_i + v_i: Q_i = a P_i is the mask of the round, C is TopK."""

    compressor: Compressor

    lazy = True
    needs = frozenset({Need.CONSTANT_STEP})
    instead = "use ef14_inside"
    source = _SOURCE

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.compressor, TopKPermK):
            raise ValueError(
                f"{type(self).__name__}(compressor={self.compressor}) : compressor must be a topk_permk, whose mask "
                "the memory looks through; ef14 takes any other"
            )

    @property
    def inner(self) -> TopKPermK:
        """TopK behind the mask."""
        assert isinstance(self.compressor, TopKPermK)
        return self.compressor

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.exchange(v, Memory(torch.zeros_like(v)), link)


@dataclass(frozen=True)
class EF0(Masked):
    """Worker i sends c_i = C(Q_i u_i), u_i = e_i + v_i, and keeps e_i <- u_i - c_i: EF14 with the compressor C Q.

    Guarantee: that of `ef14` with alpha = a (2 - a) k / d. With the mask scaled by a = n >= 3, as the slides have it,
    nothing contracts and the memory grows without bound.

    Parameters
    ----------
    compressor : TopK and mask in one, with the number a.

    >>> from laconic.compressors.topk_permk import TopKPermK
    >>> str(EF0(TopKPermK(k=0.05)))
    'ef0(topk_permk(k=0.05))'
    """

    name = "ef0"
    example = "ef0(topk_permk(k=0.05))"

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        return await feed(self.compressor, v, memory, link)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        return promise(self, self.compressor, setting, estimator, step)


@dataclass(frozen=True)
class EF1(Masked):
    """Worker i sends c_i = C(Q_i u_i), u_i = e_i + v_i, and keeps e_i <- e_i + Q_i v_i - c_i.

    Error feedback for the sketched gradient Q_i v_i: what the mask hides of v_i is never sent. In expectation x moves
    along a / n times the gradient (d >= n), so that with a = 1 the step is to be multiplied by n. Like the floor of
    EF14, EF1's shrinks with the step. With a = n, as the slides have it, the memory grows without bound.

    Parameters
    ----------
    compressor : TopK and mask in one, with the number a.

    >>> from laconic.compressors.topk_permk import TopKPermK
    >>> str(EF1(TopKPermK(k=0.05)))
    'ef1(topk_permk(k=0.05))'
    """

    name = "ef1"
    example = "ef1(topk_permk(k=0.05))"

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        packet = link.compress(self.compressor, v, plus=memory.error)
        sent = await link.uplink(packet)
        self.inner.masked(v, packet.keys).scatter(memory.error, np.arange(len(v)), 1.0)
        sent.own.add_to(memory.error, scale=-1.0)
        return sent.mean.dense(), memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        raise NoTheorem(
            f"no theorem is known for {self}: what enters its memory is a random part of the gradient, with the coins "
            "of its compressor; give an explicit step, n times that of ef14"
        )


@dataclass(frozen=True)
class EF2(Masked):
    """Worker i sends c_i = C(Q_i u_i), u_i = e_i + v_i, and keeps e_i <- Q_i u_i - c_i.

    Whatever lies outside the mask of a round is forgotten, errors of earlier rounds among them, so that a floor
    remains which no smaller step lowers.

    Parameters
    ----------
    compressor : TopK and mask in one, with the number a.

    >>> from laconic.compressors.topk_permk import TopKPermK
    >>> str(EF2(TopKPermK(k=0.05)))
    'ef2(topk_permk(k=0.05))'
    """

    name = "ef2"
    example = "ef2(topk_permk(k=0.05))"

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        packet = link.compress(self.compressor, v, plus=memory.error)
        sent = await link.uplink(packet)
        memory.error += v
        memory.error = self.inner.masked(memory.error, packet.keys).dense()
        sent.own.add_to(memory.error, scale=-1.0)
        return sent.mean.dense(), memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        raise NoTheorem(
            f"no theorem can give {self} a step: it forgets what its mask hides, and keeps a bias whatever the step; "
            "give an explicit step, or use ef0, ef1 or ef21"
        )
