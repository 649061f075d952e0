"""Exact selection of the k largest |a + b| or |a - b| of long vectors, by several threads, mostly in one pass.

A sample says between which magnitudes the k-th largest lies, most probably. One pass, span by span, notes what is above
the lower of them, with its positions; the k-th largest is then found among the few between. Only where it is the lower
bound itself, as with many ties, a second pass counts what equals it. Of equals the first are taken; whatever the
sample, the result is exact. Sums and differences are never in memory, but for a span at a time.
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
FEW = 8  # coordinates whose flags, a byte each, are one word: looked at one by one if any of them counts
SAMPLE = 1 << 13
LINE = 4  # neighbours that are sampled together: what costs time is to fetch the first of them from memory
DIGIT = 11  # bits per pass of the radix selection


@functools.lru_cache(maxsize=4)
def _sampled(d: int) -> np.ndarray:
    """Positions of the sample, the same in every call: pseudo-random, so that no order of the entries misleads it."""
    words = np.empty((1, SAMPLE // LINE), dtype=np.uint64)
    philox.fill(0, 1, np.zeros(4, dtype=np.uint32), np.zeros(1, dtype=np.int64), words)
    lines = (words[0] % np.uint64(max(1, d // LINE))).astype(np.int64) * LINE
    return np.minimum(lines[:, None] + np.arange(LINE), d - 1).reshape(-1)


def _bracket(sample: np.ndarray, k: int, d: int, most: int) -> tuple[int, int]:
    """Magnitudes between which the k-th largest of d lies, most probably; `most` is the largest that there is."""
    sample = np.sort(sample)[::-1]
    expected = k * SAMPLE / d
    # neighbours may be alike, so that a line tells less than as many numbers drawn apart
    slack = 7.0 * np.sqrt(expected * (1.0 - k / d)) + 7.0
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
def _draw(a, b, sign, places, out):
    """a, or a + sign b, at some places."""
    for i in range(len(places)):
        j = places[i]
        out[i] = a[j] if len(b) == 0 else a[j] + b[j] if sign > 0 else a[j] - b[j]


@numba.njit(cache=True, nogil=True)
def _note(low, high, a, b, sign, mask, least, positions, noted, sizes):
    """Per span: what has a magnitude above `least`, if there is room for all, and how many have."""
    found, room = np.empty(NEAR + 1, np.uint16), np.empty(NEAR, a.dtype)
    flags = np.empty(NEAR, np.uint8)
    words = flags.view(np.uint64)
    for span in range(low, high):
        begin, end = span * SPAN, min((span + 1) * SPAN, len(a))
        size = 0
        for start in range(begin, end, NEAR):
            piece = _read(a, b, sign, start, min(start + NEAR, end), room).view(noted.dtype)
            flags[len(piece) :] = 0
            for j in range(len(piece)):  # by vector instructions: nothing here depends on what was found before
                flags[j] = (piece[j] & mask) > least
            place = 0
            for word in range(-(-len(piece) // FEW)):
                if words[word]:
                    for j in range(word * FEW, (word + 1) * FEW):
                        found[place] = j
                        place += flags[j]
            if size + place <= positions.shape[1]:
                for i in range(place):
                    positions[span, size + i] = start + found[i]
                    noted[span, size + i] = piece[found[i]]
            size += place
        sizes[span] = size


@numba.njit(inline="always")
def _candidates(span, a, b, sign, noted, sizes, ties, room):
    """Whether a span is read again, because it had no room or ties are wanted, and its candidates."""
    again = sizes[span] > noted.shape[1] or ties
    if again:
        return again, _read(a, b, sign, span * SPAN, min((span + 1) * SPAN, len(a)), room).view(noted.dtype)
    return again, noted[span, : sizes[span]]


@numba.njit(cache=True, nogil=True)
def _between(low, high, a, b, sign, mask, least, most, noted, sizes, starts, pool):
    """The magnitudes above `least` and up to `most`, in the pool, each span's from its start on."""
    room = np.empty(SPAN if len(b) else 0, a.dtype)
    found = np.empty(SPAN + 1, pool.dtype)
    for span in range(low, high):
        _, candidates = _candidates(span, a, b, sign, noted, sizes, False, room)
        size = 0
        for i in range(len(candidates)):  # every one is written, and overwritten by the next one unless it is kept
            magnitude = candidates[i] & mask
            found[size] = magnitude
            size += (magnitude > least) & (magnitude <= most)
        pool[starts[span] : starts[span] + size] = found[:size]


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
def _count(low, high, a, b, sign, mask, threshold, ties, noted, sizes, out):
    """Per span: how many magnitudes are above the threshold, how many equal to it, which are noted unless `ties`."""
    room = np.empty(SPAN if len(b) else 0, a.dtype)
    for span in range(low, high):
        _, candidates = _candidates(span, a, b, sign, noted, sizes, ties, room)
        above = equal = 0
        for i in range(len(candidates)):
            magnitude = candidates[i] & mask
            above += magnitude > threshold
            equal += magnitude == threshold
        out[span, 0], out[span, 1] = above, equal


@numba.njit(cache=True, nogil=True)
def _emit(low, high, a, b, sign, mask, threshold, ties, positions, noted, sizes, quotas, starts, out, values):
    """Per span: what is above the threshold and the first `quota` of its equals, which are noted unless `ties`."""
    room = np.empty(SPAN if len(b) else 0, a.dtype)
    for span in range(low, high):
        place, quota = starts[span], quotas[span]
        again, candidates = _candidates(span, a, b, sign, noted, sizes, quota > 0 and ties, room)
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
    sizes, counts = np.empty(spans, dtype=np.int64), np.empty((spans, 2), dtype=np.int64)

    def note(least: int) -> int:
        """Notes what is above it; how many there are."""
        over_rows(_note, spans, d, *pair, mask, number(least), positions, noted, sizes)
        return int(sizes.sum())

    def count(threshold: int, ties: bool) -> tuple[int, int]:
        """How many are above a threshold, and equal to it; per span in `counts`."""
        work = d if ties else int(sizes.sum())
        over_rows(_count, spans, work, *pair, mask, number(threshold), ties, noted, sizes, counts)
        above, equal = counts.sum(axis=0).tolist()
        return above, equal

    sample = np.empty(SAMPLE, dtype=a.dtype)
    _draw(*pair, _sampled(d), sample)
    least, most = _bracket(sample.view(pattern) & mask, k, d, int(mask))
    above = note(least)
    ties = above < k  # then the k-th largest is `least` itself, unless the sample misled
    if ties and sum(count(least, ties)) < k:
        least, most = 0, int(mask)  # everything but zeros is noted
        above = note(least)
        ties = above < k
        count(least, ties)
    threshold = least
    if not ties:
        sure, _ = count(most, ties)
        if sure >= k:  # the sample misled
            most = int(mask)
            sure, _ = count(most, ties)
        inside = sizes - counts[:, 0]
        pool, begins = np.empty(above - sure, dtype=pattern), np.cumsum(inside) - inside
        over_rows(_between, spans, above, *pair, mask, number(least), number(most), noted, sizes, begins, pool)
        threshold = int(_kth(pool, len(pool), k - sure, 8 * pattern.itemsize - 1))
        count(threshold, ties)
    taken, equal = counts[:, 0], counts[:, 1]
    wanted = k - int(taken.sum())
    quotas = np.clip(wanted - (np.cumsum(equal) - equal), 0, equal)
    starts = np.cumsum(taken + quotas) - taken - quotas
    found, kept = (positions, noted, sizes, quotas, starts), (out, values.view(pattern))
    over_rows(_emit, spans, d, *pair, mask, number(threshold), ties, *found, *kept)
