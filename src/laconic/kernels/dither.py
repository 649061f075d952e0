"""Quantisation: scales of blocks, random rounding to levels, and the two means of a sign split.

Vectors lie in blocks of `size` coordinates, the last one shorter. All sums run in index order, in float64, so that
they do not depend on threads or company. Codes are zig-zag: levels 0, -1, 1, -2, 2, ... are 0, 1, 2, 3, 4, ...
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels.philox import word_pair
from laconic.kernels.threads import over_rows


@numba.njit(cache=True, nogil=True)
def _measure(low, high, v, size, out):
    """out[row, block] = (m, sum |x| / m, sum (x / m)^2) with m the largest magnitude: nothing over- or underflows."""
    d = v.shape[1]
    for row in range(low, high):
        for block in range(out.shape[1]):
            begin, end = block * size, min((block + 1) * size, d)
            largest, finite = 0.0, True
            for j in range(begin, end):
                x = abs(np.float64(v[row, j]))
                finite &= x < np.inf
                largest = max(largest, x)
            total, squares = 0.0, 0.0
            if finite and largest > 0.0:
                for j in range(begin, end):
                    x = abs(np.float64(v[row, j])) / largest
                    total += x
                    squares += x * x
            out[row, block, 0] = largest if finite else np.nan
            out[row, block, 1] = total
            out[row, block, 2] = squares


def measure(v: Tensor, size: int) -> Tensor:
    """Of every block of v (rows, d): (m, sum |x| / m, sum (x / m)^2), m the largest magnitude.

    float64 of shape (rows, blocks, 3). m is NaN where the block is not finite.
    """
    rows, d = v.shape
    out = torch.empty((rows, -(-d // size), 3), dtype=torch.float64)
    over_rows(_measure, rows, v.numel(), v.contiguous().numpy(), size, out.numpy())
    return out


@numba.njit(inline="always")
def _zigzag(level, negative):
    """The code of a magnitude's level under a sign; zero has no sign."""
    return 2 * level - 1 if negative and level > 0 else 2 * level


@numba.njit(inline="always")
def _uniform(x, levels, word):
    """The level of |x| = `x` <= 1 among 0, 1/s, ..., 1: up with the probability that keeps the mean."""
    y = x * levels
    below = math.floor(y)
    return np.int64(below) + ((word >> uint64(11)) * 2.0**-53 < y - below)


@numba.njit(inline="always")
def _power(x, levels, word):
    """The level of |x| = `x` <= 1 among 0, 2^(1-s), ..., 1/2, 1."""
    if x < math.ldexp(1.0, 1 - levels):  # under the least level above zero
        below, up = np.int64(0), math.ldexp(x, levels - 1)
    else:
        mantissa, exponent = math.frexp(x)  # x = mantissa 2^exponent, mantissa in [1/2, 1)
        below, up = np.int64(exponent - 1 + levels), 2.0 * mantissa - 1.0
    return below + ((word >> uint64(11)) * 2.0**-53 < up)


@numba.njit(inline="always")
def _draw(rule, row, v, scales, size, levels, address, worker, out):
    """Coordinate j uses the worker's j-th word."""
    d = v.shape[1]
    for pair in range((d + 1) // 2):
        words = word_pair(address, worker, pair)
        for j in range(2 * pair, min(2 * pair + 2, d)):
            scale = np.float64(scales[row, j // size])
            x = np.float64(v[row, j])
            if scale > 0.0:
                out[row, j] = _zigzag(rule(abs(x) / scale, levels, words[j & 1]), x < 0.0)
            else:  # a block of zeros, or one that is not finite
                out[row, j] = 0


@numba.njit(cache=True, nogil=True)
def _dither_uniform(low, high, v, scales, size, levels, address, workers, out):
    for row in range(low, high):
        _draw(_uniform, row, v, scales, size, levels, address, workers[row], out)


@numba.njit(cache=True, nogil=True)
def _dither_powers(low, high, v, scales, size, levels, address, workers, out):
    for row in range(low, high):
        _draw(_power, row, v, scales, size, levels, address, workers[row], out)


def uniform(v: Tensor, scales: Tensor, size: int, levels: int, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """Zig-zag codes of v (rows, d) over its scales (rows, blocks), no smaller than the magnitudes of their blocks.

    Levels are 0, 1/s, ..., 1. Codes are uint8 where they fit, else int16 bit patterns, of shape (rows, d).
    """
    return _dither(_dither_uniform, v, scales, size, levels, address, workers)


def powers(v: Tensor, scales: Tensor, size: int, levels: int, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """As `uniform`, with the levels 0, 2^(1-s), ..., 1/2, 1."""
    return _dither(_dither_powers, v, scales, size, levels, address, workers)


def _dither(kernel, v, scales, size, levels, address, workers):
    out = torch.empty(v.shape, dtype=code_dtype(levels))
    unsigned = out.numpy().view(f"u{out.element_size()}")
    inputs = v.contiguous().numpy(), scales.contiguous().numpy()
    over_rows(kernel, v.shape[0], 8 * v.numel(), *inputs, size, levels, address, workers, unsigned)
    return out


def code_dtype(levels: int) -> torch.dtype:
    """What holds the codes 0..2s."""
    return torch.uint8 if 2 * levels < 1 << 8 else torch.int16


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
