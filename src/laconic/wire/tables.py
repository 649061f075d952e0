"""The table of a row's frequencies: marks from a histogram, frequencies from marks, and what a row will take.

What rANS writes (wire.rans) is padded to a length that follows from the histogram: x + M grows at most by the factor
M / f a symbol, since M floor(x / f) + start + x mod f + M <= (x + M) M / f, and the words that leave cost less than
2^-13 bit each. So sizes are known without encoding. The format is in docs/wire.md.
"""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import float64, int64, types, uint64
from numba.extending import intrinsic

from laconic.wire import bits

LANES = 8
WIDE = 1 << 15  # bits of a body from which eight states are worth their room
FINE = 20  # binary digits of a logarithm
HOPELESS = 1 << 62
FAR = 8  # ones after which a mark is told as it is
POWERS = tuple(round(2 ** (31 + eighth / 8)) for eighth in range(8))  # 2^(e / 8)


def _logarithms() -> np.ndarray:
    """log2(1 + i / 256) for i = 0..256, rounded down to FINE digits, by squaring in integers."""
    out = []
    for i in range(256):
        value, bits = (256 + i) << 54, 0
        for _ in range(FINE):
            value = value * value >> 62
            bits = 2 * bits + (value >> 63)
            value >>= value >> 63
        out.append(bits)
    return np.array([*out, 1 << FINE], dtype=np.int64)


LOGARITHMS = _logarithms()
_WEIGHTS = np.array(POWERS, dtype=np.int64)


@numba.njit(cache=True, nogil=True)
def put(buffer, position, value, width):
    """`bits.put`, compiled once for all who call it here."""
    return bits.put(buffer, position, value, width)


@numba.njit(cache=True, nogil=True)
def get(buffer, position, width):
    """`bits.get`, compiled once for all who call it here."""
    return bits.get(buffer, position, width)


@intrinsic
def _leading_zeros(typingctx: Any, value: Any) -> Any:  # of an int64; 64 of 0
    def build(context, builder, signature, args):
        return builder.ctlz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.int64(types.int64), build


_zeros = cast(Any, _leading_zeros)  # type checkers do not know that numba gives the first argument


@numba.njit(cache=True, nogil=True)
def bit_length(value):
    return 64 - _zeros(int64(value))


@numba.njit(cache=True, nogil=True)
def _log2(value):
    """log2 of an integer >= 1 in units of 2^-FINE, from below: a chord of the table."""
    whole = bit_length(value) - 1
    mantissa = value << (24 - whole) if whole <= 24 else value >> (whole - 24)
    place, rest = (mantissa >> 16) & 255, mantissa & 65535
    return (whole << FINE) + LOGARITHMS[place] + ((LOGARITHMS[place + 1] - LOGARITHMS[place]) * rest >> 16)


@numba.njit(cache=True, nogil=True)
def quantise(hist, top, count, marks):
    """marks[code] = 1 + round(2^fine log2(hist[code])), or 0 where there are none. Returns fine.

    An error of a mark costs about 0.03 / 4^fine bits a code, a finer table about a bit a symbol.
    """
    used, fine = 0, 0
    for code in range(top):
        used += hist[code] > 0
    fine = int64(count > 46 * used) + int64(count > 185 * used) + int64(count > 740 * used)
    for code in range(top):
        mark = 1 + (((_log2(max(hist[code], 1)) << fine) + (1 << (FINE - 1))) >> FINE)
        marks[code] = min(mark, (32 << fine) - 1) if hist[code] > 0 else 0
    return fine


@numba.njit(cache=True, nogil=True)
def _step_bits(step):
    """About what a step of a mark costs in the table."""
    folded = 2 * step if step >= 0 else -2 * step - 1
    return min(folded + 1, (folded >> 1) + 2, FAR + 5) << FINE


@numba.njit(cache=True, nogil=True)
def smooth(hist, top, marks):
    """Moves whole marks by one, or to the mark they are told from, where the table gains more than the codes lose.

    A mark m makes a code's share 2^(m - 1), not h: the codes lose h log2(h) - h (m - 1) + (2^(m - 1) - h) log2(e), of
    which the terms of h alone do not matter here.
    """
    before, last = marks[0], marks[0]
    for code in range(1, top):
        own, best, least, many = marks[code], marks[code], int64(1) << 62, hist[code]
        if own == 0 and before == 0:  # any other mark costs two steps more
            before, last = last, own
            continue
        for choice in (own, before, own + 1, own - 1):
            if choice < 0 or choice > 31 or (choice == 0 and many > 0):
                continue
            cost = (1512775 << (choice - 1)) - many * (choice << FINE) if choice > 0 else int64(0)
            cost += _step_bits(choice - before)
            if code + 2 < top:
                cost += _step_bits(marks[code + 2] - choice)
            if cost < least:
                best, least = choice, cost
        marks[code] = best
        before, last = last, best


@numba.njit(cache=True, nogil=True, error_model="numpy")
def frequencies(marks, top, count, fine, freq):
    """freq[code] out of 2^precision, in proportion to 2^(mark / 2^fine), at least 1 for a mark. Returns precision."""
    used, most, total = 0, int64(0), 0
    for code in range(top):
        used += marks[code] > 0
        most = max(most, marks[code])
    precision = max(min(max(bit_length(count) + 2, 8), 14), min(bit_length(used) + 3, 16))
    octaves = ((most - 1) << (3 - fine)) >> 3
    for code in range(top):
        eighths = (max(marks[code], 1) - 1) << (3 - fine)
        weight = _WEIGHTS[eighths & 7] >> (octaves - (eighths >> 3))
        freq[code] = weight if marks[code] > 0 else 0
        total += freq[code]
    left = 1 << precision
    room, best = left - used, 0
    for code in range(top):  # a quotient of integers below 2^48 rounds down as it should
        share = max(1, int64(float64(freq[code] * room) / float64(total)))
        freq[code] = share if marks[code] > 0 else 0
        left -= freq[code]
    while marks[best] < most:
        best += 1
    freq[best] += left
    return precision


@numba.njit(cache=True, nogil=True)
def digits(freq, top):
    """The precision of frequencies: log2 of what they add up to."""
    total = 0
    for code in range(top):
        total += freq[code]
    return bit_length(total) - 1


@numba.njit(cache=True, nogil=True)
def _information(hist, freq, top, precision):
    """The bits of codes with this histogram, from above, in units of 2^-FINE, with what words that leave may cost."""
    total = 0
    for code in range(top):
        each = (precision << FINE) - _log2(max(freq[code], 1))
        total += hist[code] * (each + (each >> 18) + (each > 0))
    return total


@numba.njit(cache=True, nogil=True)
def segment_words(hist, freq, top, precision):
    """The 32-bit words of a segment with eight states."""
    return (_information(hist, freq, top, precision) + (1 << FINE)) >> (FINE + 5)


@numba.njit(cache=True, nogil=True)
def _rice(marks, top, fine):
    """(the Rice parameter with which the differences of marks take the fewest bits, how many)."""
    zero, one, two, three, far = int64(0), int64(0), int64(0), int64(0), FAR + 5 + fine
    for code in range(uint64(1), uint64(top)):
        step = marks[code] - marks[max(code, uint64(2)) - uint64(2)]
        folded = 2 * step if step >= 0 else -2 * step - 1
        zero += folded + 1 if folded < FAR else far
        one += (folded >> 1) + 2 if folded < 2 * FAR else far
        two += (folded >> 2) + 3 if folded < 4 * FAR else far
        three += (folded >> 3) + 4 if folded < 8 * FAR else far
    best, rice = zero, int64(0)
    if one < best:
        best, rice = one, int64(1)
    if two < best:
        best, rice = two, int64(2)
    if three < best:
        best, rice = three, int64(3)
    return rice, best


@numba.njit(cache=True, nogil=True)
def plan(hists, hist, size, count, most, marks, freq):
    """How to code `count` >= 1 codes whose histogram is `hist`, that of each segment a row of `hists`.

    Fills marks and freq. Returns (total, top, fine, rice, precision, body), where body is the bits of one state with
    its words, or -1 for eight states. HOPELESS bits where it cannot be shorter than `most`.
    """
    top = size
    while hist[top - 1] == 0:
        top -= 1
    if top >= most:
        return HOPELESS, top, 0, 0, 0, 0
    fine = quantise(hist, top, count, marks)
    if fine == 0 and top > 8:
        smooth(hist, top, marks)
    rice, steps = _rice(marks, top, fine)
    precision = frequencies(marks, top, count, fine, freq)
    total = bit_length(size - 1) + 4 + 5 + fine + steps + 1
    body = precision + ((_information(hist, freq, top, precision) + (1 << FINE) + (1 << (FINE - 7))) >> FINE)
    if body <= WIDE:
        return total + bit_length(most) + body, top, fine, rice, precision, body
    total += 7
    for segment in range(len(hists)):
        total += 32 + 64 * LANES + 32 * segment_words(hists[segment], freq, top, precision)
    return total, top, fine, rice, precision, int64(-1)


@numba.njit(cache=True, nogil=True)
def put_table(marks, top, fine, rice, size, buffer, position):
    position = put(buffer, position, uint64(top - 1), bit_length(size - 1))
    position = put(buffer, position, uint64(fine + 4 * rice), int64(4))
    position = put(buffer, position, uint64(marks[0]), 5 + fine)
    before, last = marks[0], marks[0]
    for code in range(1, top):
        step = marks[code] - before
        folded = 2 * step if step >= 0 else -2 * step - 1
        quotient = folded >> rice
        if quotient < FAR:
            ones, rest, width = quotient, uint64(folded & ((1 << rice) - 1)) << uint64(1), 1 + rice
        else:
            ones, rest, width = int64(FAR), uint64(marks[code]), 5 + fine
        word = (uint64(1) << uint64(ones)) - uint64(1) | rest << uint64(ones)
        position = put(buffer, position, word, ones + width)
        before, last = last, marks[code]
    return position


@numba.njit(cache=True, nogil=True)
def get_table(buffer, position, stop, size, marks):
    """Fills marks. Returns (position, top, fine); the position is -1 where the table cannot be."""
    width = bit_length(size - 1)
    if position + width + 4 > stop:
        return int64(-1), int64(0), int64(0)
    top = int64(get(buffer, position, width)) + 1
    fine = int64(get(buffer, position + width, int64(2)))
    rice = int64(get(buffer, position + width + 2, int64(2)))
    position += width + 4
    if top > size or position + 5 + fine > stop:
        return int64(-1), int64(0), int64(0)
    marks[0] = get(buffer, position, 5 + fine)
    position += 5 + fine
    before, last = marks[0], marks[0]
    for code in range(1, top):
        if position >= stop:
            return int64(-1), int64(0), int64(0)
        byte, quotient = position >> 3, int64(0)  # a stream has room for a word behind its end
        window = int64(buffer[byte]) | int64(buffer[byte + 1]) << 8 | int64(buffer[byte + 2]) << 16
        window >>= position & 7
        while quotient < FAR and window & 1:
            window >>= 1
            quotient += 1
        width = 5 + fine if quotient == FAR else 1 + rice
        position += quotient + width
        if position > stop:
            return int64(-1), int64(0), int64(0)
        mark = window & ((1 << width) - 1)
        if quotient < FAR:
            folded = (quotient << rice) + (mark >> 1)
            mark = before + (-((folded + 1) >> 1) if folded & 1 else folded >> 1)
        if mark < 0 or mark >= 32 << fine:
            return int64(-1), int64(0), int64(0)
        marks[code] = mark
        before, last = last, mark
    if marks[top - 1] == 0:
        return int64(-1), int64(0), int64(0)
    return position, top, fine
