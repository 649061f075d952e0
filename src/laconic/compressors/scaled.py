"""Scaled: an unbiased compressor made contractive."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.compressors._parts import take_pure, take_unbiased
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense, Sparse, as_unbiased
from laconic.core.entry import Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema


def _times(decoded: Decoded, factor: float) -> Decoded:
    if isinstance(decoded, Sparse):
        return Sparse(decoded.indices, decoded.values * factor, decoded.offsets, decoded.shape)
    return Dense(decoded.dense() * factor)


@dataclass(frozen=True)
class Scaled(Compressor):
    """C(x) = Q(x) / (1 + omega) for an unbiased Q: the message of Q, its meaning scaled.

    Claim: contractive with alpha = 1 / (1 + omega). Derived: E||cQ - x||^2 <= (c^2 (1 + omega) - 2c + 1) ||x||^2, least
    at c = 1 / (1 + omega), and an equality wherever omega is exact, as for RandK. Biased: it is for error feedback. A
    jointly drawn Q (PermK) keeps its omega and loses what it had as a family.

    Parameters
    ----------
    compressor : Q, unbiased and without a state.

    >>> from laconic.compressors.randk import RandK
    >>> Scaled(RandK(k=2)).claim(d=10, n=3)
    Contractive(alpha=0.2)
    """

    compressor: Compressor

    name = "scaled"
    example = "scaled(randk(k=0.05))"
    layout = "the message of the compressor inside; what it means is divided by 1 + omega"
    source = Source(
        "Beznosikov, Horvath, Richtarik, Safaryan", 2020, "On biased compression for distributed learning", "2002.12410"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        take_pure(self, "compressor")
        take_unbiased(self, "compressor")

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(self._factor(d, n))

    def share(self, d: int, n: int) -> float:
        return self.compressor.share(d, n)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return self.compressor.schema(shape, dtype, keys)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return self.compressor.codes(v, keys)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _times(self.compressor.decode(message, shape, dtype, keys), self._factor(math.prod(shape), keys.n))

    def _factor(self, d: int, n: int) -> float:
        omega = as_unbiased(self.compressor.claim(d, n))
        if omega is None:
            raise ValueError(f"{self} : {self.compressor} is not known to be unbiased for d = {d} and n = {n}")
        return 1.0 / (1.0 + omega)
