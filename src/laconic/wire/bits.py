"""Bit streams in bytes: bit j of a stream is bit j % 8 (lowest first) of byte j // 8. Numbers go low bit first.

A stream in memory has room for whole 64-bit words, little-endian, and one more, so that kernels may work word by word.
Long runs of codes are written and read in pieces of SPAN codes, which several threads share.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import int64, uint8, uint64

from laconic.kernels.threads import over_rows

SPAN = 1 << 16  # codes of a piece
_WORD = 8


def zeros(nbytes: int) -> np.ndarray:
    """An empty stream of that many bytes, with its room."""
    return np.zeros((nbytes + 2 * _WORD - 1) // _WORD * _WORD, dtype=np.uint8)


def stream(data: np.ndarray) -> np.ndarray:
    """The bytes `data` (uint8) as a stream: a copy with room."""
    out = np.empty((len(data) + 2 * _WORD - 1) // _WORD * _WORD, dtype=np.uint8)
    out[: len(data)] = data
    out[len(data) :] = 0
    return out


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


@numba.njit(inline="always")
def _edge(buffer, word, value, begin, end):
    """Writes the bits begin..end-1 of a word that others may share, whole bytes of it. Returns the bits left over."""
    byte, stop = begin >> 3, end >> 3
    if byte < stop:  # the byte at the beginning may hold bits already
        buffer[8 * word + byte] |= uint8(value >> uint64(8 * byte))
    for other in range(byte + 1, stop):
        buffer[8 * word + other] = uint8(value >> uint64(8 * other))
    return uint8(value >> uint64(8 * stop)) if end & 7 else uint8(0)


@numba.njit(cache=True, nogil=True)
def _put_pieces(low, high, codes, starts, positions, width, buffer, words, tails):
    """Writes the codes of each piece at its bit position, but for what fills its last byte only in part: tails."""
    mask = uint64(0xFFFFFFFFFFFFFFFF) >> uint64(64 - width)
    for piece in range(low, high):
        position = positions[piece]
        first = position >> 6
        word, begin = first, position & 63
        fill, value = begin, uint64(0)
        for j in range(starts[piece], starts[piece + 1]):
            code = uint64(codes[j]) & mask
            value |= code << uint64(fill)
            fill += width
            if fill >= 64:
                if word == first:
                    _edge(buffer, word, value, begin, 64)
                else:
                    words[word] = value
                word += 1
                fill -= 64
                value = code >> uint64(width - fill) if fill > 0 else uint64(0)
        tails[piece] = _edge(buffer, word, value, begin if word == first else int64(0), fill)


@numba.njit(cache=True, nogil=True)
def _put_tails(tails, ends, buffer):
    for piece in range(len(tails)):
        if tails[piece]:
            buffer[ends[piece] >> 3] |= tails[piece]


@numba.njit(cache=True, nogil=True)
def _get_pieces(low, high, starts, positions, width, words, out):
    mask = uint64(0xFFFFFFFFFFFFFFFF) >> uint64(64 - width)
    for piece in range(low, high):
        position = uint64(positions[piece])
        for j in range(starts[piece], starts[piece + 1]):
            word, shift = position >> uint64(6), position & uint64(63)  # two shifts below, for one by 64 is none
            upper = (words[word + uint64(1)] << uint64(1)) << (uint64(63) - shift)
            out[j] = ((words[word] >> shift) | upper) & mask
            position += uint64(width)


def _pieces(offsets: np.ndarray, cursor: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the codes of each piece begin (and the last ones end), and the bit positions where they are written."""
    counts = offsets[1:] - offsets[:-1]
    if not len(counts) or counts.max() <= SPAN:
        return offsets, cursor
    spans = np.maximum(1, -(-counts // SPAN))
    row = np.repeat(np.arange(len(counts)), spans)
    within = SPAN * (np.arange(len(row)) - np.repeat(np.cumsum(spans) - spans, spans))
    starts = np.append(offsets[row] + within, offsets[-1])
    return starts, cursor[row] + width * within


def put_fixed(codes: np.ndarray, offsets: np.ndarray, width: int, buffer: np.ndarray, cursor: np.ndarray) -> None:
    """Appends each row's codes (unsigned), `width` bits each, at its cursor (in bits), which moves on."""
    starts, positions = _pieces(offsets, cursor, width)
    tails = np.empty(len(positions), dtype=np.uint8)
    words = buffer.view(np.uint64)
    over_rows(_put_pieces, len(tails), len(codes), codes, starts, positions, width, buffer, words, tails)
    _put_tails(tails, positions + width * (starts[1:] - starts[:-1]), buffer)
    cursor += width * (offsets[1:] - offsets[:-1])


def get_fixed(offsets: np.ndarray, width: int, buffer: np.ndarray, cursor: np.ndarray, out: np.ndarray) -> None:
    """Reads each row's codes of `width` bits into `out` (unsigned, at least as wide) from its cursor, which moves on.

    The caller has checked the lengths.
    """
    starts, positions = _pieces(offsets, cursor, width)
    over_rows(_get_pieces, len(positions), len(out), starts, positions, width, buffer.view(np.uint64), out)
    cursor += width * (offsets[1:] - offsets[:-1])
