"""Exact selection of the k largest |v| of every row, v perhaps a sum or difference that is never in memory.

Ties go to the lower index; NaN counts as largest.

Magnitudes are compared as integers: the bit pattern without its sign orders like the absolute value.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels import memory, select_long
from laconic.kernels.threads import compiled_for, over_rows

DIGIT = 10  # bits per pass of the radix selection
FEW = 24  # up to this k a bound comes from the maxima of 16 to 2k lanes, above it from a sample
SAMPLE = 1024  # entries of that sample


@numba.njit(cache=True, nogil=True)
def _bound_by_lanes(row, k, lanes):
    """A magnitude that at least k entries reach: the k-th largest of the maxima of interleaved lanes.

    Works on the numbers themselves, where maxima are vector instructions; NaN, which counts as largest, is passed over.
    """
    count = len(lanes)
    lanes[:] = 0.0
    whole = len(row) - len(row) % count
    for start in range(0, whole, count):
        for lane in range(count):
            magnitude = abs(row[start + lane])
            lanes[lane] = magnitude if magnitude > lanes[lane] else lanes[lane]
    for lane in range(len(row) - whole):
        magnitude = abs(row[whole + lane])
        lanes[lane] = magnitude if magnitude > lanes[lane] else lanes[lane]
    bound = lanes[0] + np.inf
    for lane in range(count):
        larger = 0
        for other in range(count):
            larger += lanes[other] > lanes[lane]
        bound = lanes[lane] if larger < k and lanes[lane] < bound else bound
    return bound


@numba.njit(cache=True, nogil=True)
def _candidates(row, mask, least, positions, pool):
    """Positions and magnitudes of the entries of at least a magnitude, in order; how many there are."""
    found = 0
    for j in range(len(row)):
        positions[found] = j
        found += (uint64(row[j]) & mask) >= least
    for i in range(found):
        pool[i] = uint64(row[positions[i]]) & mask
    return found


@numba.njit(cache=True, nogil=True)
def _threshold(pool, size, width, k, counts):
    """The k-th largest of pool[:size], and how many equal to it are among the k largest.

    By radix: count the leading digit, keep the bucket where the k-th lies, go on. Reorders the pool.
    """
    shift, wanted, prefix = width - DIGIT, k, uint64(0)
    while size > wanted or shift == width - DIGIT:
        counts[:] = 0
        for j in range(size):
            counts[(pool[j] >> uint64(shift)) & uint64((1 << DIGIT) - 1)] += 1
        digit = (1 << DIGIT) - 1
        while counts[digit] < wanted:
            wanted -= counts[digit]
            digit -= 1
        prefix |= uint64(digit) << uint64(shift)
        if shift == 0:
            return prefix, wanted
        kept = 0
        for j in range(size):
            if (pool[j] >> uint64(shift)) & uint64((1 << DIGIT) - 1) == uint64(digit):
                pool[kept] = pool[j]
                kept += 1
        size, shift = kept, max(0, shift - DIGIT)
    prefix = pool[0]  # all that is left is among the k largest: the threshold is the least of them
    for j in range(1, size):
        prefix = min(prefix, pool[j])
    equal = 0
    for j in range(size):
        equal += pool[j] == prefix
    return prefix, equal


@numba.njit(cache=True, nogil=True)
def _bound_by_sample(row, mask, width, k, sample, counts):
    """A magnitude that most probably at least k entries reach."""
    d, m = len(row), len(sample)
    expected = k * m / d
    rank = int(expected + 4.0 * np.sqrt(expected)) + 4
    if d < 4 * m or rank >= m:
        return uint64(0)
    for j in range(m):
        sample[j] = uint64(row[j * d // m]) & mask
    return _threshold(sample, m, width, rank + 1, counts)[0]


@numba.njit(cache=True, nogil=True)
def _drop(positions, pool, size):
    """Drops the least of the candidates, of equals the last."""
    least = 0
    for i in range(1, size):
        if pool[i] <= pool[least]:
            least = i
    for i in range(least, size - 1):
        positions[i], pool[i] = positions[i + 1], pool[i + 1]


@numba.njit(cache=True, nogil=True)
def _largest(low, high, a, patterns, b, sign, mask, width, k, out, values):
    d = patterns.shape[1]
    sums = np.empty(0 if b is None else d, a.dtype)
    numbers, row = sums, sums.view(patterns.dtype)
    lanes = np.empty(max(16, 2 * min(k, FEW)) + 1, a.dtype)
    pattern = lanes.view(patterns.dtype)
    sample = np.empty(SAMPLE, np.uint64)
    positions = np.empty(d + 1, np.int64)
    pool = np.empty(d + 1, np.uint64)
    counts = np.empty(1 << DIGIT, np.int64)
    for r in range(low, high):
        if b is None:  # compiled by itself: None is a type
            numbers, row = a[r], patterns[r]
        else:
            select_long.combine(a[r], b[r], sign, numbers)
        if k <= FEW:
            lanes[-1] = _bound_by_lanes(numbers, k, lanes[:-1])
            bound = uint64(pattern[-1])
        else:
            bound = _bound_by_sample(row, mask, width, k, sample, counts)
        size = _candidates(row, mask, max(bound, uint64(1)), positions, pool)
        if size < k and bound > 1:
            size = _candidates(row, mask, uint64(1), positions, pool)
        if size < k:  # fewer than k entries are not zero
            size = _candidates(row, mask, uint64(0), positions, pool)
            threshold, equal = uint64(0), k
            for i in range(size):
                equal -= pool[i] > 0
        elif size <= k + FEW:
            for extra in range(size, k, -1):
                _drop(positions, pool, extra)
            size = equal = k
            threshold = uint64(0)
        else:
            threshold, equal = _threshold(pool, size, width, k, counts)
        found = i = 0
        while found < k:  # every candidate is written, and overwritten by the next one unless it is kept
            j = positions[i]
            magnitude = uint64(row[j]) & mask
            at_threshold = magnitude == threshold
            out[r, found], values[r, found] = j, row[j]
            found += (magnitude > threshold) | (at_threshold & (equal > 0))
            equal -= at_threshold
            i += 1


def largest(v: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sorted positions of the k largest |v| of each row of v (rows, d), and the values there; 0 <= k <= d.

    Both are (rows, k), the positions int64.
    """
    if v.is_cpu and v.dtype == torch.bfloat16:  # widened, magnitudes keep their order and their ties
        positions, _ = largest(v.to(torch.float32), k)
        return positions, v.gather(1, positions)
    return _selected(v, None, 1, k) if compiled_for(v) else largest_reference(v, k)


def largest_of_sum(v: Tensor, other: Tensor, sign: int, k: int) -> tuple[Tensor, Tensor]:
    """`largest` of v + other, or of v - other where the sign is -1: the same bits, without the pass that forms them."""
    if compiled_for(v):
        return _selected(v, other, sign, k)
    return largest(v + other if sign > 0 else v - other, k)


def _selected(v: Tensor, other: Tensor | None, sign: int, k: int) -> tuple[Tensor, Tensor]:
    """`largest_of_sum`, or `largest` where there is no other."""
    rows, d = v.shape
    positions, values = memory.empty((rows, k), torch.int64), memory.empty((rows, k), v.dtype)
    if k == 0 or rows == 0:
        return positions, values
    a, kept = v.contiguous().numpy(), values.numpy()
    b = None if other is None else other.contiguous().numpy()
    if d >= select_long.LONG:
        for r in range(rows):
            select_long.largest(a[r], a[r, :0] if b is None else b[r], sign, k, positions.numpy()[r], kept[r])
        return positions, values
    width = 8 * v.element_size()
    mask, patterns, out = np.uint64((1 << (width - 1)) - 1), a.view(f"u{width // 8}"), kept.view(f"u{width // 8}")
    over_rows(_largest, rows, v.numel(), a, patterns, b, sign, mask, width, k, positions.numpy(), out)
    return positions, values


def largest_reference(v: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`largest` in torch, for devices without a fast form."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[v.element_size()]
    magnitude = v.contiguous().view(whole) & torch.iinfo(whole).max
    order = torch.sort(magnitude, dim=1, descending=True, stable=True).indices
    positions = torch.sort(order[:, :k], dim=1).values
    return positions, v.gather(1, positions)
