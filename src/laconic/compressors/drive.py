"""DRIVE: one bit per coordinate, after a random rotation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.compressors._rotation import Rotation, narrowed
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense
from laconic.core.entry import Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import dither
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class Drive(Compressor):
    """C(x) = S R' sign(R x) with R = H D / sqrt(p), D random signs of each worker, and S = ||R x||_1 / p.

    p is the least power of two >= d, to which x is padded with zeros; H is the Walsh-Hadamard matrix, sign(0) = +1.
    S is the scale of least error: what is read is the point nearest to x on the line of the signs. That makes C
    contractive and not unbiased: it is for error feedback. Coordinates from d on are dropped after decoding.

    Claim: contractive with alpha = 1/2 in expectation over D. Derived: the error is at most
    ||x||^2 - ||R x||_1^2 / p, and E|(R x)_j| >= ||x|| / sqrt(2p) by Khintchine's inequality with Szarek's constant;
    attained at x = (1, 1). The paper's 2 / pi = 0.64 is that of a uniform rotation: dense vectors of many coordinates
    come near to it here too. One spike arrives exactly.

    >>> Drive().claim(d=10, n=3)
    Contractive(alpha=0.5)
    """

    name = "drive"
    example = "drive"
    layout = (
        "the scale at full width, then one bit per rotated coordinate, 1 for negative, d rounded up to a power of two"
    )
    source = Source(
        "Vargaftik, Ben Basat, Portnoy, Mendelson, Ben-Itzhak, Mitzenmacher",
        2021,
        "DRIVE: one-bit distributed mean estimation",
        "2105.08339",
    )

    def claim(self, d: int, n: int) -> Contractive:
        return Contractive(0.5 if d > 1 else 1.0)

    def share(self, d: int, n: int) -> float:
        return (64 + Rotation(d).size) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        scale = wide(dtype)
        return Slot(Bits(8 * scale.itemsize), scale, 1), Slot(Bits(1), torch.uint8, Rotation(math.prod(shape)).size)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        rotated = Rotation(math.prod(v.shape[1:])).shrunk(v, keys)
        size = max(1, rotated.shape[1])
        most, unit, total, _ = dither.measure(rotated, size).view(-1, 4).unbind(-1)
        mean = unit * (total / size) + 0.0 * most  # NaN where something is not finite
        return narrowed(mean, wide(v.dtype)), dither.minus(rotated).view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        rotation = Rotation(math.prod(shape))
        codes, signs = (
            message.codes[1].view(message.rows, rotation.size),
            torch.tensor([1.0, -1.0], dtype=torch.float64),
        )
        values = rotation.back_codes(codes, signs, message.codes[0], keys, dtype)
        return Dense(values.view(message.rows, *shape))
