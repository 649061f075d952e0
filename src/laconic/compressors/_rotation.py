"""Random rotations: signs at random, then Walsh and Hadamard's transform, of the whole vector or block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.compressors._levels import flat
from laconic.core.entry import Range
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.kernels import hadamard, memory


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
        rows, out = flat(v), memory.empty((v.shape[0], self.size), torch.float64)
        drawn = words(keys, self._words)
        for begin, count, size in self.pieces:
            hadamard.enter(rows, drawn, size, begin, count, size, out)
        return out

    def scaled(self, shrunk: Tensor, dtype: torch.dtype) -> Tensor:
        """R v in a dtype, float64 or float32, from what `shrunk` returns."""
        out, plus = memory.empty(tuple(shrunk.shape), dtype), np.zeros((1, self._words), dtype=np.uint64)
        for begin, count, size in self.pieces:
            roots = np.full(len(shrunk), math.sqrt(size))
            hadamard.leave(shrunk, plus, roots, begin, begin + count * size, out)
        return out

    def back(self, rotated: Tensor, keys: Keys, dtype: torch.dtype) -> Tensor:
        """R' of rotated (rows, size), float64 or float32, in a dtype: (rows, d)."""
        work, plus = memory.empty(tuple(rotated.shape), torch.float64), np.zeros((1, self._words), dtype=np.uint64)
        for begin, count, size in self.pieces:
            hadamard.enter(rotated, plus, math.sqrt(size), begin, count, size, work)
        return self._restored(work, keys, np.ones(len(work)), dtype)

    def back_codes(self, codes: Tensor, table: Tensor, scales: Tensor, keys: Keys, dtype: torch.dtype) -> Tensor:
        """The scales (rows,) times R' times the root of each block's size, of what a table has at codes (rows, size).

        In a dtype, (rows, d); the table is float64 and has a place for every code.
        """
        work = memory.empty(tuple(codes.shape), torch.float64)
        for begin, count, size in self.pieces:
            hadamard.enter_codes(codes, table, begin, count, size, work)
        return self._restored(work, keys, scales.to(torch.float64).numpy(), dtype)

    def _restored(self, work: Tensor, keys: Keys, factors: np.ndarray, dtype: torch.dtype) -> Tensor:
        out = memory.empty((len(work), self.d), wide(dtype))
        drawn = words(keys, self._words)
        hadamard.leave(work, drawn, factors, 0, self.d, out)
        return narrowed(out, dtype) if out.dtype != dtype else out

    @property
    def _words(self) -> int:
        return -(-self.size // 64)


def words(keys: Keys, count: int) -> np.ndarray:
    """The bits of D, uint64 of shape (rows, count): coordinate j is minus where bit j mod 64 of word j / 64 is one."""
    return keys.words(count)


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values, float64, in the dtype; those that are too large for it become its largest finite number."""
    most = torch.finfo(dtype).max
    return values.clamp(-most, most).to(dtype)
