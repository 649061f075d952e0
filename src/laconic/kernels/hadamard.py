"""The fast Walsh-Hadamard transform of every row, and random signs on its coordinates.

A stage of half-length h replaces x_j and x_(j + h) by their sum and difference. Stages run from h = 1 upwards, each
coordinate once a stage, so the order in which the pieces of a stage are visited changes no bit.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels.threads import over_rows

BLOCK = 1 << 12  # coordinates worked on together: 32 KiB, the nearest cache
STREAMS = 1 << 6  # most places of a block that lie apart


@numba.njit(cache=True, nogil=True)
def _low(low, high, values, begin, pieces, block):
    """The stages within each block. Blocks low..high-1 are counted through the rows, `pieces` of them in each."""
    for unit in range(low, high):
        row = values[unit // pieces]
        first = begin + unit % pieces * block
        if block >= 4:  # the first two stages at once
            for j in range(first, first + block, 4):
                a, b, c, d = row[j] + row[j + 1], row[j] - row[j + 1], row[j + 2] + row[j + 3], row[j + 2] - row[j + 3]
                row[j], row[j + 1], row[j + 2], row[j + 3] = a + c, b + d, a - c, b - d
        half = 4 if block >= 4 else 1
        while half < block:
            for start in range(first, first + block, 2 * half):
                for j in range(start, start + half):
                    a, b = row[j], row[j + half]
                    row[j], row[j + half] = a + b, a - b
            half *= 2


@numba.njit(cache=True, nogil=True)
def _high(low, high, values, begin, tiles, half, streams):
    """The stages half, 2 half, ..., streams half / 2. A tile is `streams` stretches that lie `half` apart."""
    width = BLOCK // streams
    tile = np.empty(BLOCK)
    strips = half // width
    for unit in range(low, high):
        row, place = values[unit // tiles], unit % tiles
        first = begin + place // strips * half * streams + place % strips * width
        for stream in range(streams):  # in a place of its own: powers of two apart, stretches would evict each other
            tile[stream * width : (stream + 1) * width] = row[first + stream * half : first + stream * half + width]
        near = width
        while near < BLOCK:
            for start in range(0, BLOCK, 2 * near):
                for j in range(start, start + near):
                    a, b = tile[j], tile[j + near]
                    tile[j], tile[j + near] = a + b, a - b
            near *= 2
        for stream in range(streams):
            row[first + stream * half : first + stream * half + width] = tile[stream * width : (stream + 1) * width]


@numba.njit(cache=True, nogil=True)
def _flip(low, high, values, words, factor, begin, end, pieces):
    """Stretches of BLOCK coordinates, counted through the rows, `pieces` of them in each."""
    for unit in range(low, high):
        r = unit // pieces
        row, own = values[r], words[r % words.shape[0]]
        first = begin + unit % pieces * BLOCK
        for j in range(first, min(first + BLOCK, end)):
            minus = (own[j >> 6] >> uint64(j & 63)) & uint64(1)
            row[j] *= -factor if minus else factor


def flip(values: Tensor, words: np.ndarray, factor: float, begin: int, end: int) -> None:
    """values[r, j] *= factor for j in begin..end-1, in place, and another sign where a bit of the row's words is one.

    values is float64 of shape (rows, d); words is uint64, one row for each of them or one for all; the bit of
    coordinate j is bit j mod 64 of word floor(j / 64).
    """
    pieces = -(-(end - begin) // BLOCK)
    rows = values.shape[0]
    over_rows(_flip, rows * pieces, rows * (end - begin), values.numpy(), words, factor, begin, end, pieces)


def transform_blocks(values: Tensor, begin: int, count: int, size: int) -> None:
    """The transform of each of `count` blocks of `size` coordinates, a power of two, from `begin` on, in place."""
    rows, span = values.shape[0], count * size
    block = min(BLOCK, size)
    out, work = values.numpy(), rows * span
    over_rows(_low, work // block, work, out, begin, span // block, block)
    half = block
    while half < size:
        streams = min(STREAMS, size // half)
        over_rows(_high, work // BLOCK, work, out, begin, span // BLOCK, half, streams)
        half *= streams


def transform(values: Tensor) -> Tensor:
    """H values[r] for every row, in place; values is float64 of shape (rows, d) with d a power of two.

    H_jk is plus or minus one by the parity of the bits that j and k share, as in scipy.linalg.hadamard; H is symmetric
    and H H = d I. Sums are taken in one order, whatever shares the batch and however many threads there are.
    """
    d = values.shape[1]
    if d & (d - 1) or values.dtype != torch.float64:
        raise ValueError(f"a Walsh-Hadamard transform of {d} values of {values.dtype}: it takes 2^m values of float64")
    if d:
        transform_blocks(values, 0, 1, d)
    return values
