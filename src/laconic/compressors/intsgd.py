"""IntSGD: stochastic rounding to integers at a scale that everybody knows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from laconic.compressors._ranges import fit
from laconic.core.compressor import Compressor, Decoded, Dense
from laconic.core.entry import Interval, Range, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class Widths(Range):
    """An integer in 2..32."""

    def holds(self, value: Any) -> bool:
        return type(value) is int and 2 <= value <= 32

    def examples_outside(self) -> tuple[Any, ...]:
        return (1, 33, 8.0, True, "many")

    def __str__(self) -> str:
        return "an integer in 2..32"


@dataclass(frozen=True)
class IntSGD(Compressor):
    """Every value times the scale, rounded at random to one of the two nearest integers without bias, over the scale.

    The scale is common knowledge and does not travel, so that the sum over workers is a sum of integers (what makes an
    all-reduce in integers possible). Integers are cut at magnitude floor((2^(bits - 1) - 1) / n), so that the sum of n
    of them fits `bits` bits as well.

    Claims nothing, because the error is absolute: E||Q(x) - x||^2 <= d / (4 scale^2) whatever x is (a quarter is the
    variance of a fair coin, attained halfway between integers), so that small x are not contracted and no omega holds.
    Unbiased where |scale x_j| is at most the largest integer; beyond, values are cut and it is biased.

    Pitfalls: choose the scale by what the values are; the method of the paper adapts it to the last step,
    sqrt(d) / (sqrt(2 n) ||x^k - x^{k-1}|| / step) (recalled). For n > 2^(bits - 1) - 1 there is no such integer, which
    is refused.

    Parameters
    ----------
    scale : the integers per unit.
    bits : of an integer, two's complement.

    >>> IntSGD(scale=100.0, bits=8).claim(d=10, n=3) is None
    True
    """

    scale: Annotated[float, Interval(0.0, open="low")]
    bits: Annotated[int, Widths()] = 16

    name = "intsgd"
    aliases = ("integers",)
    example = "intsgd(scale=100.0)"
    layout = "an integer per coordinate, two's complement of the given bits; the scale is known"
    source = Source(
        "Mishchenko, Wang, Kovalev, Richtarik", 2021, "IntSGD: adaptive floatless compression of stochastic gradients",
        "2102.08374",
    )  # fmt: skip

    def share(self, d: int, n: int) -> float:
        return self.bits / 64

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        self._largest(keys.n)
        return (Slot(Bits(self.bits), torch.int32, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        flat, largest = v.reshape(v.shape[0], math.prod(v.shape[1:])), self._largest(keys.n)
        scaled = (flat.to(torch.float64) * self.scale).clamp(-largest, largest)
        below = scaled.floor()
        up = keys.uniform(flat.shape[1]) < scaled - below
        integers = (below + up).nan_to_num(0.0).to(torch.int64)
        return ((integers & ((1 << self.bits) - 1)).to(torch.int32).reshape(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        patterns, sign = message.codes[0].to(torch.int64) & ((1 << self.bits) - 1), 1 << (self.bits - 1)
        integers = (patterns ^ sign) - sign
        return Dense(fit(integers.to(torch.float64) / self.scale, dtype).view(message.rows, *shape))

    def _largest(self, n: int) -> int:
        largest = ((1 << (self.bits - 1)) - 1) // n
        if not largest:
            raise ValueError(
                f"IntSGD(bits={self.bits}) : the sum of {n} integers but 0 does not fit so many bits; use more"
            )
        return largest
