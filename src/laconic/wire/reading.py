"""Rows of levels from bits that are not trusted: every position is checked, every code lies in the alphabet.

Kernels over the rows of a batch, and over the segments of long rows. The format is in docs/wire.md.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import int64, uint64

from laconic.wire import rans, subsets, tables
from laconic.wire.forms import fixed_bits, group, pair, segments
from laconic.wire.rans import LANES
from laconic.wire.tables import get


@numba.njit(cache=True, nogil=True)
def get_fixed(buffer, position, size, out, start, end):
    """The codes start..end-1, whose bits the caller has checked to be there. Returns whether all are below size."""
    most, width, _ = group(size, end - start)
    byte, fill, word, bad = position >> 3, int64(0), uint64(0), False
    if end > start:
        word, fill = uint64(buffer[byte]) >> uint64(position & 7), 8 - (position & 7)
        byte += 1
    for j in range(start, end, most):
        stop = min(end, j + most)
        wide = width if stop - j == most else (8 * (stop - j) + 4) // 5
        while fill < wide:
            word |= uint64(buffer[byte]) << uint64(fill)
            byte += 1
            fill += 8
        value = word & ((uint64(1) << uint64(wide)) - uint64(1))
        word >>= uint64(wide)
        fill -= wide
        if most > 1:
            for digit in range(stop - j):
                out[j + digit] = value % uint64(3)
                value //= uint64(3)
            bad |= value > uint64(0)
        else:
            out[j] = value
            bad |= value >= uint64(size)
    return not bad


@numba.njit(cache=True, nogil=True)
def _get_wide(buffer, position, stop, lengths):
    """The lengths of the segments. (the bit behind them or -1, the first byte of the first one)."""
    byte = (position + 7) >> 3
    end = position + 7 + 32 * len(lengths)
    if end > stop:
        return -1, byte
    for segment in range(len(lengths)):
        lengths[segment] = get(buffer, 8 * byte + 32 * segment, int64(32))
        end += 64 * LANES + 32 * lengths[segment]
        if end > stop:
            return -1, byte
    for lead in range(position, 8 * byte):
        if get(buffer, lead, int64(1)):
            return -1, byte
    for rest in range(end - (7 - (8 * byte - position)), end):
        if get(buffer, rest, int64(1)):
            return -1, byte
    return end, byte + 4 * len(lengths)


@numba.njit(cache=True, nogil=True)
def _get_frequencies(buffer, position, stop, size, start, end, marks, freq, out, lengths):
    """All but the segments of eight states. (position or -1, the first byte of these or -1, how many frequencies)."""
    position, top, fine = tables.get_table(buffer, position, stop, size, marks)
    if position < 0 or position >= stop:
        return int64(-1), int64(-1), top
    precision = tables.frequencies(marks, top, end - start, fine, freq)
    position += 1
    if get(buffer, position - 1, int64(1)):
        position, byte = _get_wide(buffer, position, stop, lengths)
        return position, byte, top
    width = tables.bit_length(fixed_bits(size, end - start))
    if position + width > stop:
        return int64(-1), int64(-1), top
    body = int64(get(buffer, position, width))
    position += width
    if position + body > stop:
        return int64(-1), int64(-1), top
    codes, steps = rans.slots(freq, top, precision)
    well = rans.get_one(codes, steps, precision, body, buffer, position, out, start, end)
    return (position + body if well else int64(-1)), int64(-1), top


@numba.njit(cache=True, nogil=True)
def _get_segments(buffer, byte, freq, top, starts, lengths, out):
    """The segments of eight states, one after another. Returns whether they are well-formed."""
    precision, well = tables.digits(freq, top), True
    codes, steps = rans.slots(freq, top, precision)
    for segment in range(len(lengths)):
        words = lengths[segment]
        well &= rans.get_segment(
            codes, steps, precision, words, buffer, byte, out, starts[segment], starts[segment + 1]
        )
        byte += 8 * LANES + 4 * words
    return well


@numba.njit(cache=True, nogil=True)
def _get_sparse(buffer, position, stop, size, start, end, marks, freq, out):
    """The position behind the row, or -1."""
    width = tables.bit_length(end - start)
    if position + width > stop:
        return -1
    many = int64(get(buffer, position, width))
    if many > end - start:
        return -1
    cursor = np.full(1, position + width)
    where = np.empty(many, np.int64)
    if subsets.read(pair(int64(0), many), end - start, buffer, cursor, np.full(1, stop), where) != subsets.MALFORMED:
        return -1
    out[start:end] = 0
    position = cursor[0]
    what = np.zeros(many, out.dtype)
    if many > 0 and size > 2:
        if position >= stop:
            return -1
        coded = get(buffer, position, int64(1))
        position += 1
        if coded:
            starts = segments(int64(0), many)
            lengths = np.empty(len(starts) - 1, np.int64)
            position, byte, top = _get_frequencies(
                buffer, position, stop, size - 1, int64(0), many, marks, freq, what, lengths
            )
            if position >= 0 and byte >= 0 and not _get_segments(buffer, byte, freq, top, starts, lengths, what):
                return -1
        else:
            bits = fixed_bits(size - 1, many)
            well = position + bits <= stop and get_fixed(buffer, position, size - 1, what, int64(0), many)
            position = position + bits if well else -1
        if position < 0:
            return -1
    for j in range(many):
        out[start + where[j]] = what[j] + 1
    return position


@numba.njit(cache=True, nogil=True)
def _get_row(buffer, position, stop, size, start, end, marks, freq, out, lengths):
    """(position or -1, the first byte of segments left to others or -1, the number of frequencies)."""
    most, width, words = group(size, end - start)
    flag = words == 1 << width
    head, bits = (1 if flag else width), fixed_bits(size, end - start)
    if position + head > stop:
        return int64(-1), int64(-1), int64(0)
    first = int64(get(buffer, position, head))
    if flag and first == 0 or not flag and first < words:
        position += int64(flag)
        well = position + bits <= stop and get_fixed(buffer, position, size, out, start, end)
        return (position + bits if well else int64(-1)), int64(-1), int64(0)
    position += head
    if not flag and first > words or position >= stop:
        return int64(-1), int64(-1), int64(0)
    sparse = get(buffer, position, int64(1))
    if sparse:
        return _get_sparse(buffer, position + 1, stop, size, start, end, marks, freq, out), int64(-1), int64(0)
    return _get_frequencies(buffer, position + 1, stop, size, start, end, marks, freq, out, lengths)


@numba.njit(cache=True, nogil=True)
def read(low, high, offsets, size, first, buffer, cursor, ends, out, freqs, places, lengths, well):
    """Reads all but the segments of rows that have several; of these it leaves frequencies, places and lengths."""
    marks, freq = np.empty(size, np.int64), np.empty(size, np.int64)
    one, starts = np.empty(1, np.int64), np.empty(2, np.int64)
    for row in range(low, high):
        start, end = offsets[row], offsets[row + 1]
        if start == end:
            continue
        starts[0], starts[1] = start, end
        many = (end - start - 1) // rans.SEGMENT + 1
        own = lengths[first[row] : first[row] + many] if first[row] >= 0 else one
        position, byte, top = _get_row(buffer, cursor[row], ends[row], size, start, end, marks, freq, out, own)
        well[row] = position >= 0
        if well[row]:
            cursor[row] = position
        if well[row] and byte >= 0 and first[row] < 0:
            well[row] = _get_segments(buffer, byte, freq, top, starts, own, out)
        elif well[row] and byte >= 0:
            freq[top:] = 0
            for segment in range(len(own)):
                freqs[first[row] + segment] = freq
                places[first[row] + segment] = byte
                byte += 8 * LANES + 4 * own[segment]


@numba.njit(cache=True, nogil=True)
def read_segments(low, high, starts, ends, rows, freqs, places, lengths, buffer, out, well):
    """Reads the segments that have a place."""
    for segment in range(low, high):
        if places[segment] >= 0:
            freq = freqs[segment]
            precision = tables.digits(freq, len(freq))
            codes, steps = rans.slots(freq, len(freq), precision)
            if not rans.get_segment(
                codes, steps, precision, lengths[segment], buffer, places[segment], out, starts[segment], ends[segment]
            ):
                well[rows[segment]] = False
