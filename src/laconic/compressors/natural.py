"""Natural compression: signs and exponents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.compressors._levels import flat
from laconic.core.compressor import Compressor, Decoded, Dense, Unbiased
from laconic.core.entry import Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import natural
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class Natural(Compressor):
    """Rounds every magnitude at random to one of the two nearest powers of two, without bias.

    Claim: unbiased with omega = 1/8, attained at mantissa 4/3, independent over workers and coordinates. In the
    denormal range the error is bounded absolutely (by the least normal number) and not relatively; the largest binade
    rounds down, so that a finite input never becomes infinite.

    >>> Natural().claim(d=10, n=3)
    Unbiased(omega=0.125)
    """

    name = "natural"
    aliases = ("cnat",)
    example = "natural"
    layout = "sign and exponent of every value: 12 bits for float64, 9 bits for float32 and bfloat16"
    source = Source(
        "Horvath, Ho, Horvath, Sahu, Canini, Richtarik",
        2019,
        "Natural compression for distributed deep learning",
        "1905.10988",
    )

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(0.125)

    def share(self, d: int, n: int) -> float:
        return natural.WIDTH[torch.float64] / 64

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return (Slot(Bits(natural.WIDTH[wide(dtype)]), torch.int16, math.prod(shape)),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return (natural.encode(flat(v), keys.address, keys.workers).view(-1),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return Dense(natural.decode(message.codes[0], wide(dtype)).to(dtype).view(message.rows, *shape))
