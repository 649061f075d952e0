"""Bit streams in bytes: bit j of a stream is bit j % 8 (lowest first) of byte j // 8. Numbers go low bit first."""

from __future__ import annotations

import numba
import numpy as np
from numba import uint8, uint64


@numba.njit(inline="always")
def put(buffer, position, value, width):
    """Writes the low `width` bits of a uint64 at a bit position, over zeros. Returns the new position."""
    while width > 0:
        shift = position & 7
        room = 8 - shift
        take = room if room < width else width
        mask = (uint64(1) << uint64(take)) - uint64(1)
        buffer[position >> 3] |= uint8((value & mask) << uint64(shift))
        value >>= uint64(take)
        position += take
        width -= take
    return position


@numba.njit(inline="always")
def get(buffer, position, width):
    """The `width` <= 64 bits at a bit position, as a uint64. The caller checks that they lie inside the buffer."""
    value, done = uint64(0), 0
    while done < width:
        shift = position & 7
        room = 8 - shift
        take = room if room < width - done else width - done
        piece = (uint64(buffer[position >> 3]) >> uint64(shift)) & ((uint64(1) << uint64(take)) - uint64(1))
        value |= piece << uint64(done)
        position += take
        done += take
    return value


@numba.njit(cache=True, nogil=True)
def put_fixed(codes, offsets, width, buffer, cursor):
    """Appends each row's codes, `width` bits each, at its cursor (in bits), which moves on."""
    for row in range(len(cursor)):
        position = cursor[row]
        for j in range(offsets[row], offsets[row + 1]):
            position = put(buffer, position, codes[j], width)
        cursor[row] = position


@numba.njit(cache=True, nogil=True)
def get_fixed(offsets, width, buffer, cursor, out):
    """Reads each row's codes of `width` bits from its cursor, which moves on. The caller has checked the lengths."""
    for row in range(len(cursor)):
        position = cursor[row]
        for j in range(offsets[row], offsets[row + 1]):
            out[j] = get(buffer, position, width)
            position += width
        cursor[row] = position


def zeros(nbytes: int) -> np.ndarray:
    """An empty stream."""
    return np.zeros(nbytes, dtype=np.uint8)
