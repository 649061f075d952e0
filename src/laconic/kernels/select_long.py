"""Exact selection of the k largest |v| of one long vector, by several threads, in two passes over it at most.

A sample says between which magnitudes the k-th largest lies, most probably. One pass, span by span, notes the positions
of what is above the lower of them and counts what equals it; the k-th largest is then found among the few between.
Only where it is the lower bound itself, as with many ties, the first spans are read again. Of equals the first are
taken; whatever the sample, the result is exact.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels import memory, philox
from laconic.kernels.threads import over_rows

LONG = 1 << 18  # coordinates from which this pays
SPAN = 1 << 16  # coordinates of a piece of work
NEAR = 1 << 12  # coordinates that are read twice while they are in the nearest cache
SAMPLE = 1 << 14
DIGIT = 11  # bits per pass of the radix selection


@functools.lru_cache(maxsize=4)
def _sampled(d: int) -> np.ndarray:
    """Positions of the sample, the same in every call: pseudo-random, so that no order of the entries misleads it."""
    words = np.empty((1, SAMPLE), dtype=np.uint64)
    philox.fill(0, 1, np.zeros(4, dtype=np.uint32), np.zeros(1, dtype=np.int64), words)
    return (words[0] % np.uint64(d)).astype(np.int64)


def _bracket(patterns: np.ndarray, mask: np.unsignedinteger, k: int) -> tuple[int, int]:
    """Magnitudes between which the k-th largest lies, most probably."""
    d = len(patterns)
    sample = np.sort(patterns[_sampled(d)] & mask)[::-1]
    expected = k * SAMPLE / d
    slack = 5.0 * np.sqrt(expected * (1.0 - k / d)) + 5.0
    low, high = int(expected + slack), int(expected - slack)
    return int(sample[low]) if low < SAMPLE else 0, int(sample[high]) if high >= 0 else int(mask)


@numba.njit(cache=True, nogil=True)
def _note(low, high, patterns, mask, least, most, positions, counts):
    """Per span: positions of magnitudes above `least`, if there is room for all; how many, above `most`, and equal."""
    found = np.empty(NEAR + 1, positions.dtype)
    for span in range(low, high):
        begin, end = span * SPAN, min((span + 1) * SPAN, len(patterns))
        size = above = ties = 0
        for start in range(begin, end, NEAR):
            piece = patterns[start : min(start + NEAR, end)]
            here = 0
            for j in range(len(piece)):  # counting alone is done by vector instructions
                magnitude = piece[j] & mask
                here += magnitude > least
                above += magnitude > most
                ties += magnitude == least
            if here and size + here <= positions.shape[1]:
                place = 0
                for j in range(len(piece)):
                    found[place] = start + j
                    place += (piece[j] & mask) > least
                for i in range(here):
                    positions[span, size + i] = found[i]
            size += here
        counts[span, 0], counts[span, 1], counts[span, 2] = size, above, ties


@numba.njit(inline="always")
def _candidates(span, d, positions, counts, ties):
    """Whether a span must be read again, because its positions had no room or ties are wanted, and how many to read."""
    again = counts[span, 0] > positions.shape[1] or ties
    return again, min(SPAN, d - span * SPAN) if again else counts[span, 0]


@numba.njit(cache=True, nogil=True)
def _between(low, high, patterns, mask, least, most, positions, counts, starts, pool):
    """The magnitudes above `least` and up to `most`, in the pool, each span's from its start on."""
    for span in range(low, high):
        again, size = _candidates(span, len(patterns), positions, counts, False)
        place = starts[span]
        for i in range(size):
            magnitude = patterns[span * SPAN + i if again else np.int64(positions[span, i])] & mask
            if least < magnitude <= most:
                pool[place] = magnitude
                place += 1


@numba.njit(cache=True, nogil=True)
def _kth(pool, size, k, width):
    """The k-th largest of pool[:size], by radix: find the bucket of the leading digit, keep it, go on."""
    digits, top = 1 << DIGIT, width
    counts = np.empty(digits, np.int64)
    while True:
        shift = max(0, top - DIGIT)
        counts[:] = 0
        for j in range(size):
            counts[(uint64(pool[j]) >> uint64(shift)) & uint64(digits - 1)] += 1
        digit = digits - 1
        while counts[digit] < k:
            k -= counts[digit]
            digit -= 1
        kept = 0
        for j in range(size):
            value = pool[j]
            pool[kept] = value
            kept += (uint64(value) >> uint64(shift)) & uint64(digits - 1) == uint64(digit)
        size, top = kept, shift
        if shift == 0:
            return uint64(pool[0])


@numba.njit(cache=True, nogil=True)
def _count(low, high, patterns, mask, threshold, positions, counts, out):
    """Per span: how many magnitudes are above the threshold, how many equal to it."""
    for span in range(low, high):
        again, size = _candidates(span, len(patterns), positions, counts, False)
        above = ties = 0
        for i in range(size):
            magnitude = patterns[span * SPAN + i if again else np.int64(positions[span, i])] & mask
            above += magnitude > threshold
            ties += magnitude == threshold
        out[span, 0], out[span, 1] = above, ties


@numba.njit(cache=True, nogil=True)
def _emit(low, high, patterns, mask, threshold, noted, positions, counts, quotas, starts, out, values):
    """Per span: what is above the threshold and the first `quota` of its equals, which may not have been noted."""
    for span in range(low, high):
        place, quota = starts[span], quotas[span]
        again, size = _candidates(span, len(patterns), positions, counts, quota > 0 and not noted)
        for i in range(size):
            j = span * SPAN + i if again else np.int64(positions[span, i])
            magnitude = patterns[j] & mask
            if magnitude > threshold or (magnitude == threshold and quota > 0):
                quota -= magnitude == threshold
                out[place], values[place] = j, patterns[j]
                place += 1


def largest(v: Tensor, k: int, out: Tensor, values: Tensor) -> None:
    """Sorted positions of the k largest |v| of v (d,) into `out` (k,) int64, and the values there; 1 <= k <= d."""
    size = v.element_size()
    patterns = v.numpy().view(f"u{size}")
    number = patterns.dtype.type
    mask, d = number((1 << (8 * size - 1)) - 1), len(patterns)
    spans, room = -(-d // SPAN), min(SPAN, 3 * SPAN * k // d + 256)
    positions = memory.empty((spans, room), torch.int32 if d < 1 << 31 else torch.int64).numpy()
    counts = np.empty((spans, 3), dtype=np.int64)
    least, most = _bracket(patterns, mask, k)
    over_rows(_note, spans, d, patterns, mask, number(least), number(most), positions, counts)
    above, sure, ties = counts.sum(axis=0).tolist()
    if above + ties < k or sure >= k:  # the sample misled: everything but zeros counts, and nothing is sure
        least, most = 0, int(mask)
        over_rows(_note, spans, d, patterns, mask, number(least), number(most), positions, counts)
        above, sure, ties = counts.sum(axis=0).tolist()
    noted = above >= k
    if noted:
        inside = counts[:, 0] - counts[:, 1]
        pool, places = np.empty(above - sure, dtype=patterns.dtype), np.cumsum(inside) - inside
        bounds = number(least), number(most)
        over_rows(_between, spans, above, patterns, mask, *bounds, positions, counts, places, pool)
        threshold = number(_kth(pool, len(pool), k - sure, 8 * size - 1))
        chosen = np.empty((spans, 2), dtype=np.int64)
        over_rows(_count, spans, above, patterns, mask, threshold, positions, counts, chosen)
    else:
        threshold, chosen = number(least), counts[:, ::2]
    taken, equal = chosen[:, 0], chosen[:, 1]
    wanted = k - int(taken.sum())
    quotas = np.clip(wanted - (np.cumsum(equal) - equal), 0, equal)
    starts = np.cumsum(taken + quotas) - taken - quotas
    kept = out.numpy(), values.numpy().view(f"u{size}")
    over_rows(_emit, spans, d, patterns, mask, threshold, noted, positions, counts, quotas, starts, *kept)
