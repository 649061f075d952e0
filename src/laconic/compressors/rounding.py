"""Biased rounding of every magnitude to the nearest power of two, or of another base."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Contractive, Decoded, Dense
from laconic.core.entry import Interval, Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits

_SOURCE = Source(
    "Beznosikov, Horvath, Richtarik, Safaryan", 2020, "On biased compression for distributed learning", "2002.12410"
)
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


CACHED = 1 << 14  # values worked on together where what lies between two steps should stay in the cache
SHARED = 1 << 22  # and where a step is long enough to be shared out to threads


def _by_pieces(codes: Callable[[Tensor], Tensor], v: Tensor, size: int) -> tuple[Tensor, ...]:
    """The codes, int16, of every value of v, flat, made of `size` values at a time."""
    values = v.reshape(-1)
    out = torch.empty(len(values), dtype=torch.int16)
    for begin in range(0, len(values), size):
        out[begin : begin + size] = codes(values[begin : begin + size])
    return (out,)


def _mantissa(dtype: torch.dtype) -> int:
    """The bits under the exponent."""
    wide(dtype)
    return round(-math.log2(torch.finfo(dtype).eps))


@dataclass(frozen=True)
class NaturalRounding(Compressor):
    """Every magnitude at the nearest power of two, those halfway between two at the larger one.

    Claim: contractive with alpha = 8/9, attained where all magnitudes are 3/2 times a power of two (Beznosikov et al.).
    Biased, and no draw: `natural` is unbiased at the same size. In the denormal range the error is at most half the
    least normal number, absolutely and not relatively; magnitudes beyond the largest power of two arrive as
    that power. The bits of the exponent do it exactly. Infinities stay what they are, NaN becomes infinite.

    >>> round(NaturalRounding().claim(d=10, n=3).alpha, 4)
    0.8889
    """

    name = "natural_rounding"
    example = "natural_rounding"
    layout = "sign and exponent of every value: 12 bits for float64, 9 bits for float32 and bfloat16"
    source = _SOURCE

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(8.0 / 9.0)

    def share(self, d: int, n: int) -> float:
        return 12 / 64

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(8 * dtype.itemsize - _mantissa(dtype)), torch.int16, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        low = _mantissa(v.dtype)
        width = 8 * v.element_size() - low
        top = (1 << (width - 1)) - 1

        def codes(values: Tensor) -> Tensor:
            patterns = values.view(_INTEGERS[values.element_size()])
            near = ((patterns >> (low - 1)).to(torch.int16) + 1) >> 1  # halves carry into the exponent
            exponents = (patterns >> low).to(torch.int16)
            infinite = (exponents & top) == top
            near -= ((near & top) == top).to(torch.int16)  # a finite number stays finite
            return torch.where(infinite, exponents, near) & ((1 << width) - 1)

        return _by_pieces(codes, v, CACHED)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        patterns = message.codes[0].to(_INTEGERS[dtype.itemsize]) << _mantissa(dtype)
        return Dense(patterns.view(dtype).view(message.rows, *shape))


@dataclass(frozen=True)
class ExponentialRounding(Compressor):
    """Every magnitude at the nearest of the powers of b that the dtype holds, and 0; halves go to the larger one.

    Claim: contractive with alpha = 4 b / (b + 1)^2 (Beznosikov et al., whose delta is 1 / alpha), attained where all
    magnitudes are (b + 1) / 2 times a power of b. b = 2 is `natural_rounding`, and its pitfalls are the same at both
    ends of the range: half the least power absolutely, and the largest power for all that is beyond it. Powers are
    made from 1 by multiplying and dividing by b, rounded each time: both ends have the same ones, and neighbours'
    ratio is b. What is not finite arrives as NaN, and so does the number of no power. Zeros lose their sign.

    Parameters
    ----------
    base : b. With the sign, 4 costs 11 bits for float64 and 8 for float32, 1.1 costs 15 and 12.

    >>> ExponentialRounding(base=4.0).claim(d=10, n=3)
    Contractive(alpha=0.64)
    """

    base: Annotated[float, Interval(1.1, 16.0)] = 4.0

    name = "exponential_rounding"
    example = "exponential_rounding"
    layout = (
        "a sign, 1 for minus, on top of the number of the power, 0 for zero and 1 for the least power of the base that "
        "is a normal number; minus zero for what is not finite"
    )
    source = _SOURCE

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(4.0 * self.base / (self.base + 1.0) ** 2)

    def share(self, d: int, n: int) -> float:
        return (1 + self._width(torch.float64)) / 64

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(1 + self._width(dtype)), torch.int16, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rungs, width = _powers(self.base, v.dtype), self._width(v.dtype)
        cuts = rungs[:-1] + (rungs[1:] - rungs[:-1]) / 2.0

        def codes(values: Tensor) -> Tensor:
            wide_values = values.to(torch.float64)
            finite = wide_values.isfinite()
            places = torch.bucketize(wide_values.abs(), cuts, out_int32=True, right=True).to(torch.int16) * finite
            minus = ((wide_values < 0) & (places > 0)) | ~finite
            return places | (minus.to(torch.int16) << width)

        return _by_pieces(codes, v, SHARED)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        rungs, width = _powers(self.base, dtype), self._width(dtype)
        table = torch.full((2 << width,), math.nan, dtype=torch.float64)
        table[: len(rungs)] = rungs
        table[(1 << width) + 1 : (1 << width) + len(rungs)] = -rungs[1:]
        values = table[message.codes[0].to(torch.int64) & ((2 << width) - 1)]
        return Dense(values.to(dtype).view(message.rows, *shape))

    def _width(self, dtype: torch.dtype) -> int:
        """The bits of the number of a power."""
        return (len(_powers(self.base, dtype)) - 1).bit_length()


@functools.lru_cache(maxsize=16)
def _powers(base: float, dtype: torch.dtype) -> Tensor:
    """0 and the powers of the base among the normal numbers of a dtype, ascending, float64."""
    wide(dtype)
    info = torch.finfo(dtype)
    below, above = [], [1.0]
    while (down := (below or above)[-1] / base) >= info.tiny:
        below.append(down)
    while (up := above[-1] * base) <= info.max:
        above.append(up)
    return torch.tensor([0.0, *reversed(below), *above], dtype=torch.float64)
