"""Random rounding without bias: to any ascending levels, whose places are found by halving, and to plus or minus one.

Coordinate j uses the worker's j-th word of the width of a number: of float64 a 64-bit word, of float32 a half of one,
lower halves first.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.philox import BUFFER, halves
from laconic.kernels.threads import over_spans, span

NEAR = 1 << 10  # coordinates worked on together


@numba.njit(cache=True, nogil=True)
def _uniforms(address, worker, start, width, buffer, out):
    """out[j] in [0, 1): 53 bits of 64-bit word start + j (width 8), or the 32 of a half (width 4); four divides start.

    buffer, uint32, has the room of len(out) words and twelve bytes.
    """
    used = (len(out) * width + 15) // 16 * 4
    halves(address, worker, start * width // 16, buffer[:used])
    if width == 4:
        for j in range(len(out)):
            out[j] = buffer[j] * 2.0**-32
    else:
        words = buffer.view(np.uint64)
        for j in range(len(out)):
            out[j] = (words[j] >> uint64(11)) * 2.0**-53


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _dither(low, high, v, scales, rungs, floors, address, workers, out):
    """floors are all rungs but the last, and infinities up to a power of two."""
    d = v.shape[1]
    buffer, u = np.empty(BUFFER, np.uint32), np.empty(NEAR)
    ratios, places = np.empty(NEAR), np.empty(NEAR, np.uint64)
    for piece in range(low, high):
        row, begin, end = span(piece, d)
        scale = np.float64(scales[row, 0])
        if not scale > 0.0:  # zeros, or a vector that is not finite
            out[row, begin:end] = 0
            continue
        for start in range(begin, end, NEAR):
            count = min(NEAR, end - start)
            here, there = v[row, start:][:count], out[row, start:][:count]
            _uniforms(address, workers[row], start, v.itemsize, buffer, u[:count])
            for j in range(count):
                ratios[j] = abs(np.float64(here[j])) / scale
            places[:count] = 0
            step = uint64(len(floors) // 2)  # unsigned: places need no look whether they count from the end
            while step:
                for j in range(count):
                    above = places[j] + step
                    places[j] = above if floors[above] <= ratios[j] else places[j]
                step >>= uint64(1)
            for j in range(count):
                place = places[j]
                level = place + uint64(u[j] * (rungs[place + uint64(1)] - rungs[place]) < ratios[j] - rungs[place])
                there[j] = (level << uint64(1)) - uint64((here[j] < 0) & (level > uint64(0)))


def dither(v: Tensor, scales: Tensor, rungs: Tensor, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """Zig-zag codes (0, -1, 1, -2, ... as 0, 1, 2, 3, ...) of v (rows, d) over scales (rows, 1) no smaller than it.

    |v| / scale goes to the rung above with the probability that keeps the mean. rungs is float64, from 0 to 1
    ascending, at most 128 of them; codes are uint8.
    """
    out, steps = memory.empty(tuple(v.shape), torch.uint8), rungs.numpy()
    floors = np.full(1 << (len(steps) - 2).bit_length(), np.inf)
    floors[: len(steps) - 1] = steps[:-1]
    inputs = v.contiguous().numpy(), scales.contiguous().numpy(), steps, floors
    over_spans(_dither, *v.shape, *inputs, address, workers, out.numpy())
    return out


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _signs(low, high, v, scales, address, workers, out):
    buffer, u = np.empty(BUFFER, np.uint32), np.empty(NEAR)
    for piece in range(low, high):
        row, begin, end = span(piece, v.shape[1])
        scale = np.float64(scales[row]) if scales[row] > 0 else 1.0
        for start in range(begin, end, NEAR):
            count = min(NEAR, end - start)
            here, there = v[row, start:][:count], out[row, start:][:count]
            _uniforms(address, workers[row], start, v.itemsize, buffer, u[:count])
            for j in range(count):
                there[j] = u[j] >= 0.5 + 0.5 * (np.float64(here[j]) / scale)


def signs(v: Tensor, scales: Tensor, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """1 for minus, 0 for plus, which has probability 1/2 + v / (2 scale): uint8 of shape (rows, d), of v (rows, d).

    The scales (rows,) are no smaller than the magnitudes of their rows.
    """
    out = memory.empty(tuple(v.shape), torch.uint8)
    inputs = v.contiguous().numpy(), scales.contiguous().numpy()
    over_spans(_signs, *v.shape, *inputs, address, workers, out.numpy())
    return out
