"""Three-point compressors: error feedback and lazy aggregation in one inequality, in the forms v1 to v5."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from laconic.core.compressor import Compressor, Own, Packet, as_unbiased
from laconic.core.entry import Interval, Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, contractive_only, full_gradients_only
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.mechanisms.ef21 import three_point


def paper(where: str) -> Source:
    """A place in the paper on three-point compressors."""
    return Source(
        "Richtarik, Sokolov, Gasanov, Fatkhullin, Li, Gorbunov",
        2022,
        "3PC: three point compressors for communication-efficient distributed training and a better theory for "
        "lazy aggregation",
        "2202.00998",
        where,
    )


def split(kept: float) -> tuple[float, float]:
    """A = 1 - sqrt(kept) and B = kept / A, where the error of x' is at most kept ||x' - h||^2, kept < 1."""
    a = 1.0 - math.sqrt(kept)
    return a, kept / a


def moved(shift: Tensor, packets: Sequence[Packet]) -> Tensor:
    """The shifts (local, *shape) after messages that have not been sent yet."""
    shift = shift.clone()
    for packet in packets:
        Own(packet, shift.shape[0]).add_to(shift)
    return shift


@dataclass
class Memory:
    """What a three-point compressor keeps."""

    shift: Worker  # h_i, (local, *shape)
    previous: Worker  # y_i, the last vectors, (local, *shape)
    estimate: Server  # mean h_i, (*shape)


@dataclass(frozen=True)
class ThreePoint(Mechanism):
    """Worker i's shift h_i becomes C_{h_i, y_i}(v_i), y_i its last vector, by messages that are added to it.

    E||C_{h, y}(x) - x||^2 <= (1 - A) ||h - y||^2 + B ||x - y||^2. The estimate is mean h_i. Start: h_i = v_i, sent at
    full width.
    """

    source: ClassVar[Source] = paper("")

    @abstractmethod
    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        """The messages that take h_i to C_{h_i, y_i}(v_i) when they are added to it. Writes to no argument."""

    @abstractmethod
    def constants(self, setting: Setting) -> tuple[float, float]:
        """A in (0, 1] and B >= 0. Raises NoTheorem where a compressor has no claim that gives them."""

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        sent = await link.uplink(None, v)
        memory = Memory(shift=sent.own.dense(), previous=v.clone(), estimate=sent.mean.dense())
        return memory.estimate, memory

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        packets = self.packets(v, memory.shift, memory.previous, link)
        for sent in await together(*(link.uplink(packet) for packet in packets)):
            sent.own.add_to(memory.shift)
            sent.mean.add_to(memory.estimate)
        memory.previous = v.clone()
        return memory.estimate, memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        a, b = self.constants(setting)
        c = setting.constants
        (spread,) = known(L_plus=c.L_plus)
        leans = estimates(L=c.L, L_plus=c.L_plus, mu=c.polyak)
        return three_point(self.source, setting, spread, a, b, step, leans)


@dataclass(frozen=True)
class ThreePCv1(ThreePoint):
    """h_i <- y_i + C(v_i - y_i): as if the server knew every worker's last gradient. For theory.

    The server learns y_i - h_i at full width in the same round, so that a round costs more than gradient descent's.
    It is the ideal that the others approach.

    Guarantee: that of `clag` with A = 1, B = 1 - alpha.

    Parameters
    ----------
    compressor : C, contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(ThreePCv1(TopK(k=0.1)))
    'threepc_v1(topk(k=0.1))'
    """

    compressor: Compressor

    name = "threepc_v1"
    example = "threepc_v1(topk(k=0.1))"
    source = paper("3PCv1")

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        return link.compress(None, previous, minus=shift), link.compress(self.compressor, v, minus=previous)

    def constants(self, setting: Setting) -> tuple[float, float]:
        return 1.0, 1.0 - contractive_only(self, self.compressor, setting)


@dataclass(frozen=True)
class ThreePCv2(ThreePoint):
    """b_i = h_i + Q(v_i - y_i), then h_i <- b_i + C(v_i - b_i): the change without bias, and what it misses.

    Two messages in one round.

    Guarantee: that of `clag` with A = alpha, B = (1 - alpha) omega.

    Parameters
    ----------
    change : Q, unbiased.
    compressor : C, contractive.

    >>> from laconic.compressors.randk import RandK
    >>> from laconic.compressors.topk import TopK
    >>> str(ThreePCv2(RandK(k=0.1), TopK(k=0.1)))
    'threepc_v2(randk(k=0.1), topk(k=0.1))'
    """

    change: Compressor
    compressor: Compressor

    name = "threepc_v2"
    example = "threepc_v2(randk(k=0.1), topk(k=0.1))"
    source = paper("3PCv2")

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        change = link.compress(self.change, v, minus=previous)
        return change, link.compress(self.compressor, v, minus=moved(shift, [change]))

    def constants(self, setting: Setting) -> tuple[float, float]:
        alpha = contractive_only(self, self.compressor, setting)
        omega = as_unbiased(self.change.claim(setting.d, setting.n))
        if omega is None:
            raise NoTheorem(
                f"the theorem of {self} needs an unbiased change and {self.change} is not known to be one; "
                "give an explicit step"
            )
        return alpha, (1.0 - alpha) * omega


@dataclass(frozen=True)
class ThreePCv3(ThreePoint):
    """b_i = another three-point compressor's h_i, then h_i <- b_i + C(v_i - b_i). All messages go in one round.

    Guarantee: that of `clag` with A = 1 - (1 - alpha) (1 - A'), B = (1 - alpha) B' for the A', B' of the one inside.

    Parameters
    ----------
    inner : lag, clag, or one of this family.
    compressor : C, contractive.

    >>> from laconic.compressors.topk import TopK
    >>> from laconic.mechanisms.lag import LAG
    >>> str(ThreePCv3(LAG(trigger=9.0), TopK(k=0.1)))
    'threepc_v3(lag(trigger=9.0), topk(k=0.1))'
    """

    inner: Mechanism
    compressor: Compressor

    name = "threepc_v3"
    example = "threepc_v3(lag(trigger=9.0), topk(k=0.1))"
    source = paper("3PCv3")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.inner, ThreePoint):
            raise ValueError(
                f"ThreePCv3(inner={self.inner}) : inner must be a three-point compressor: lag, clag or threepc_v1 to "
                "threepc_v5"
            )

    @property
    def within(self) -> ThreePoint:
        """`inner`, which is one."""
        assert isinstance(self.inner, ThreePoint)
        return self.inner

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        packets = self.within.packets(v, shift, previous, link.scope("inner"))
        return *packets, link.compress(self.compressor, v, minus=moved(shift, packets))

    def settled(self, setting: Setting) -> ThreePCv3:
        return dataclasses.replace(self, inner=self.inner.settled(setting))

    def constants(self, setting: Setting) -> tuple[float, float]:
        a, b = self.within.constants(setting)
        alpha = contractive_only(self, self.compressor, setting)
        return 1.0 - (1.0 - alpha) * (1.0 - a), (1.0 - alpha) * b


@dataclass(frozen=True)
class ThreePCv4(ThreePoint):
    """b_i = h_i + C_2(v_i - h_i), then h_i <- b_i + C_1(v_i - b_i): EF21 with two compressors in turn.

    Two messages in one round. With TopK twice it is EF21 with as many coordinates together, but for the start.

    Guarantee: that of `clag` with 1 - alpha = (1 - alpha_1) (1 - alpha_2), A = 1 - sqrt(1 - alpha),
    B = (1 - alpha) / A.

    Parameters
    ----------
    first : C_2, contractive.
    second : C_1, contractive.

    >>> from laconic.compressors.randk import RandK
    >>> from laconic.compressors.topk import TopK
    >>> str(ThreePCv4(TopK(k=0.1), TopK(k=0.05)))
    'threepc_v4(topk(k=0.1), topk(k=0.05))'
    """

    first: Compressor
    second: Compressor

    name = "threepc_v4"
    example = "threepc_v4(topk(k=0.1), topk(k=0.05))"
    source = paper("3PCv4")

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        first = link.compress(self.first, v, minus=shift)
        return first, link.compress(self.second, v, minus=moved(shift, [first]))

    def constants(self, setting: Setting) -> tuple[float, float]:
        alphas = [contractive_only(self, compressor, setting) for compressor in (self.first, self.second)]
        return split((1.0 - alphas[0]) * (1.0 - alphas[1]))


@dataclass(frozen=True)
class ThreePCv5(ThreePoint):
    """With probability p (one coin for all) h_i <- v_i, else h_i <- h_i + C(v_i - y_i): MARINA with a biased C.

    A round with h_i <- v_i sends v_i - h_i at full width.

    Guarantee: that of `clag` with A = 1 - sqrt(1 - p), B = (1 - p) (1 - alpha) / A (derived anew).

    Parameters
    ----------
    compressor : C, contractive.
    probability : p; None balances the two kinds of round (the share of a message).

    >>> from laconic.compressors.topk import TopK
    >>> str(ThreePCv5(TopK(k=0.1), probability=0.2))
    'threepc_v5(topk(k=0.1), probability=0.2)'
    """

    compressor: Compressor
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "threepc_v5"
    example = "threepc_v5(topk(k=0.1))"
    source = paper("3PCv5, with constants derived anew")

    def packets(self, v: Tensor, shift: Tensor, previous: Tensor, link: Link) -> tuple[Packet, ...]:
        if self.probability is None:
            raise ValueError(f"{self} has no probability; use settled(), or give probability=")
        if link.coin(self.probability):
            return (link.compress(None, v, minus=shift),)
        return (link.compress(self.compressor, v, minus=previous),)

    def settled(self, setting: Setting) -> ThreePCv5:
        if self.probability is not None:
            return self
        return dataclasses.replace(self, probability=min(1.0, self.compressor.share(setting.d, setting.n)))

    def constants(self, setting: Setting) -> tuple[float, float]:
        alpha, p = contractive_only(self, self.compressor, setting), self.settled(setting).probability or 1.0
        a = 1.0 - math.sqrt(1.0 - p)
        return a, (1.0 - p) * (1.0 - alpha) / a
