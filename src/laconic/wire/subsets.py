"""k-subsets of 0..size-1 as bits: Rice-coded gaps or a bitmap, whichever is shorter (one flag bit says which).

A row of k sorted indices, k known to both ends: nothing at all for k = 0 and k = size; else flag 0 and, per index,
the gap to the one before (less one) as quotient in unary (ones, then a zero) and `b` low bits; or flag 1 and `size`
bits. The Rice parameter is floor(log2(2 ln(phi) size / k)) with the golden ratio phi, the best one for gaps of density
k / size (Sattler et al. 2019, 1903.02891), in integers, so that every machine finds the same.
"""

from __future__ import annotations

import numba
from numba import uint64

from laconic.wire.bits import get, put

MALFORMED = -1


@numba.njit(inline="always")
def rice_parameter(size, k):
    """floor(log2(2 * ln(phi) * size / k)), at least 0, with 2 ln(phi) as 63073 / 65536."""
    quotient, b = (size * 63073) // (k * 65536), 0
    while quotient > 1:
        quotient >>= 1
        b += 1
    return b


@numba.njit(inline="always")
def _rice_bits(codes, low, high, b):
    total, before = (high - low) * (1 + b), -1
    for j in range(low, high):
        total += (codes[j] - before - 1) >> b
        before = codes[j]
    return total


@numba.njit(cache=True, nogil=True)
def measure(low, high, codes, offsets, size, out):
    """Adds to out[row] the exact number of bits of each row."""
    for row in range(low, high):
        k = offsets[row + 1] - offsets[row]
        if 0 < k < size:
            rice = _rice_bits(codes, offsets[row], offsets[row + 1], rice_parameter(size, k))
            out[row] += 1 + (rice if rice <= size else size)


@numba.njit(cache=True, nogil=True)
def write(codes, offsets, size, buffer, cursor):
    """Appends each row at its cursor (in bits), which moves on."""
    for row in range(len(cursor)):
        start, end = offsets[row], offsets[row + 1]
        k, position = end - start, cursor[row]
        if k == 0 or k == size:
            continue
        b = rice_parameter(size, k)
        if _rice_bits(codes, start, end, b) <= size:
            position += 1
            before = -1
            for j in range(start, end):
                gap = codes[j] - before - 1
                before = codes[j]
                quotient = gap >> b
                while quotient >= 32:
                    position = put(buffer, position, uint64(0xFFFFFFFF), 32)
                    quotient -= 32
                position = put(buffer, position, (uint64(1) << uint64(quotient)) - uint64(1), quotient + 1)
                position = put(buffer, position, uint64(gap) & ((uint64(1) << uint64(b)) - uint64(1)), b)
        else:
            position = put(buffer, position, uint64(1), 1)
            for j in range(start, end):
                put(buffer, position + codes[j], uint64(1), 1)
            position += size
        cursor[row] = position


@numba.njit(cache=True, nogil=True)
def read(offsets, size, buffer, cursor, ends, out):
    """Reads each row from its cursor, never past ends[row] (in bits). Returns the first malformed row, or -1."""
    for row in range(len(cursor)):
        start, end = offsets[row], offsets[row + 1]
        k, position, stop = end - start, cursor[row], ends[row]
        if k == size:
            for j in range(k):
                out[start + j] = j
        if k == 0 or k == size:
            continue
        if position >= stop:
            return row
        bitmap = get(buffer, position, 1)
        position += 1
        if bitmap:
            found = 0
            if position + size > stop:
                return row
            for j in range(size):
                if get(buffer, position + j, 1):
                    if found == k:
                        return row
                    out[start + found] = j
                    found += 1
            position += size
            if found < k:
                return row
        else:
            b, before = rice_parameter(size, k), -1
            for j in range(start, end):
                quotient = 0
                while position < stop and get(buffer, position, 1):
                    quotient += 1
                    position += 1
                if position + 1 + b > stop or quotient > (size >> b):
                    return row
                value = before + 1 + (quotient << b) + int(get(buffer, position + 1, b))
                if value >= size:
                    return row
                position += 1 + b
                out[j] = before = value
        cursor[row] = position
    return MALFORMED
