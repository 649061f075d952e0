"""Exact selection of the k largest |a + b| or |a - b| of long vectors, by several threads, in two passes at most.

A sample says between which magnitudes the k-th largest lies, most probably. One pass, span by span, notes what is above
the lower of them, with its positions, and counts what equals it; the k-th largest is then found among the few between.
Only where it is the lower bound itself, as with many ties, the first spans are read again. Of equals the first are
taken; whatever the sample, the result is exact. Sums and differences are never in memory, but for a span at a time.
"""

from __future__ import annotations

import functools

import numba
import numpy as np
import torch
from numba import uint64

from laconic.kernels import memory, philox
from laconic.kernels.threads import over_rows

LONG = 1 << 18  # coordinates from which this pays
SPAN = 1 << 16  # coordinates of a piece of work
NEAR = 1 << 12  # coordinates that are read twice while they are in the nearest cache
FEW = 1 << 6  # coordinates that are looked at one by one if any of them counts
SAMPLE = 1 << 14
DIGIT = 11  # bits per pass of the radix selection


@functools.lru_cache(maxsize=4)
def _sampled(d: int) -> np.ndarray:
    """Positions of the sample, the same in every call: pseudo-random, so that no order of the entries misleads it."""
    words = np.empty((1, SAMPLE), dtype=np.uint64)
    philox.fill(0, 1, np.zeros(4, dtype=np.uint32), np.zeros(1, dtype=np.int64), words)
    return (words[0] % np.uint64(d)).astype(np.int64)


def _bracket(sample: np.ndarray, k: int, d: int, most: int) -> tuple[int, int]:
    """Magnitudes between which the k-th largest of d lies, most probably; `most` is the largest that there is."""
    sample = np.sort(sample)[::-1]
    expected = k * SAMPLE / d
    slack = 5.0 * np.sqrt(expected * (1.0 - k / d)) + 5.0
    low, high = int(expected + slack), int(expected - slack)
    return int(sample[low]) if low < SAMPLE else 0, int(sample[high]) if high >= 0 else most


@numba.njit(inline="always")
def combine(a, b, sign, out):
    """a + b or, for a negative sign, a - b, in the first places of `out`."""
    if sign < 0:
        for j in range(len(a)):
            out[j] = a[j] - b[j]
    else:
        for j in range(len(a)):
            out[j] = a[j] + b[j]


@numba.njit(inline="always")
def _read(a, b, sign, begin, end, room):
    """Where b is empty a[begin:end], else what `combine` makes of both there, in `room`."""
    if len(b) == 0:
        return a[begin:end]
    combine(a[begin:end], b[begin:end], sign, room)
    return room[: end - begin]


@numba.njit(cache=True, nogil=True)
def _note(low, high, a, b, sign, mask, least, most, positions, noted, counts):
    """Per span: what has a magnitude above `least`, if there is room for all; how many, above `most`, and equal."""
    found, room = np.empty(NEAR + 1, np.uint16), np.empty(NEAR, a.dtype)
    for span in range(low, high):
        begin, end = span * SPAN, min((span + 1) * SPAN, len(a))
        size = above = ties = 0
        for start in range(begin, end, NEAR):
            piece = _read(a, b, sign, start, min(start + NEAR, end), room).view(noted.dtype)
            place = 0
            for first in range(0, len(piece), FEW):
                few, here = piece[first : first + FEW], 0
                for j in range(len(few)):  # counting alone is done by vector instructions
                    magnitude = few[j] & mask
                    here += magnitude > least
                    above += magnitude > most
                    ties += magnitude == least
                if here:
                    for j in range(len(few)):
                        found[place] = first + j
                        place += (few[j] & mask) > least
            if size + place <= positions.shape[1]:
                for i in range(place):
                    positions[span, size + i] = start + found[i]
                    noted[span, size + i] = piece[found[i]]
            size += place
        counts[span, 0], counts[span, 1], counts[span, 2] = size, above, ties


@numba.njit(inline="always")
def _candidates(span, a, b, sign, noted, counts, ties, room):
    """Whether a span is read again, because it had no room or ties are wanted, and its candidates."""
    again = counts[span, 0] > noted.shape[1] or ties
    if again:
        return again, _read(a, b, sign, span * SPAN, min((span + 1) * SPAN, len(a)), room).view(noted.dtype)
    return again, noted[span, : counts[span, 0]]


@numba.njit(cache=True, nogil=True)
def _between(low, high, a, b, sign, mask, least, most, noted, counts, starts, pool):
    """The magnitudes above `least` and up to `most`, in the pool, each span's from its start on."""
    room = np.empty(SPAN if len(b) else 0, a.dtype)
    for span in range(low, high):
        _, candidates = _candidates(span, a, b, sign, noted, counts, False, room)
        place = starts[span]
        for i in range(len(candidates)):
            magnitude = candidates[i] & mask
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
def _count(low, high, a, b, sign, mask, threshold, noted, counts, out):
    """Per span: how many magnitudes are above the threshold, how many equal to it."""
    room = np.empty(SPAN if len(b) else 0, a.dtype)
    for span in range(low, high):
        _, candidates = _candidates(span, a, b, sign, noted, counts, False, room)
        above = ties = 0
        for i in range(len(candidates)):
            magnitude = candidates[i] & mask
            above += magnitude > threshold
            ties += magnitude == threshold
        out[span, 0], out[span, 1] = above, ties


@numba.njit(cache=True, nogil=True)
def _emit(low, high, a, b, sign, mask, threshold, sure, positions, noted, counts, quotas, starts, out, values):
    """Per span: what is above the threshold and the first `quota` of its equals, which are noted only if `sure`."""
    room = np.empty(SPAN if len(b) else 0, a.dtype)
    for span in range(low, high):
        place, quota = starts[span], quotas[span]
        again, candidates = _candidates(span, a, b, sign, noted, counts, quota > 0 and not sure, room)
        for i in range(len(candidates)):
            magnitude = candidates[i] & mask
            if magnitude > threshold or (magnitude == threshold and quota > 0):
                quota -= magnitude == threshold
                out[place] = span * SPAN + i if again else np.int64(positions[span, i])
                values[place] = candidates[i]
                place += 1


def largest(a: np.ndarray, b: np.ndarray, sign: int, k: int, out: np.ndarray, values: np.ndarray) -> None:
    """Sorted positions of the k largest |a + sign b| into `out` (k,) int64, and the sums there; 1 <= k <= d.

    a is (d,), and so is b, or it is empty; sign is 1 or -1.
    """
    d, pattern = len(a), np.dtype(f"u{a.itemsize}")
    number = pattern.type
    mask = number((1 << (8 * a.itemsize - 1)) - 1)
    pair = a, b, sign
    spans, room = -(-d // SPAN), min(SPAN, 3 * SPAN * k // d + 256)
    positions = memory.empty((spans, room), torch.int32 if d < 1 << 31 else torch.int64).numpy()
    noted = memory.empty((spans, room), torch.int32 if a.itemsize == 4 else torch.int64).numpy().view(pattern)
    counts = np.empty((spans, 3), dtype=np.int64)
    places = _sampled(d)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is compared as well
        sample = a[places] if len(b) == 0 else a[places] + sign * b[places]
    least, most = _bracket(sample.view(pattern) & mask, k, d, int(mask))
    over_rows(_note, spans, d, *pair, mask, number(least), number(most), positions, noted, counts)
    above, sure, ties = counts.sum(axis=0).tolist()
    if above + ties < k or sure >= k:  # the sample misled: everything but zeros counts, and nothing is sure
        least, most = 0, int(mask)
        over_rows(_note, spans, d, *pair, mask, number(least), number(most), positions, noted, counts)
        above, sure, ties = counts.sum(axis=0).tolist()
    if above >= k:
        inside = counts[:, 0] - counts[:, 1]
        pool, begins = np.empty(above - sure, dtype=pattern), np.cumsum(inside) - inside
        bounds = number(least), number(most)
        over_rows(_between, spans, above, *pair, mask, *bounds, noted, counts, begins, pool)
        threshold = number(_kth(pool, len(pool), k - sure, 8 * pattern.itemsize - 1))
        chosen = np.empty((spans, 2), dtype=np.int64)
        over_rows(_count, spans, above, *pair, mask, threshold, noted, counts, chosen)
    else:
        threshold, chosen = number(least), counts[:, ::2]
    taken, equal = chosen[:, 0], chosen[:, 1]
    wanted = k - int(taken.sum())
    quotas = np.clip(wanted - (np.cumsum(equal) - equal), 0, equal)
    starts = np.cumsum(taken + quotas) - taken - quotas
    where, kept = (positions, noted, counts, quotas, starts), (out, values.view(pattern))
    over_rows(_emit, spans, d, *pair, mask, threshold, above >= k, *where, *kept)
