"""The fast Walsh-Hadamard transform of every row, and random signs on its coordinates.

A stage of half-length h replaces x_j and x_(j + h) by their sum and difference. Stages run from h = 1 upwards, each
coordinate once a stage, so the order in which the pieces of a stage are visited changes no bit. Three stages are done
at a time, so that a number is fetched and put back once for them.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels.threads import over_rows

BLOCK = 1 << 13  # coordinates worked on together: 64 KiB, a near cache
STREAMS = 1 << 6  # most places of a block that lie apart


@numba.njit(inline="always")
def _three(a, b, c, d, e, f, g, h):
    """Three stages of eight numbers."""
    a, b, c, d, e, f, g, h = a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h
    a, b, c, d, e, f, g, h = a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h
    return a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h


@numba.njit(cache=True, nogil=True)
def _stages(x, half):
    """The stages half, 2 half, ..., len(x) / 2 of x, whose length is a power of two."""
    size = len(x)
    if half == 1 and size >= 8:
        for j in range(0, size, 8):
            x[j], x[j + 1], x[j + 2], x[j + 3], x[j + 4], x[j + 5], x[j + 6], x[j + 7] = _three(
                x[j], x[j + 1], x[j + 2], x[j + 3], x[j + 4], x[j + 5], x[j + 6], x[j + 7]
            )
        half = 8
    while 8 * half <= size:
        for start in range(0, size, 8 * half):
            rest = x[start : start + 8 * half]
            a, b, c, d = rest[:half], rest[half:][:half], rest[2 * half :][:half], rest[3 * half :][:half]
            e, f, g, h = rest[4 * half :][:half], rest[5 * half :][:half], rest[6 * half :][:half], rest[7 * half :]
            for j in range(half):
                a[j], b[j], c[j], d[j], e[j], f[j], g[j], h[j] = _three(a[j], b[j], c[j], d[j], e[j], f[j], g[j], h[j])
        half *= 8
    while half < size:
        for start in range(0, size, 2 * half):
            a, b = x[start : start + half], x[start + half : start + 2 * half]
            for j in range(half):
                a[j], b[j] = a[j] + b[j], a[j] - b[j]
        half *= 2


@numba.njit(cache=True, nogil=True)
def _low(low, high, values, begin, pieces, block):
    """The stages within each block. Blocks low..high-1 are counted through the rows, `pieces` of them in each."""
    for unit in range(low, high):
        first = begin + unit % pieces * block
        _stages(values[unit // pieces, first : first + block], 1)


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
        _stages(tile, width)
        for stream in range(streams):
            row[first + stream * half : first + stream * half + width] = tile[stream * width : (stream + 1) * width]


@numba.njit(inline="always")
def _turn(here, words, begin, factor):
    """here[j] *= factor, and another sign where bit begin + j of the words is one."""
    done = 0
    while done < len(here):
        place = begin + done
        word = words[place >> 6] >> uint64(place & 63)
        some = here[done : done + 64 - (place & 63)]
        for j in range(len(some)):
            x = some[j] * factor
            some[j] = -x if (word >> uint64(j)) & uint64(1) else x
        done += len(some)


@numba.njit(cache=True, nogil=True)
def _flip(low, high, values, words, factor, begin, end, pieces):
    """Stretches of BLOCK coordinates, counted through the rows, `pieces` of them in each."""
    for unit in range(low, high):
        first = begin + unit % pieces * BLOCK
        _turn(
            values[unit // pieces, first : min(first + BLOCK, end)], words[unit // pieces % len(words)], first, factor
        )


def flip(values: Tensor, words: np.ndarray, factor: float, begin: int, end: int) -> None:
    """values[r, j] *= factor for j in begin..end-1, in place, and another sign where a bit of the row's words is one.

    values is float64 of shape (rows, d); words is uint64, one row for each of them or one for all; the bit of
    coordinate j is bit j mod 64 of word floor(j / 64).
    """
    pieces = -(-(end - begin) // BLOCK)
    rows = values.shape[0]
    over_rows(_flip, rows * pieces, rows * (end - begin), values.numpy(), words, factor, begin, end, pieces)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _enter(low, high, v, words, divisor, begin, pieces, block, values):
    """Blocks of v over the divisor, with signs, and zeros from its end on; then the stages within each."""
    d = v.shape[1]
    for unit in range(low, high):
        row, first = unit // pieces, begin + unit % pieces * block
        there = values[row, first : first + block]
        known = max(0, min(block, d - first))
        here = v[row, first : first + known]
        for j in range(known):
            there[j] = np.float64(here[j]) / divisor
        there[known:] = 0.0
        if known:
            _turn(there[:known], words[row % len(words)], first, 1.0)
            _stages(there, 1)


def enter(v: Tensor, words: np.ndarray, divisor: float, begin: int, count: int, size: int, values: Tensor) -> None:
    """The transform of each of `count` blocks of `size` coordinates of v / divisor, from `begin` on, in values.

    v (rows, d) is float64 or float32, signs are as in `flip`; from d on there are zeros.
    """
    rows, block = len(v), min(BLOCK, size)
    pieces = count * size // block
    numbers = v.contiguous().numpy()
    over_rows(_enter, rows * pieces, rows * count * size, numbers, words, divisor, begin, pieces, block, values.numpy())
    _above(values, begin, count, size)


@numba.njit(cache=True, nogil=True)
def _enter_codes(low, high, codes, table, begin, pieces, block, values):
    for unit in range(low, high):
        row, first = unit // pieces, begin + unit % pieces * block
        here, there = codes[row, first : first + block], values[row, first : first + block]
        for j in range(block):
            there[j] = table[here[j]]
        _stages(there, 1)


def enter_codes(codes: Tensor, table: Tensor, begin: int, count: int, size: int, values: Tensor) -> None:
    """As `enter`, of what a table (float64) has at codes (rows, d), uint8, modulo its length, a power of two."""
    rows, block = len(codes), min(BLOCK, size)
    pieces = count * size // block
    inputs = codes.contiguous().numpy(), table.repeat(256 // len(table)).numpy()
    over_rows(_enter_codes, rows * pieces, rows * count * size, *inputs, begin, pieces, block, values.numpy())
    _above(values, begin, count, size)


@numba.njit(cache=True, nogil=True)
def _leave(low, high, values, words, factors, most, begin, end, pieces, out):
    buffer = np.empty(BLOCK)
    for unit in range(low, high):
        row, first = unit // pieces, begin + unit % pieces * BLOCK
        here, there = values[row, first : min(first + BLOCK, end)], out[row, first : min(first + BLOCK, end)]
        some = buffer[: len(here)]
        some[:] = here
        _turn(some, words[row % len(words)], first, factors[row])
        for j in range(len(some)):
            x = some[j]
            x = most if x > most else x
            there[j] = -most if x < -most else x


def leave(values: Tensor, words: np.ndarray, factors: np.ndarray, begin: int, end: int, out: Tensor) -> None:
    """out[r, j] = values[r, j] times the row's factor, with the signs of `flip`, for j in begin..end-1.

    What is too large for the dtype of `out`, float64 or float32, becomes its largest finite number.
    """
    pieces, rows = -(-(end - begin) // BLOCK), len(values)
    most = torch.finfo(out.dtype).max
    inputs = values.numpy(), words, factors, most, begin, end, pieces
    over_rows(_leave, rows * pieces, rows * (end - begin), *inputs, out.numpy())


def transform_blocks(values: Tensor, begin: int, count: int, size: int) -> None:
    """The transform of each of `count` blocks of `size` coordinates, a power of two, from `begin` on, in place."""
    block, work = min(BLOCK, size), values.shape[0] * count * size
    over_rows(_low, work // block, work, values.numpy(), begin, count * size // block, block)
    _above(values, begin, count, size)


def _above(values: Tensor, begin: int, count: int, size: int) -> None:
    """The stages from BLOCK on."""
    half, work = BLOCK, values.shape[0] * count * size
    while half < size:
        streams = min(STREAMS, size // half)
        over_rows(_high, work // BLOCK, work, values.numpy(), begin, count * size // BLOCK, half, streams)
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
