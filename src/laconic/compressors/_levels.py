"""What quantisers share: blocks with a scale each, a zig-zag level of fixed width per coordinate, and their ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.core.compressor import Dense
from laconic.core.entry import Range
from laconic.core.floats import wide
from laconic.core.message import Message, Schema, Slot
from laconic.kernels import dither
from laconic.wire import levels as coding
from laconic.wire.coding import Bits


@dataclass(frozen=True)
class Levels(Range):
    """An integer between 1 and `most`."""

    most: int

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= self.most

    def examples_outside(self) -> tuple[Any, ...]:
        return (0, -1, self.most + 1, 1.5, True, "many")

    def __str__(self) -> str:
        return f"an integer in 1..{self.most}"


@dataclass(frozen=True)
class Grid:
    """Levels -s..s times the scale of a block of `block` coordinates (None: the whole vector), as they travel.

    A message holds the scales of the blocks at full width, then a code in 0..2s per coordinate, entropy-coded where
    that is shorter than a fixed width: levels 0, -1, 1, -2, 2, ... are 0, 1, 2, 3, 4, ...
    """

    levels: int
    block: int | None = None

    def size(self, d: int) -> int:
        """The coordinates of the largest block."""
        return max(1, d if self.block is None else min(self.block, d))

    def share(self, d: int) -> float:
        """The most that a message takes, as a share of d values of 64 bits."""
        codes = 8 * -(-d // 5) if self.levels == 1 else (2 * self.levels).bit_length() * d
        return (64 * -(-d // self.size(d)) + codes) / (64 * d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype) -> Schema:
        """The scales, then the codes."""
        d = math.prod(shape)
        scales = scale_slot(dtype, -(-d // self.size(d)))
        return scales, Slot(coding.Levels(2 * self.levels + 1), dither.code_dtype(self.levels), d)

    def signed(self) -> Tensor:
        """The level of every code, int64 of shape (2s + 1,)."""
        codes = torch.arange(2 * self.levels + 1)
        return torch.where(codes % 2 == 0, 1, -1) * ((codes + 1) // 2)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, fractions: Tensor) -> Dense:
        """Scales times the fractions of the codes, float64 of shape (2s + 1,)."""
        d, rows = math.prod(shape), message.rows
        codes, scales = message.codes[1].view(rows, d), message.codes[0].view(rows, -(-d // self.size(d)))
        return Dense(dither.expand(codes, scales, self.size(d), fractions, dtype).view(rows, *shape))


def scale_slot(dtype: torch.dtype, count: int) -> Slot:
    """The field of that many scales of vectors of a dtype, in the width that scales travel in."""
    return Slot(Bits(8 * wide(dtype).itemsize), wide(dtype), count)


def flat(v: Tensor) -> Tensor:
    """v (rows, *shape) as (rows, d), contiguous, in the dtype that arithmetic is done in."""
    return v.reshape(v.shape[0], math.prod(v.shape[1:])).to(wide(v.dtype)).contiguous()


def spread(scales: Tensor, size: int, d: int) -> Tensor:
    """The scale of each coordinate, (rows, d) or (rows, 1) of scales (rows, blocks)."""
    return scales if scales.shape[1] == 1 else scales.repeat_interleave(size, dim=1)[:, :d]


def largest(v: Tensor, size: int) -> Tensor:
    """The largest magnitude of every block of v (rows, d), in its dtype; NaN where the block is not finite."""
    return dither.measure(v, size)[..., 0].to(v.dtype)


def euclidean(v: Tensor, size: int) -> Tensor:
    """The Euclidean norm of every block of v (rows, d), in its dtype; NaN where the block is not finite.

    No smaller than the largest magnitude after rounding and no larger than the largest finite number, so that
    rounding to levels stays unbiased for every finite vector.
    """
    most, unit, _, squares = dither.measure(v, size).unbind(-1)
    norm = (unit * squares.sqrt()).clamp(max=torch.finfo(v.dtype).max)
    return torch.maximum(norm, most).to(v.dtype)


def uniform_fractions(grid: Grid) -> Tensor:
    """Level k is k / s."""
    return grid.signed().to(torch.float64) / grid.levels  # an integer tensor would be divided in float32


def power_fractions(grid: Grid) -> Tensor:
    """Level k > 0 is 2^(k - s), level 0 is 0."""
    level = grid.signed()
    return level.sign() * torch.exp2((level.abs() - grid.levels).to(torch.float64))
