"""DCT-TopK: the largest coefficients of a discrete cosine transform of every chunk."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._ranges import fit, headroom
from laconic.compressors.block_topk import BlockTopK
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense, Exact
from laconic.core.entry import Amount, Count, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema
from laconic.kernels import dct

_EXACT = Exact()


@dataclass(frozen=True)
class DCTTopK(Compressor):
    """The k coefficients of largest magnitude of each chunk under an orthonormal DCT-II, transformed back.

    A vector is cut into chunks of its largest divisor of at most `chunk`; a matrix (the first axis against the rest)
    into rectangles, each side by the same rule, with the transform along both. Where k is a whole chunk, the values
    travel as they are.

    Claim: contractive with alpha = k / (coefficients of a chunk), attained where a chunk's coefficients are of equal
    magnitude (derived: the transform keeps the norm, and TopK's claim holds in each chunk). A claim is for a number of
    coordinates and not for a shape: it is the least over all shapes; the share is that of a vector. Biased.

    Pitfalls: a length without divisors, such as a prime, has chunks of one coordinate, and everything travels. It pays
    where neighbours are alike, and else is TopK at more expense. Coefficients are rounded to the vector's dtype. In
    DeMo, which it is from, it stands inside a decaying memory, and senders of each coefficient are averaged.

    Parameters
    ----------
    k : how many coefficients of each chunk, a count or a fraction of the chunk.
    chunk : the most coordinates along one side of a chunk.

    >>> DCTTopK(k=8, chunk=64).claim(d=67, n=3), DCTTopK(k=8, chunk=4).claim(d=64, n=3)
    (Contractive(alpha=1.0), Contractive(alpha=0.5))
    """

    k: Annotated[int | float, Amount()]
    chunk: Annotated[int, Count(1)] = 64

    name = "dct_topk"
    aliases = ("demo",)
    example = "dct_topk(k=32)"
    layout = (
        "sorted indices among the coefficients, chunk after chunk (Rice-coded gaps or a bitmap, whichever is shorter),"
        " then their values of full width; d values as they are where k is a whole chunk"
    )
    source = Source(
        "Peng, Quesnelle, Kingma", 2024, "DeMo: decoupled momentum optimization", "2411.19870", "its extraction of"
        " fast components",
    )  # fmt: skip

    def claim(self, d: int, n: int) -> Contractive:
        one = [side for side in range(1, math.isqrt(d) + 1) if d % side == 0]
        areas = {self._divisor(side) * self._divisor(d // side) for side in one} | {self._divisor(d)}
        return Contractive(min(amount(self.k, area) / area for area in areas))

    def share(self, d: int, n: int) -> float:
        area = self._divisor(d)
        return amount(self.k, area) / area

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return self._inside(shape).schema((math.prod(shape),), dtype, keys)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        shape, inside = tuple(v.shape[1:]), self._inside(tuple(v.shape[1:]))
        if inside is _EXACT:
            return _EXACT.codes(v, keys)
        room = headroom(v)
        wide = v.reshape(v.shape[0], math.prod(shape)).to(torch.float64) * room
        coefficients = dct.forward(dct.forward(self._chunks(wide, shape)).transpose(-1, -2).contiguous())
        flat = coefficients.transpose(-1, -2).reshape(wide.shape) / room
        return inside.codes(fit(flat, v.dtype), keys)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        inside, d = self._inside(shape), math.prod(shape)
        if inside is _EXACT:
            return _EXACT.decode(message, shape, dtype, keys)
        coefficients = inside.decode(message, (d,), dtype, keys).dense().to(torch.float64)
        room = headroom(coefficients)
        (across, rows), (along, columns) = self._cuts(shape)
        chunks = (coefficients * room).view(message.rows, across, along, rows, columns)
        values = dct.inverse(dct.inverse(chunks.transpose(-1, -2).contiguous()).transpose(-1, -2).contiguous())
        flat = values.transpose(2, 3).reshape(message.rows, d) / room
        return Dense(fit(flat, dtype).view(message.rows, *shape))

    def _inside(self, shape: tuple[int, ...]) -> Compressor:
        """What the coefficients travel by."""
        (_, rows), (_, columns) = self._cuts(shape)
        k = amount(self.k, rows * columns)
        return BlockTopK(k, rows * columns) if k < rows * columns else _EXACT

    def _chunks(self, flat: Tensor, shape: tuple[int, ...]) -> Tensor:
        """flat (batch, d) as (batch, chunks across, chunks along, rows, columns)."""
        (across, rows), (along, columns) = self._cuts(shape)
        return flat.view(flat.shape[0], across, rows, along, columns).transpose(2, 3).contiguous()

    def _cuts(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """How many chunks there are along each axis of the matrix, and of what length."""
        first, second = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
        return (first // self._divisor(first), self._divisor(first)), (
            second // self._divisor(second),
            self._divisor(second),
        )

    def _divisor(self, side: int) -> int:
        """The largest divisor of at most `chunk`."""
        return next(length for length in range(min(self.chunk, side), 0, -1) if side % length == 0)
