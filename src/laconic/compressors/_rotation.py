"""Random rotations: signs at random, then Walsh and Hadamard's transform, of the whole vector or block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Range
from laconic.core.keys import Keys
from laconic.kernels.hadamard import flip, transform_blocks


@dataclass(frozen=True)
class PowerOfTwo(Range):
    """1, 2, 4, 8, ..."""

    def holds(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= 1 and not value & (value - 1)

    def examples_outside(self) -> tuple[Any, ...]:
        return (0, -2, 3, 12, 2.0, "many", True)

    def __str__(self) -> str:
        return "a power of two"


@dataclass(frozen=True)
class Rotation:
    """R = H D / sqrt(p) of each block of a vector of d coordinates, D random signs.

    Blocks have `block` coordinates; those that are left, or all of them where block is None, are padded with zeros to
    the least power of two.
    """

    d: int
    block: int | None = None

    @property
    def pieces(self) -> tuple[tuple[int, int, int], ...]:
        """Blocks of one size, which are at most two kinds: (the first one's begin, how many, their size)."""
        count = self.d // self.block if self.block else 0
        covered = count * (self.block or 0)
        rest = self.d - covered
        whole = ((0, count, self.block),) if self.block and count else ()
        return *whole, *(((covered, 1, 1 << (rest - 1).bit_length()),) if rest else ())

    @property
    def size(self) -> int:
        """How many coordinates there are with the zeros."""
        return sum(count * size for _, count, size in self.pieces)

    def shrunk(self, v: Tensor, keys: Keys) -> Tensor:
        """R v over the root of each block's size, float64 of shape (rows, size), of v (rows, *shape).

        No coordinate is larger than the largest of v; what is divided by is a power of two.
        """
        out = torch.zeros(v.shape[0], self.size, dtype=torch.float64)
        out[:, : self.d] = v.reshape(v.shape[0], self.d)
        drawn = words(keys, -(-self.size // 64))
        for begin, count, size in self.pieces:
            flip(out, drawn, 1.0 / size, begin, begin + count * size)
            transform_blocks(out, begin, count, size)
        return out

    def restored(self, values: Tensor, keys: Keys) -> Tensor:
        """R' values times the root of each block's size, (rows, d); values (rows, size) is float64, and is used up."""
        drawn = words(keys, -(-self.size // 64))
        for begin, count, size in self.pieces:
            transform_blocks(values, begin, count, size)
            flip(values, drawn, 1.0, begin, begin + count * size)
        return values[:, : self.d]

    def roots(self) -> tuple[tuple[slice, float], ...]:
        """The root of the size of its block, for the coordinates of each kind of blocks."""
        return tuple((slice(begin, begin + count * size), math.sqrt(size)) for begin, count, size in self.pieces)


def words(keys: Keys, count: int) -> np.ndarray:
    """The bits of D, uint64 of shape (rows, count): coordinate j is minus where bit j mod 64 of word j / 64 is one."""
    return keys.words(count)


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values, float64, in the dtype; those that are too large for it become its largest finite number."""
    most = torch.finfo(dtype).max
    return values.clamp(-most, most).to(dtype)
