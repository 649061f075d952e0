"""MeanOf: the mean of several independent copies of a compressor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._parts import joined, separated, take_pure
from laconic.core.compressor import AB, Claim, Compressor, Decoded, Dense, Unbiased
from laconic.core.entry import Count, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema


@dataclass(frozen=True)
class MeanOf(Compressor):
    """(1/m) sum of m messages of one compressor, each drawn from a stream of its own: m times the size.

    Claim (derived): unbiased with omega / m, and jointly A / m and B / m; alpha of a contractive compressor stays what
    it was (the square is convex, and copies of a deterministic one are all the same, so they buy nothing).

    Parameters
    ----------
    compressor : without a state.
    copies : m.

    >>> from laconic.compressors.natural import Natural
    >>> MeanOf(Natural(), copies=2).claim(d=10, n=3)
    Unbiased(omega=0.0625)
    """

    compressor: Compressor
    copies: Annotated[int, Count(1)] = 2

    name = "mean_of"
    example = "mean_of(natural, copies=3)"
    layout = "the messages of the copies, one after another without padding between them"
    source = Source(
        "Suresh, Yu, Kumar, McMahan",
        2016,
        "Distributed mean estimation with limited communication",
        "1611.00429",
        "where the independent copies are those of the clients",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        take_pure(self, "compressor")

    def claim(self, d: int, n: int) -> Claim | None:
        claim, m = self.compressor.claim(d, n), self.copies
        if isinstance(claim, Unbiased):
            return Unbiased(claim.omega / m)
        return AB(claim.A / m, claim.B / m, claim.omega / m) if isinstance(claim, AB) else claim

    def share(self, d: int, n: int) -> float:
        return self.copies * self.compressor.share(d, n)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return joined(self._schemas(shape, dtype, keys))

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return tuple(codes for own in self._streams(keys) for codes in self.compressor.codes(v, own))

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        total = torch.zeros((message.rows, *shape), dtype=dtype)
        copies = separated(message, self._schemas(shape, dtype, keys))
        for one, own in zip(copies, self._streams(keys), strict=True):
            total += self.compressor.decode(one, shape, dtype, own).dense()
        return Dense(total.div_(self.copies))

    def _schemas(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> list[Schema]:
        return [self.compressor.schema(shape, dtype, own) for own in self._streams(keys)]

    def _streams(self, keys: Keys) -> list[Keys]:
        return [keys.scope(f"copy{copy}") for copy in range(self.copies)]
