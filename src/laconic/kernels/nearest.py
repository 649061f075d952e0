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
                for j in range(count):
                    ratio = abs(np.float64(here[j])) * fraction / scale
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
