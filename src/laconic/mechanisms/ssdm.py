"""SSDM: signs drawn at random from a running average of the gradients, without their scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors.sign import Sign, StochasticSign
from laconic.core.compressor import Compressor, Decoded
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.keys import Keys
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.message import Message, Schema
from laconic.core.state import Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting


class Direction(Compressor):
    """+1 with probability 1/2 + x_j / (2 ||x||), else -1: `stochastic_sign` that sends no norm. Zero: fair coins."""

    layout = Sign.layout

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return Sign().schema(shape, dtype, keys)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return StochasticSign().codes(v, keys)[1:]

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Sign().decode(message, shape, dtype, keys)


@dataclass
class Memory:
    """What SSDM keeps."""

    momentum: Worker  # m_i, (local, *shape)


@dataclass(frozen=True)
class SSDM(Mechanism):
    """m_i <- momentum m_i + (1 - momentum) v_i; worker i sends signs drawn from m_i; the estimate is their mean.

    Each coordinate is +1 with probability 1/2 + m_ij / (2 ||m_i||), else -1: one bit, and no norm. On average that is
    m_i / ||m_i||, a step of normalised gradients. Start: m_i = the first vectors.

    No guarantee with a constant step: the noise of the signs does not shrink. The paper (recalled): with step K^(-3/4)
    and momentum 1 - K^(-1/2) the mean of E||grad f|| over K iterations is O(K^(-1/4)), for f that need not be convex.
    Where the workers' gradients do not vanish at the solution, the mean of m_i / ||m_i|| need not vanish there either.

    Parameters
    ----------
    momentum : beta, weight of the past; 0 draws signs from the vectors themselves.

    >>> str(SSDM(momentum=0.5))
    'ssdm(momentum=0.5)'
    """

    momentum: Annotated[float, Interval(0.0, 1.0, open="high")] = 0.9

    name = "ssdm"
    example = "ssdm(momentum=0.5)"
    source = Source(
        "Safaryan, Richtarik",
        2019,
        "Stochastic sign descent methods: new algorithms and better theory",
        "1905.12938",
        "SSDM; rate recalled",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        sent = await link.uplink(Direction(), v)
        return sent.mean.dense(), Memory(v.clone())

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        momentum = self.momentum * memory.momentum + (1.0 - self.momentum) * v
        sent = await link.uplink(Direction(), momentum)
        memory.momentum = momentum
        return sent.mean.dense(), memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        raise NoTheorem(
            f"no constant stepsize makes {self} converge: its signs do not shrink; give an explicit step, of about "
            "K^(-3/4) for K iterations"
        )
