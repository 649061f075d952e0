"""Quantisation: scales of blocks, random rounding to levels, back again, and the two means of a sign split.

Vectors lie in blocks of `size` coordinates, the last one shorter. All sums run in one order, in float64, so that they
do not depend on threads or company. Codes are zig-zag: levels 0, -1, 1, -2, 2, ... are 0, 1, 2, 3, 4, ...
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.philox import BUFFER, halves
from laconic.kernels.threads import SPAN, over_rows, over_spans, span

LANES = 32  # partial sums of a span: lane l adds the entries l, l + LANES, ...; then the upper half to the lower, ...
EXTREME = 2.0**400  # float64 magnitudes above this, or below its inverse, are scaled before they are squared


@numba.njit(cache=True, nogil=True)
def _measure(low, high, v, size, units, out):
    """out[row, block, span] = (max |x|, sum |x| / unit, sum (x / unit)^2) of the spans of the blocks."""
    d, (blocks, spans) = v.shape[1], out.shape[1:3]
    most, total, squares = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    for piece in range(low, high):
        row, block, part = piece // (blocks * spans), piece // spans % blocks, piece % spans
        begin = block * size + part * SPAN
        here = v[row, begin : max(begin, min(begin + SPAN, (block + 1) * size, d))]
        scale = 1.0 / units[row, block]
        most[:], total[:], squares[:] = 0.0, 0.0, 0.0
        for start in range(0, len(here), LANES):
            for lane in range(min(LANES, len(here) - start)):
                x = abs(np.float64(here[start + lane])) * scale
                most[lane] = x if x > most[lane] else most[lane]
                total[lane] += x
                squares[lane] += x * x
        half = LANES // 2
        while half:
            for lane in range(half):
                most[lane] = max(most[lane], most[half + lane])
                total[lane] += total[half + lane]
                squares[lane] += squares[half + lane]
            half //= 2
        out[row, block, part, 0] = most[0] * units[row, block]
        out[row, block, part, 1], out[row, block, part, 2] = total[0], squares[0]


@numba.njit(cache=True, nogil=True)
def _add(partial, out):
    """Adds the spans' sums in order, and takes the largest of their largest."""
    rows, blocks, spans = partial.shape[:3]
    for row in range(rows):
        for block in range(blocks):
            most = total = squares = 0.0
            for part in range(spans):
                most = max(most, partial[row, block, part, 0])
                total += partial[row, block, part, 1]
                squares += partial[row, block, part, 2]
            out[row, block, 0], out[row, block, 2], out[row, block, 3] = most, total, squares


def measure(v: Tensor, size: int) -> Tensor:
    """Of every block of v (rows, d): (m, u, sum |x| / u, sum (x / u)^2), m the largest magnitude, u a power of two.

    float64 of shape (rows, blocks, 4). u is 1 unless m is so large or small that squares could over- or underflow.
    m is NaN where the block is not finite.
    """
    (rows, d), numbers = v.shape, v.contiguous().numpy()
    blocks, spans = -(-d // size), -(-min(size, max(1, d)) // SPAN)
    partial, out = np.empty((rows, blocks, spans, 3)), np.ones((rows, blocks, 4))
    over_rows(_measure, rows * blocks * spans, v.numel(), numbers, size, out[:, :, 1], partial)
    _add(partial, out)
    most = out[:, :, 0]
    extreme = np.isfinite(most) & (most > 0) & ((most > EXTREME) | (most < 1 / EXTREME))
    if v.dtype == torch.float64 and extreme.any():
        out[:, :, 1][extreme] = np.exp2(np.clip(np.frexp(most[extreme])[1], -1000, 1000))
        over_rows(_measure, rows * blocks * spans, v.numel(), numbers, size, out[:, :, 1], partial)
        _add(partial, out)
    out[:, :, 0][~(np.isfinite(out[:, :, 0]) & np.isfinite(out[:, :, 2]))] = np.nan
    return torch.from_numpy(out)


@numba.njit(inline="always")
def _uniform(x, pattern, levels, u):
    """The level of |x| = `x` <= 1 among 0, 1/s, ..., 1: up with the probability that keeps the mean."""
    y = x * levels
    below = math.floor(y)
    return np.int32(below) + np.int32(u < y - below)


@numba.njit(inline="always")
def _power(x, pattern, levels, u):
    """The level of |x| = `x` <= 1 among 0, 2^(1-s), ..., 1/2, 1, from its pattern: x = (1 + mantissa) 2^exponent."""
    exponent = np.int32(pattern >> uint64(52)) - np.int32(1023)
    mantissa = (pattern & uint64((1 << 52) - 1)) * 2.0**-52
    inside = exponent > -levels  # at or above the least level over zero
    up = mantissa if inside else x * 2.0 ** (levels - 1)
    return (np.int32(exponent + levels) if inside else np.int32(0)) + np.int32(u < up)


@numba.njit(inline="always")
def _draw(rule, low, high, v, scales, size, levels, address, workers, out):
    """Coordinate j uses the worker's j-th word of the width of a number."""
    buffer, ratios = np.empty(BUFFER, np.uint32), np.empty(BUFFER, np.float64)
    words, patterns = buffer.view(np.uint64), ratios.view(np.uint64)
    for piece in range(low, high):
        row, begin, end = span(piece, v.shape[1])
        start = begin
        while start < end:
            drawn = min(BUFFER * 4 // v.itemsize, end - start)
            halves(address, workers[row], start * v.itemsize // 16, buffer[: (drawn * v.itemsize + 15) // 16 * 4])
            done = 0
            while done < drawn:  # block by block
                block = (start + done) // size
                count = min(drawn, (block + 1) * size - start) - done
                scale = np.float64(scales[row, block])
                here, there = v[row, start + done :][:count], out[row, start + done :][:count]
                usable = scale > 0.0  # else a block of zeros, or one that is not finite
                for j in range(count):
                    ratios[j] = abs(np.float64(here[j])) / scale if usable else 0.0
                for j in range(count):
                    if v.itemsize == 4:
                        u = buffer[done + j] * 2.0**-32
                    else:
                        u = (words[done + j] >> uint64(11)) * 2.0**-53
                    level = rule(ratios[j], patterns[j], levels, u)
                    there[j] = 2 * level - np.int32((here[j] < 0) & (level > 0))
                done += count
            start += drawn


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dither_uniform(low, high, v, scales, size, levels, address, workers, out):
    _draw(_uniform, low, high, v, scales, size, levels, address, workers, out)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dither_powers(low, high, v, scales, size, levels, address, workers, out):
    _draw(_power, low, high, v, scales, size, levels, address, workers, out)


def uniform(v: Tensor, scales: Tensor, size: int, levels: int, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """Zig-zag codes of v (rows, d) over its scales (rows, blocks), no smaller than the magnitudes of their blocks.

    Levels are 0, 1/s, ..., 1. Codes are uint8 where they fit, else int16 bit patterns, of shape (rows, d). Coordinate j
    of float64 uses the worker's j-th 64-bit word, of float32 its j-th half of one, lower halves first.
    """
    return _dither(_dither_uniform, v, scales, size, levels, address, workers)


def powers(v: Tensor, scales: Tensor, size: int, levels: int, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """As `uniform`, with the levels 0, 2^(1-s), ..., 1/2, 1."""
    return _dither(_dither_powers, v, scales, size, levels, address, workers)


def _dither(kernel: Callable[..., object], v: Tensor, scales: Tensor, size: int, levels: int, *address) -> Tensor:
    out = memory.empty(tuple(v.shape), code_dtype(levels))
    unsigned = out.numpy().view(f"u{out.element_size()}")
    inputs = v.contiguous().numpy(), scales.contiguous().numpy()
    over_spans(kernel, *v.shape, *inputs, size, levels, *address, unsigned)
    return out


def code_dtype(levels: int) -> torch.dtype:
    """What holds the codes 0..2s."""
    return torch.uint8 if 2 * levels < 1 << 8 else torch.int16


@numba.njit(cache=True, nogil=True)
def _expand(low, high, codes, scales, size, table, out):
    for piece in range(low, high):
        row, begin, end = span(piece, codes.shape[1])
        start = begin
        while start < end:
            block = start // size
            stop = min(end, (block + 1) * size)
            scale = np.float64(scales[row, block])
            here, there = codes[row, start:stop], out[row, start:stop]
            for j in range(stop - start):
                there[j] = scale * table[here[j]]
            start = stop


def expand(codes: Tensor, scales: Tensor, size: int, table: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales (rows, blocks) times what a table (float64) has at the codes (rows, d): values of a dtype, (rows, d).

    Codes must be places of the table. The product is taken in float64.
    """
    if dtype not in (torch.float64, torch.float32):
        return expand(codes, scales, size, table, torch.float32).to(dtype)
    out = memory.empty(tuple(codes.shape), dtype)
    unsigned = codes.contiguous().numpy().view(f"u{codes.element_size()}")
    inputs = unsigned, scales.contiguous().numpy(), size, table.numpy()
    over_spans(_expand, *codes.shape, *inputs, out.numpy())
    return out


@numba.njit(cache=True, nogil=True)
def _minus(low, high, v, out):
    for piece in range(low, high):
        row, begin, end = span(piece, v.shape[1])
        here, there = v[row, begin:end], out[row, begin:end]
        for j in range(end - begin):
            there[j] = not here[j] >= 0


def minus(v: Tensor) -> Tensor:
    """Codes of the signs of v (rows, d), uint8: 0 for plus, which zeros of either sign count as, 1 for minus."""
    out = memory.empty(tuple(v.shape), torch.uint8)
    over_spans(_minus, *v.shape, v.contiguous().numpy(), out.numpy())
    return out


@numba.njit(cache=True, nogil=True)
def _means(low, high, v, columns, counts, out):
    """Running means: they stay between the values, so nothing overflows."""
    d = v.shape[1]
    for row in range(low, high):
        for begin in range(0, d, columns):
            for j in range(begin, min(begin + columns, d)):
                x = np.float64(v[row, j])
                column, side = j - begin, 0 if x >= 0.0 else 1
                counts[row, column, side] += 1
                mean = out[row, column, side]
                out[row, column, side] = mean + (x - mean) / counts[row, column, side]


def means(v: Tensor, columns: int) -> Tensor:
    """Of v (rows, d), column j mod columns: the mean of the entries >= 0 and of the others, 0 where there are none.

    float64 of shape (rows, columns, 2).
    """
    out = torch.zeros((v.shape[0], columns, 2), dtype=torch.float64)
    counts = np.zeros(out.shape, dtype=np.int64)
    over_rows(_means, v.shape[0], v.numel(), v.contiguous().numpy(), columns, counts, out.numpy())
    return out
