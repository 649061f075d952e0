"""The three forms of a row of levels: fixed width, frequencies (wire.rans), and the positions of the codes not 0.

Kernels that measure and write the rows of a batch, and the segments of long rows; wire.reading reads them. The format
is in docs/wire.md.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import int64, uint64

from laconic.wire import rans, subsets, tables
from laconic.wire.tables import put

FIXED, FREQUENCIES, SPARSE = 0, 1, 2
RARE = 32  # a row may be sparse from this many codes for one that is not 0
LANES = rans.LANES


@numba.njit(cache=True, nogil=True)
def group(size, count):
    """The fixed form's groups: (codes of one, its bits, how many words of these bits have a meaning)."""
    if size == 3:
        codes = min(5, count)
        return codes, (8 * codes + 4) // 5, 3**codes
    return 1, tables.bit_length(size - 1), size


@numba.njit(cache=True, nogil=True)
def fixed_bits(size, count):
    return (8 * count + 4) // 5 if size == 3 else count * tables.bit_length(size - 1)


@numba.njit(cache=True, nogil=True)
def put_fixed(codes, start, end, size, buffer, position):
    """Group by group through a word of 64 bits. Ternary codes of a group are digits in base 3, the first the lowest."""
    most, width, _ = group(size, end - start)
    byte, fill = position >> 3, position & 7
    word = uint64(buffer[byte]) if fill > 0 else uint64(0)
    for j in range(start, end, most):
        value = uint64(codes[j])
        if most > 1:
            value = uint64(0)
            stop = min(end, j + most)
            for digit in range(stop - j):
                value = value * uint64(3) + uint64(codes[stop - 1 - digit])
        word |= value << uint64(fill)
        fill += width if j + most <= end else fixed_bits(size, end - j)  # what lies behind belongs to others
        while fill >= 8:
            buffer[byte] = np.uint8(word)
            word >>= uint64(8)
            byte += 1
            fill -= 8
    if fill > 0:
        buffer[byte] = np.uint8(word)
    return position + fixed_bits(size, end - start)


@numba.njit(cache=True, nogil=True)
def count(low, high, codes, starts, ends, hists):
    """hists[piece] += how often every code occurs; eight counters of each code take turns."""
    for piece in range(low, high):
        start, end = starts[piece], ends[piece]
        if end - start < 4096:
            for j in range(start, end):
                hists[piece, codes[j]] += 1
            continue
        turns = np.zeros((LANES, hists.shape[1]), np.uint32)
        even = uint64(start + (end - start) // LANES * LANES)
        j = uint64(start)
        while j < even:
            turns[0, codes[j]] += 1
            turns[1, codes[j + uint64(1)]] += 1
            turns[2, codes[j + uint64(2)]] += 1
            turns[3, codes[j + uint64(3)]] += 1
            turns[4, codes[j + uint64(4)]] += 1
            turns[5, codes[j + uint64(5)]] += 1
            turns[6, codes[j + uint64(6)]] += 1
            turns[7, codes[j + uint64(7)]] += 1
            j += uint64(LANES)
        for at in range(int64(even), end):
            turns[0, codes[at]] += 1
        for lane in range(LANES):
            for code in range(hists.shape[1]):
                hists[piece, code] += turns[lane, code]


@numba.njit(cache=True, nogil=True)
def segments(start, end):
    """Where the segments of a row begin, and where the last one ends."""
    out = np.full((end - start - 1) // rans.SEGMENT + 2, end)
    for segment in range(len(out) - 1):
        out[segment] = start + segment * rans.SEGMENT
    return out


@numba.njit(cache=True, nogil=True)
def _nonzeros(codes, start, end, many):
    """Where the codes are not 0, and these codes less one."""
    where, what, found = np.empty(many, np.int64), np.empty(many, codes.dtype), 0
    per = 8 // codes.itemsize
    words = codes[start : start + (end - start) // (8 * per) * (8 * per)].view(np.uint64)
    for block in range(0, len(words), 8):
        some = uint64(0)
        for word in range(8):
            some |= words[block + word]
        if some == 0:
            continue
        for j in range(start + block * per, start + (block + 8) * per):
            if codes[j]:
                where[found], what[found] = j - start, codes[j] - 1
                found += 1
    for j in range(start + len(words) * per, end):
        if codes[j]:
            where[found], what[found] = j - start, codes[j] - 1
            found += 1
    return where, what


@numba.njit(cache=True, nogil=True)
def pair(first, second):
    out = np.full(2, first)
    out[1] = second
    return out


@numba.njit(cache=True, nogil=True)
def _total(hists):
    out = hists[0].copy()
    for segment in range(1, len(hists)):
        for code in range(len(out)):
            out[code] += hists[segment, code]
    return out


@numba.njit(cache=True, nogil=True)
def _inner(what, size, width):
    """The codes that are not 0: (fixed bits, the histograms of segments, that of all)."""
    starts = segments(int64(0), len(what))
    hists = np.zeros((len(starts) - 1, width), np.int64)
    count(int64(0), len(hists), what, starts[:-1], starts[1:], hists)
    return fixed_bits(size - 1, len(what)), hists, _total(hists)


@numba.njit(cache=True, nogil=True)
def _sparse_bits(codes, start, end, size, many, marks, freq):
    """The bits of a row of which `many` codes are not 0, behind the escape."""
    if many == 0:
        return tables.bit_length(end - start)
    where, what = _nonzeros(codes, start, end, many)
    bits = np.zeros(1, np.int64)
    subsets.measure(0, 1, where, pair(int64(0), many), end - start, bits)
    total = bits[0] + tables.bit_length(end - start)
    if size == 2:
        return total
    inner, hists, hist = _inner(what, size, len(freq))
    return total + 1 + min(inner, tables.plan(hists, hist, size - 1, many, inner, marks, freq)[0])


@numba.njit(cache=True, nogil=True)
def _choose(codes, start, end, size, hists, hist, marks, freq):
    """(form, bits, how many are not 0, the plan of the frequencies) of a row: the shortest form, ties to the first."""
    count = end - start
    best, form = fixed_bits(size, count), FIXED
    _, width, words = group(size, count)
    flag = 1 if words == 1 << width else 0
    best += flag
    escape = 1 + (flag if flag else width)
    many = count - hist[0]
    if RARE * many <= count:
        bits = escape + _sparse_bits(codes, start, end, size, many, marks, freq)
        if bits < best:
            best, form = bits, SPARSE
    plan = tables.plan(hists, hist, size, count, fixed_bits(size, count), marks, freq)
    if escape + plan[0] < best:
        best, form = escape + plan[0], FREQUENCIES
    return form, best, many, plan


@numba.njit(cache=True, nogil=True)
def _put_frequencies(codes, start, end, size, plan, hists, marks, freq, buffer, position):
    """All but the segments of eight states. (position, the first byte of these or -1)."""
    _, top, fine, rice, precision, body = plan
    position = tables.put_table(marks, top, fine, rice, size, buffer, position)
    position = put(buffer, position, uint64(body < 0), int64(1))
    if body >= 0:
        position = put(buffer, position, uint64(body), tables.bit_length(fixed_bits(size, end - start)))
        table = rans.entries(freq, top, precision)
        return rans.put_one(codes, start, end, table, body, buffer, position), int64(-1)
    at = (position + 7) & ~7
    position += 7
    for segment in range(len(hists)):
        words = tables.segment_words(hists[segment], freq, top, precision)
        at = put(buffer, at, uint64(words), int64(32))
        position += 32 + 64 * LANES + 32 * words
    return position, at >> 3


@numba.njit(cache=True, nogil=True)
def _put_segments(codes, starts, plan, hists, freq, buffer, byte):
    """The segments of eight states, one after another."""
    _, top, _, _, precision, _ = plan
    table = rans.entries(freq, top, precision)
    for segment in range(len(hists)):
        words = tables.segment_words(hists[segment], freq, top, precision)
        rans.put_segment(codes, starts[segment], starts[segment + 1], table, words, buffer, byte)
        byte += 8 * LANES + 4 * words


@numba.njit(cache=True, nogil=True)
def _put_sparse(codes, start, end, size, many, marks, freq, buffer, position):
    where, what = _nonzeros(codes, start, end, many)
    position = put(buffer, position, uint64(many), tables.bit_length(end - start))
    cursor = np.full(1, position)
    subsets.write(where, pair(int64(0), many), end - start, buffer, cursor)
    position = cursor[0]
    if many == 0 or size == 2:
        return position
    inner, hists, hist = _inner(what, size, len(freq))
    plan = tables.plan(hists, hist, size - 1, many, inner, marks, freq)
    if inner <= plan[0]:
        return put_fixed(what, int64(0), many, size - 1, buffer, position + 1)
    position = put(buffer, position, uint64(1), int64(1))
    position, byte = _put_frequencies(what, int64(0), many, size - 1, plan, hists, marks, freq, buffer, position)
    if byte >= 0:
        _put_segments(what, segments(int64(0), many), plan, hists, freq, buffer, byte)
    return position


@numba.njit(cache=True, nogil=True)
def _scratch(size):
    """What the rows of a kernel's call need one after another: marks, frequencies, a histogram, counters, two ends."""
    marks, freq = np.empty(size, np.int64), np.empty(size, np.int64)
    return marks, freq, np.empty((1, size), np.int64), np.empty(4 * size, np.uint32), np.empty(2, np.int64)


@numba.njit(cache=True, nogil=True)
def _count_one(codes, start, end, size, turns, hist):
    """The histogram of a row. Four counters of each code take turns where codes may be expected to repeat."""
    if end - start < 4 * size:
        hist[:] = 0
        for j in range(uint64(start), uint64(end)):
            hist[codes[j]] += 1
        return
    turns[:] = 0
    j, one, two, three = uint64(start), uint64(size), uint64(2 * size), uint64(3 * size)
    even = uint64(start + (end - start) // 4 * 4)
    while j < even:
        turns[codes[j]] += 1
        turns[one + codes[j + uint64(1)]] += 1
        turns[two + codes[j + uint64(2)]] += 1
        turns[three + codes[j + uint64(3)]] += 1
        j += uint64(4)
    for at in range(even, uint64(end)):
        turns[codes[at]] += 1
    for code in range(uint64(size)):
        hist[code] = int64(turns[code]) + turns[one + code] + turns[two + code] + turns[three + code]


@numba.njit(cache=True, nogil=True)
def measure(low, high, codes, offsets, size, first, counted, out):
    marks, freq, tally, turns, _ = _scratch(size)
    hist = tally[0]
    for row in range(low, high):
        start, end = offsets[row], offsets[row + 1]
        if start == end:
            continue
        if first[row] < 0:
            _count_one(codes, start, end, size, turns, hist)
            out[row] += _choose(codes, start, end, size, tally, hist, marks, freq)[1]
        else:
            hists = counted[first[row] : first[row] + (end - start - 1) // rans.SEGMENT + 1]
            out[row] += _choose(codes, start, end, size, hists, _total(hists), marks, freq)[1]


@numba.njit(cache=True, nogil=True)
def write(low, high, codes, offsets, size, first, counted, buffer, cursor, freqs, places):
    """Writes all but the segments of rows that have several; of these it leaves frequencies and where they go."""
    marks, freq, tally, turns, starts = _scratch(size)
    for row in range(low, high):
        start, end, position = offsets[row], offsets[row + 1], cursor[row]
        if start == end:
            continue
        hists, hist = tally, tally[0]
        starts[0], starts[1] = start, end
        if first[row] < 0:
            _count_one(codes, start, end, size, turns, hist)
        else:
            hists = counted[first[row] : first[row] + (end - start - 1) // rans.SEGMENT + 1]
            hist = _total(hists)
        form, _, many, plan = _choose(codes, start, end, size, hists, hist, marks, freq)
        _, wide, words = group(size, end - start)
        flag = words == 1 << wide
        if form == FIXED:
            cursor[row] = put_fixed(codes, start, end, size, buffer, position + int64(flag))
            continue
        position = put(buffer, position, uint64(1 if flag else words), 1 if flag else wide)
        position = put(buffer, position, uint64(form == SPARSE), int64(1))
        if form == SPARSE:
            cursor[row] = _put_sparse(codes, start, end, size, many, marks, freq, buffer, position)
            continue
        cursor[row], byte = _put_frequencies(codes, start, end, size, plan, hists, marks, freq, buffer, position)
        if byte >= 0 and first[row] < 0:
            _put_segments(codes, starts, plan, hists, freq, buffer, byte)
        elif byte >= 0:
            freq[plan[1] :] = 0
            for segment in range(len(hists)):
                freqs[first[row] + segment] = freq
                places[first[row] + segment] = byte
                byte += 8 * LANES + 4 * tables.segment_words(hists[segment], freq, plan[1], plan[4])


@numba.njit(cache=True, nogil=True)
def write_segments(low, high, codes, starts, ends, counted, freqs, places, buffer):
    """Writes the segments that have a place."""
    for segment in range(low, high):
        if places[segment] >= 0:
            freq = freqs[segment]
            precision = tables.digits(freq, len(freq))
            words = tables.segment_words(counted[segment], freq, len(freq), precision)
            table = rans.entries(freq, len(freq), precision)
            rans.put_segment(codes, starts[segment], ends[segment], table, words, buffer, places[segment])
