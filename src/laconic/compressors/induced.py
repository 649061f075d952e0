"""Induced: a biased compressor made unbiased by an unbiased one on what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.compressors._parts import joined, separated, take_pure, take_unbiased
from laconic.core.compressor import AB, Compressor, Decoded, Dense, Unbiased, as_contractive
from laconic.core.entry import Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema


@dataclass(frozen=True)
class Induced(Compressor):
    """C(x) + Q(x - C(x)) with C contractive and Q unbiased, the two drawing from different streams.

    Claim: unbiased with omega (1 - alpha) (the paper's theorem; with omega exact and C(x) of error exactly 1 - alpha it
    is attained). For a Q drawn jointly over workers, with A and B: A' = (A + max(-B, 0)) (1 - alpha), B' = 0
    (derived: the residuals differ even where the vectors are equal). None where C is not known to be contractive;
    it is unbiased all the same. Q works on all d coordinates, those that C kept exactly among them.

    Parameters
    ----------
    biased : C, without a state.
    unbiased : Q, without a state.

    >>> from laconic.compressors.randk import RandK
    >>> from laconic.compressors.topk import TopK
    >>> Induced(TopK(k=5), RandK(k=2)).claim(d=10, n=3)
    Unbiased(omega=2.0)
    """

    biased: Compressor
    unbiased: Compressor

    name = "induced"
    example = "induced(topk(k=0.05), randk(k=0.05))"
    layout = "the fields of the biased compressor's message, then those of the unbiased one's"
    source = Source(
        "Horvath, Richtarik",
        2020,
        "A better alternative to error feedback for communication-efficient distributed learning",
        "2006.11077",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        take_pure(self, "biased")
        take_pure(self, "unbiased")
        take_unbiased(self, "unbiased")

    def claim(self, d: int, n: int) -> Unbiased | AB | None:
        alpha, claim = as_contractive(self.biased.claim(d, n)), self.unbiased.claim(d, n)
        if alpha is None:
            return None
        if isinstance(claim, Unbiased):
            return Unbiased(claim.omega * (1.0 - alpha))
        if isinstance(claim, AB):
            return AB((claim.A + max(-claim.B, 0.0)) * (1.0 - alpha), 0.0, claim.omega * (1.0 - alpha))
        return None

    def share(self, d: int, n: int) -> float:
        return self.biased.share(d, n) + self.unbiased.share(d, n)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return joined(self._schemas(shape, dtype, keys))

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        first, second = _streams(keys)
        message = self.biased.message(v, first)
        kept = self.biased.decode(message, tuple(v.shape[1:]), v.dtype, first).dense()
        return *message.codes, *self.unbiased.codes(v - kept, second)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        kept, rest = separated(message, self._schemas(shape, dtype, keys))
        first, second = _streams(keys)
        total = self.biased.decode(kept, shape, dtype, first).dense()
        return Dense(total + self.unbiased.decode(rest, shape, dtype, second).dense())

    def _schemas(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> tuple[Schema, Schema]:
        first, second = _streams(keys)
        return self.biased.schema(shape, dtype, first), self.unbiased.schema(shape, dtype, second)


def _streams(keys: Keys) -> tuple[Keys, Keys]:
    return keys.scope("biased"), keys.scope("unbiased")
