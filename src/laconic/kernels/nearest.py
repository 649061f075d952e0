"""Rounding to the nearest: levels of a block scaled to its largest magnitude, floats of eight bits, any few cells.

Nothing is drawn. Loops run over stretches of a block, and what they do to a number is the same for all of them, so
that compilers make vector instructions of it.
"""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.threads import SPAN, over_rows, over_spans, span

NEAR = 1 << 9  # coordinates whose float64 are kept between two loops


@numba.njit(cache=True, nogil=True)
def _largest(low, high, patterns, size, magnitude, out):
    """out[row, block, span] = the largest bit pattern without its sign."""
    d, (blocks, spans) = patterns.shape[1], out.shape[1:]
    for piece in range(low, high):
        row, block, part = piece // (blocks * spans), piece // spans % blocks, piece % spans
        begin = block * size + part * SPAN
        here = patterns[row, begin : max(begin, min(begin + SPAN, (block + 1) * size, d))]
        most = magnitude & ~magnitude
        for j in range(len(here)):
            most = max(most, here[j] & magnitude)
        out[row, block, part] = most


def largest(v: Tensor, size: int) -> Tensor:
    """The largest magnitude of every block of `size` coordinates of v (rows, d); NaN where the block is not finite.

    Shape (rows, blocks), in the dtype of v, float64 or float32. Bit patterns of magnitudes are ordered as they are.
    """
    (rows, d), width = v.shape, 8 * v.element_size()
    patterns = v.contiguous().numpy().view(f"u{width // 8}")
    blocks, spans = -(-d // size), -(-min(size, max(1, d)) // SPAN)
    partial = np.zeros((rows, blocks, spans), dtype=patterns.dtype)
    magnitude = patterns.dtype.type((1 << (width - 1)) - 1)
    over_rows(_largest, partial.size, v.numel(), patterns, size, magnitude, partial)
    out = torch.from_numpy(partial.max(2)).view(v.dtype)
    return torch.where(out.isfinite(), out, math.nan)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _levels(low, high, v, scales, size, levels, magic, out):
    for piece in range(low, high):
        row, begin, end = span(piece, v.shape[1])
        start = begin
        while start < end:
            block = start // size
            stop = min(end, (block + 1) * size)
            scale = scales[row, block]
            here, there = v[row, start:stop], out[row, start:stop]
            if scale > v.dtype.type(0):
                for j in range(stop - start):
                    level = np.int32((here[j] / scale * levels + magic) - magic)
                    there[j] = 2 * abs(level) - np.int32(level < 0)
            else:  # a block of zeros, or one that is not finite
                there[:] = 0
            start = stop


def levels(v: Tensor, scales: Tensor, size: int, levels: int) -> Tensor:
    """Zig-zag codes of the integers nearest to s v / scale, ties to even: uint8 of shape (rows, d), for s <= 127.

    Quotient and product are rounded to the dtype of v, which the scales (rows, blocks) have too; they are no smaller
    than the magnitudes of their blocks.
    """
    out = memory.empty(tuple(v.shape), torch.uint8)
    inputs = v.contiguous().numpy(), scales.contiguous().numpy()
    number = inputs[0].dtype.type
    magic = 1.5 * 2.0 ** (52 if v.dtype == torch.float64 else 23)  # in whose binade whole numbers are all there is
    over_spans(_levels, *v.shape, *inputs, size, number(levels), number(magic), out.numpy())
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _eight(low, high, v, scales, size, fraction, magic, mantissa, offset, out):
    """Codes of normal numbers are patterns cut off, of denormal ones how many of the least number there are."""
    ratios, whole = np.empty(NEAR), np.empty(NEAR)
    patterns, counts = ratios.view(np.uint64), whole.view(np.uint64)
    drop, last = uint64(52 - mantissa), uint64(1)
    half = (last << (drop - last)) - last
    least = uint64(1) << mantissa  # the code of the least normal number
    for piece in range(low, high):
        row, begin, end = span(piece, v.shape[1])
        start = begin
        while start < end:
            block = start // size
            count = min(NEAR, end - start, (block + 1) * size - start)
            scale = np.float64(scales[row, block])
            here, there = v[row, start:][:count], out[row, start:][:count]
            if scale > 0.0:
                up = 2.0**200 if scale < 2.0**-800 else 1.0  # a fraction of a denormal number would be rounded
                for j in range(count):
                    ratio = abs(np.float64(here[j])) * up * fraction / (scale * up)
                    ratios[j], whole[j] = ratio, ratio + magic
                for j in range(count):
                    pattern = patterns[j]
                    normal = ((pattern + half + ((pattern >> drop) & last)) >> drop) - offset
                    denormal = counts[j] & uint64(0xFF)
                    code = normal if np.int64(pattern >> drop) >= np.int64(offset + least) else denormal
                    there[j] = code | (uint64(0x80) if (here[j] < 0) & (code > uint64(0)) else uint64(0))
            else:  # a block of zeros, or one that is not finite
                there[:] = 0
            start += count


def eight(v: Tensor, scales: Tensor, size: int, target: torch.dtype) -> Tensor:
    """Codes of the floats of eight bits nearest to top * v / scale, ties to even: uint8 of shape (rows, d).

    top is the largest number of the target, a float of eight bits in which zeros have no sign. The scales
    (rows, blocks) are no smaller than the magnitudes of their blocks.
    """
    info = torch.finfo(target)
    fraction, exponent = math.frexp(info.max)  # top = fraction 2^exponent; powers of two are left to the patterns
    mantissa = -round(math.log2(info.eps))
    bias = 1 - round(math.log2(info.tiny))
    magic = math.ldexp(info.tiny * info.eps, 52 - exponent)  # whose spacing is the target's least number
    offset = (1023 - bias - exponent) << mantissa
    out = memory.empty(tuple(v.shape), torch.uint8)
    inputs = v.contiguous().numpy(), scales.contiguous().numpy()
    constants = fraction, magic, np.uint64(mantissa), np.uint64(offset)
    over_spans(_eight, *v.shape, *inputs, size, *constants, out.numpy())
    return out


LANES = 32  # partial sums of a span: lane l adds the entries l, l + LANES, ...; then all are added in order


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _cells(low, high, v, units, half, cuts, centroids, out, sums):
    """sums[row, span] = (sum |y| q, sum q^2) of y = v / unit and the magnitudes q of its centroids."""
    d = v.shape[1]
    spans = sums.shape[1]
    b1, b2, b3, b4, b5, b6, b7 = cuts[0], cuts[1], cuts[2], cuts[3], cuts[4], cuts[5], cuts[6]
    c0, c1, c2, c3 = centroids[0], centroids[1], centroids[2], centroids[3]
    c4, c5, c6, c7 = centroids[4], centroids[5], centroids[6], centroids[7]
    products, squares = np.empty(LANES), np.empty(LANES)
    ratios, levels, places = np.empty(NEAR), np.empty(NEAR), np.empty(NEAR, np.int32)
    for piece in range(low, high):
        row, begin, end = span(piece, d)
        unit = units[row] if units[row] > 0.0 else math.inf  # zeros, or what is not finite
        products[:], squares[:] = 0.0, 0.0
        for start in range(begin, end, NEAR):
            count = min(NEAR, end - start)
            here, there = v[row, start:][:count], out[row, start:][:count]
            for j in range(count):
                x = abs(here[j]) / unit
                q = c1 if x >= b1 else c0
                q = c2 if x >= b2 else q
                q = c3 if x >= b3 else q
                q = c4 if x >= b4 else q
                q = c5 if x >= b5 else q
                q = c6 if x >= b6 else q
                ratios[j], levels[j] = x, c7 if x >= b7 else q
            for j in range(count):
                x = ratios[j]
                some = np.int32(x >= b1) + np.int32(x >= b2) + np.int32(x >= b3) + np.int32(x >= b4)
                place = some + np.int32(x >= b5) + np.int32(x >= b6) + np.int32(x >= b7)
                places[j] = place if here[j] >= 0.0 else ~place
            for j in range(count):
                there[j] = half + places[j]
            ratios[count:], levels[count:] = 0.0, 0.0
            for first in range(0, NEAR, LANES):
                for lane in range(LANES):
                    products[lane] += ratios[first + lane] * levels[first + lane]
                    squares[lane] += levels[first + lane] * levels[first + lane]
        product = square = 0.0
        for lane in range(LANES):
            product += products[lane]
            square += squares[lane]
        sums[row, piece % spans, 0], sums[row, piece % spans, 1] = product, square


def cells(v: Tensor, units: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The numbers of the centroids nearest to y = v / unit, uint8 of shape (rows, d); and sums y q and q^2, (rows,).

    v (rows, d) and units (rows,) are float64; centroids, float64, are at most 16, ascending, plus and minus the same.
    """
    (rows, d), half = v.shape, len(centroids) // 2
    levels, cuts = np.zeros(8), np.full(7, math.inf)
    levels[:half] = centroids[half:].numpy()
    cuts[: half - 1] = (levels[1:half] + levels[: half - 1]) / 2.0
    out, sums = memory.empty((rows, d), torch.uint8), np.zeros((rows, -(-d // SPAN), 2))
    over_spans(_cells, rows, d, v.numpy(), units.numpy(), np.int32(half), cuts, levels, out.numpy(), sums)
    totals = np.zeros((rows, 2))
    for part in range(sums.shape[1]):  # span after span
        totals += sums[:, part]
    return out, torch.from_numpy(totals[:, 0].copy()), torch.from_numpy(totals[:, 1].copy())
