"""All or nothing: the whole vector by one coin, with private or shared coins."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.compressors.bernoulli import Masked
from laconic.core.compressor import AB, Unbiased
from laconic.core.entry import Interval, Source
from laconic.core.keys import Keys

_SOURCE = Source(
    "Mishchenko, Malinovsky, Stich, Richtarik",
    2022,
    "ProxSkip: yes! Local gradient steps provably lead to communication acceleration! Finally!",
    "2202.09357",
    "the coin of Algorithm 1, read as a compressor",
)


class _Tossed(Masked):
    """Q(x) = x / p or 0."""

    @abstractmethod
    def tossed(self, keys: Keys) -> Tensor:
        """Which rows are sent, bool of shape (rows,) or (1,)."""

    def mask(self, d: int, keys: Keys) -> Tensor:
        return self.tossed(keys)[:, None].expand(keys.rows, d).contiguous()

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (v[self.tossed(keys).expand(keys.rows)].reshape(-1) / self.p,)

    def numbers(self, d: int, n: int) -> range:
        return range(0, d + 1, max(1, d))


@dataclass(frozen=True)
class AllOrNothing(_Tossed):
    """Q(x) = x / p with probability p, else 0, by each worker's own coin.

    Claim: unbiased with omega = 1 / p - 1 (exact for every x), independent over workers (derived). Unlike `bernoulli`
    it keeps or drops the whole vector, so that whoever loses the toss need not even compute what it would have sent.

    Parameters
    ----------
    p : the probability of sending.

    >>> AllOrNothing(p=0.25).claim(d=10, n=3)
    Unbiased(omega=3.0)
    """

    p: Annotated[float, Interval(0.0, 1.0, open="low")]

    name = "all_or_nothing"
    example = "all_or_nothing(p=0.3)"
    source = _SOURCE

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(1.0 / self.p - 1.0)

    def tossed(self, keys: Keys) -> Tensor:
        return keys.coins(self.p)


@dataclass(frozen=True)
class SharedAllOrNothing(_Tossed):
    """Q(x) = x / p with probability p, else 0, by one coin for all workers: a round in which all or none speak.

    Claim: unbiased with omega = 1 / p - 1, and jointly A = 0, B = -omega (derived): it compresses the mean itself.

    Parameters
    ----------
    p : the probability of a round.

    >>> SharedAllOrNothing(p=0.25).claim(d=10, n=3)
    AB(A=0.0, B=-3.0, omega=3.0)
    """

    p: Annotated[float, Interval(0.0, 1.0, open="low")]

    name = "shared_all_or_nothing"
    example = "shared_all_or_nothing(p=0.3)"
    source = _SOURCE

    def claim(self, d: int, n: int) -> AB:
        omega = 1.0 / self.p - 1.0
        return AB(0.0, -omega, omega)

    def tossed(self, keys: Keys) -> Tensor:
        return keys.shared.coins(self.p)
