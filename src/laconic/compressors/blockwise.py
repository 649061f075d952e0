"""Blockwise integers: a scale per block, its largest magnitude, and every coordinate at the nearest level of it."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._levels import Grid, flat, uniform_fractions
from laconic.core.compressor import Compressor, Contractive, Decoded
from laconic.core.entry import Count, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema
from laconic.kernels import nearest

_LAYOUT = (
    "the largest magnitude of each block at full width, then a zig-zag level per coordinate, entropy-coded where that"
    " is shorter"
)
_SOURCE = Source(
    "Dettmers, Lewis, Shleifer, Zettlemoyer", 2021, "8-bit optimizers via block-wise quantization", "2110.02861"
)


def _claim(grid: Grid, d: int) -> Contractive:
    """Errors e_j of a block with largest magnitude m obey e_j <= min(|x_j|, m / (2 s)), and that of m is 0."""
    t = (grid.size(d) - 1) / (4.0 * grid.levels**2)
    return Contractive(1.0 / (1.0 + t))


def _codes(v: Tensor, grid: Grid) -> tuple[Tensor, ...]:
    rows = flat(v)
    size = grid.size(rows.shape[1])
    scales = nearest.largest(rows, size)
    return scales.view(-1), nearest.levels(rows, scales, size, grid.levels).view(-1)


class _AbsMax(Compressor):
    """Nearest levels of a grid that is scaled to each block's largest magnitude."""

    @property
    @abstractmethod
    def _grid(self) -> Grid: ...

    def claim(self, d: int, n: int) -> Contractive:
        return _claim(self._grid, d)

    def share(self, d: int, n: int) -> float:
        return self._grid.share(d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return self._grid.schema(shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _codes(v, self._grid)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return self._grid.decode(message, shape, dtype, uniform_fractions(self._grid))


@dataclass(frozen=True)
class Int8(_AbsMax):
    """C(x)_j = (m / 127) round(127 x_j / m), m the largest magnitude of the block; ties to the even level.

    Claim: contractive with alpha = 1 / (1 + t), t = (B - 1) / (4 127^2), B the largest block (derived; attained where
    all but one coordinate of a block are m / 254; it implies the more usual 1 - t, which means nothing for
    B > 64516). Biased, by at most m / 254 per coordinate. A block of zeros arrives as zeros, one that is not finite
    as NaN.

    Parameters
    ----------
    block : coordinates per block, the last one shorter.

    >>> round(Int8(block=4096).claim(d=10**6, n=3).alpha, 4)
    0.9403
    """

    block: Annotated[int, Count(1)] = 4096

    name = "int8"
    example = "int8"
    layout = _LAYOUT
    source = _SOURCE

    @property
    def _grid(self) -> Grid:
        return Grid(127, self.block)


@dataclass(frozen=True)
class Int4(_AbsMax):
    """C(x)_j = (m / 7) round(7 x_j / m), m the largest magnitude of the block; ties to the even level.

    Claim: contractive with alpha = 1 / (1 + t), t = (B - 1) / 196, B the largest block (derived; attained where all
    but one coordinate of a block are m / 14). Biased, by at most m / 14 per coordinate: with error feedback, or not at
    all. A block of zeros arrives as zeros, one that is not finite as NaN.

    Parameters
    ----------
    block : coordinates per block, the last one shorter.

    >>> Int4(block=50).claim(d=1000, n=3)
    Contractive(alpha=0.8)
    """

    block: Annotated[int, Count(1)] = 64

    name = "int4"
    example = "int4"
    layout = _LAYOUT
    source = _SOURCE

    @property
    def _grid(self) -> Grid:
        return Grid(7, self.block)
