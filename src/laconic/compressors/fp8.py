"""Floats of eight bits in blocks: the nearest ones, after scaling the largest magnitude to the top."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._levels import flat, scale_slot
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense
from laconic.core.entry import Count, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import dither, nearest
from laconic.wire.coding import Bits

_SOURCE = Source(
    "Micikevicius, Stosic, Burgess, Cornea, Dubey, Grisenthwaite, Ha, Heinecke, Judd, Kamalu, Mellempudi, Oberman, "
    "Shoeybi, Siu, Wu",
    2022,
    "FP8 formats for deep learning",
    "2209.05433",
)
_LAYOUT = "the largest magnitude of each block at full width, then a code per coordinate in 8 bits, {}"


class _Float8(Compressor):
    """Subclasses are the dataclasses, with the field `block`, and name their format."""

    block: Annotated[int, Count(1)]

    @property
    @abstractmethod
    def _format(self) -> torch.dtype: ...

    def claim(self, d: int, n: int) -> Contractive:
        """With the largest magnitude at the format's top m its own error is 0.

        Another coordinate y errs by at most min(|y|, h), h half the least spacing, where it is denormal, and by
        |y| u / (1 + u) elsewhere, which in the uppermost binade, from b on, is u b at y = b (1 + u). Of B - 1 of them
        one of these two kinds is worst, whatever the rest.
        """
        info, others = torch.finfo(self._format), self._size(d) - 1
        top, binade, u = info.max, 2.0 ** math.floor(math.log2(info.max)), info.eps / 2.0
        half = info.tiny * info.eps / 2.0
        normal = others * (u * binade) ** 2 / (top**2 + others * (binade * (1.0 + u)) ** 2)
        denormal = others * half**2 / (top**2 + others * half**2)
        return Contractive(1.0 - max(normal, denormal))

    def share(self, d: int, n: int) -> float:
        return (64 * -(-d // self._size(d)) + 8 * d) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        d = math.prod(shape)
        return scale_slot(dtype, -(-d // self._size(d))), Slot(Bits(8), torch.uint8, d)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rows = flat(v)
        size = self._size(rows.shape[1])
        scales = nearest.largest(rows, size)
        return scales.view(-1), nearest.eight(rows, scales, size, self._format).view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        d, rows = math.prod(shape), message.rows
        size = self._size(d)
        fractions = torch.arange(256).to(torch.uint8).view(self._format).to(torch.float64)
        fractions /= torch.finfo(self._format).max
        codes, scales = message.codes[1].view(rows, d), message.codes[0].view(rows, -(-d // size))
        return Dense(dither.expand(codes, scales, size, fractions, dtype).view(rows, *shape))

    def _size(self, d: int) -> int:
        """The coordinates of the largest block."""
        return max(1, min(self.block, d))


@dataclass(frozen=True)
class Float8E4M3(_Float8):
    """C(x)_j = (m / 448) y, y the float of 4 exponent and 3 mantissa bits nearest to 448 x_j / m; ties to even.

    m is the largest magnitude of the block. 448 is the largest such float, the least normal one is 2^-6 and the
    spacing below it 2^-9.

    Claim: contractive with alpha = 1 - max(N, D), N = 256 k / (448^2 + 272^2 k), D = k / (458752^2 + k), k = B - 1,
    B the largest block (derived; N attained by k coordinates of 272 m / 448, D by k of m / 458752); at least 288/289
    for B < 7 10^8. Biased. A block of zeros arrives as zeros, one that is not finite as NaN, and so do the two codes
    of NaN, which no writer makes.

    Parameters
    ----------
    block : coordinates per block, the last one shorter.

    >>> round(Float8E4M3(block=128).claim(d=10**6, n=3).alpha, 5)
    0.99661
    """

    block: Annotated[int, Count(1)] = 128

    name = "fp8_e4m3"
    aliases = ("fp8",)
    example = "fp8_e4m3"
    layout = _LAYOUT.format("an E4M3 float")
    source = _SOURCE

    @property
    def _format(self) -> torch.dtype:
        return torch.float8_e4m3fn


@dataclass(frozen=True)
class Float8E5M2(_Float8):
    """C(x)_j = (m / 57344) y, y the float of 5 exponent and 2 mantissa bits nearest to 57344 x_j / m; ties to even.

    m is the largest magnitude of the block. 57344 is the largest finite such float, the least normal one is 2^-14 and
    the spacing below it 2^-16.

    Claim: contractive with alpha = 1 - max(N, D), N = k / (14^2 + 81 k), D = k / ((57344 2^17)^2 + k), k = B - 1, B the
    largest block (derived; N attained by k coordinates of 9 m / 14, D by k of m / (57344 2^17)); at least 80/81
    for B < 7 10^17. Biased. A block of zeros arrives as zeros, one that is not finite as NaN. The codes of NaN and of
    infinities, which no writer makes, are read as such.

    Parameters
    ----------
    block : coordinates per block, the last one shorter.

    >>> round(Float8E5M2(block=128).claim(d=10**6, n=3).alpha, 5)
    0.98789
    """

    block: Annotated[int, Count(1)] = 128

    name = "fp8_e5m2"
    example = "fp8_e5m2"
    layout = _LAYOUT.format("an E5M2 float")
    source = _SOURCE

    @property
    def _format(self) -> torch.dtype:
        return torch.float8_e5m2
