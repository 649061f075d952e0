"""Codes by their frequencies: rANS (Duda 2013, 1311.2540) with states of 64 bits.

A symbol of frequency f out of M takes the state x to M floor(x / f) + start + x mod f, whose lower half leaves the
state beforehand where the result would not fit. The format is in docs/wire.md.
"""

from __future__ import annotations

from typing import Any, cast

import numba
import numpy as np
from llvmlite import ir
from numba import int64, types, uint32, uint64
from numba.extending import intrinsic

from laconic.wire.tables import LANES, bit_length, get, put

SEGMENT = 1 << 20  # codes that share eight states
LOW = 1 << 31  # a state is at least this where words are left


@intrinsic
def _product(typingctx: Any, a: Any, b: Any) -> Any:  # the upper half of a product of two uint64
    def build(context, builder, signature, args):
        double = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], double), builder.zext(args[1], double))
        return builder.trunc(builder.lshr(product, ir.Constant(double, 64)), ir.IntType(64))

    return types.uint64(types.uint64, types.uint64), build


_upper = cast(Any, _product)  # type checkers do not know that numba gives the first argument


@numba.njit(cache=True, nogil=True)
def entries(freq, top, precision):
    """Of each code what its steps need: (the state from which a word leaves, 1 / f, its shift, M - f, start).

    floor(x / f) is the upper half of x * ceil(2^(63 + s) / f), shifted by s - 1, for all x < 2^63, with
    s = ceil(log2 f) (Giesen 2014); for f = 1 the upper half is x - 1, which the start makes up for.
    """
    out = np.empty((top, 5), np.uint64)
    start = uint64(0)
    for code in range(top):
        f = uint64(freq[code])
        if f == 0:
            continue
        out[code, 0] = f << uint64(63 - precision)
        out[code, 3] = (uint64(1) << uint64(precision)) - f
        if f == 1:
            out[code, 1], out[code, 2], out[code, 4] = ~uint64(0), uint64(0), start + out[code, 3]
        else:
            shift = uint64(bit_length(int64(f) - 1))
            whole = uint64(1) << (shift + uint64(31))
            out[code, 1] = ((whole // f) << uint64(32)) + (((whole % f) << uint64(32)) + f - uint64(1)) // f
            out[code, 2], out[code, 4] = shift - uint64(1), start
        start += f
    return out


@numba.njit(cache=True, nogil=True)
def slots(freq, top, precision):
    """The code of every slot below M, and of each code its frequency and, 32 bits higher, its start."""
    codes, steps, start = np.empty(1 << precision, np.uint16), np.empty(top, np.uint64), 0
    for code in range(top):
        steps[code] = uint64(freq[code]) | (uint64(start) << uint64(32))
        codes[start : start + freq[code]] = code
        start += freq[code]
    return codes, steps


# The steps have no branches: arrays that cross one are counted as references, at ten times the cost of a step.


@numba.njit(inline="always")
def _push(x, code, table, words, place):
    entry = uint64(code)
    words[place] = uint32(x)
    leaves = uint64(x >= table[entry, 0])
    x >>= leaves << uint64(5)
    return x + table[entry, 4] + (_upper(x, table[entry, 1]) >> table[entry, 2]) * table[entry, 3], place + leaves


@numba.njit(inline="always")
def _pop(x, codes, steps, mask, shift, words, place, more, out, at):
    slot = x & mask
    code = codes[slot]
    out[at] = code
    step = steps[uint64(code)]
    x = (step & uint64(0xFFFFFFFF)) * (x >> shift) + slot - (step >> uint64(32))
    under = uint64(x < uint64(LOW)) & uint64(place < more)
    return (x << (under << uint64(5))) | (uint64(words[place]) & (uint64(0) - under)), place + under


@numba.njit(cache=True, nogil=True)
def put_one(codes, start, end, table, body, buffer, position):
    """One state from 1, in `body` bits: the state, then its words, the last one that left first."""
    count = max(0, (body - 31) // 32)
    words = np.empty(count + 1, np.uint32)
    x, place = uint64(1), uint64(0)
    for back in range(end - start):
        x, place = _push(x, codes[uint64(end - 1 - back)], table, words, place)
    while place < count:
        words[place] = uint32(x)
        x >>= uint64(32)
        place += uint64(1)
    position = put(buffer, position, x, body - 32 * count)
    for back in range(count):
        position = put(buffer, position, uint64(words[count - 1 - back]), int64(32))
    return position


@numba.njit(cache=True, nogil=True)
def get_one(codes, steps, precision, body, buffer, position, out, start, end):
    """The codes start..end-1 of one state in `body` bits, which are there. Returns whether they end well."""
    count = max(0, (body - 31) // 32)
    words = np.zeros(count + 1, np.uint32)
    x = get(buffer, position, body - 32 * count)
    position += body - 32 * count
    for index in range(count):
        words[index] = get(buffer, position + 32 * index, int64(32))
    place, more = uint64(0), uint64(count)
    while place < more and x < uint64(LOW):
        x = (x << uint64(32)) | uint64(words[place])
        place += uint64(1)
    mask, shift = (uint64(1) << uint64(precision)) - uint64(1), uint64(precision)
    for at in range(uint64(start), uint64(end)):
        x, place = _pop(x, codes, steps, mask, shift, words, place, more, out, at)
    return x == uint64(1) and place == more


@numba.njit(cache=True, nogil=True)
def put_segment(codes, start, end, table, count, buffer, byte):
    """Eight states from LOW, code j of the segment in state j mod 8: the states, then `count` words."""
    words, states = np.empty(count + 1, np.uint32), np.full(LANES, LOW, np.uint64)
    place, even = uint64(0), start + (end - start) // LANES * LANES
    for back in range(end - even):
        lane = end - even - 1 - back
        states[lane], place = _push(states[lane], codes[uint64(even + lane)], table, words, place)
    a, b, c, d, e, f, g, h = states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7]
    at, first = uint64(even), uint64(start)
    while at > first:
        at -= uint64(LANES)
        h, place = _push(h, codes[at + uint64(7)], table, words, place)
        g, place = _push(g, codes[at + uint64(6)], table, words, place)
        f, place = _push(f, codes[at + uint64(5)], table, words, place)
        e, place = _push(e, codes[at + uint64(4)], table, words, place)
        d, place = _push(d, codes[at + uint64(3)], table, words, place)
        c, place = _push(c, codes[at + uint64(2)], table, words, place)
        b, place = _push(b, codes[at + uint64(1)], table, words, place)
        a, place = _push(a, codes[at], table, words, place)
    while place < count:
        words[place] = uint32(a)
        a >>= uint64(32)
        place += uint64(1)
    states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7] = a, b, c, d, e, f, g, h
    for lane in range(LANES):
        for part in range(8):
            buffer[byte + part] = np.uint8(states[lane] >> uint64(8 * part))
        byte += 8
    for back in range(count):
        word = words[count - 1 - back]
        for part in range(4):
            buffer[byte + part] = np.uint8(word >> uint32(8 * part))
        byte += 4


@numba.njit(cache=True, nogil=True)
def get_segment(codes, steps, precision, count, buffer, byte, out, start, end):
    """The codes start..end-1 of a segment, whose room the caller has checked. Returns whether they end well."""
    words, states = np.zeros(count + 1, np.uint32), np.zeros(LANES, np.uint64)
    for lane in range(LANES):
        for part in range(8):
            states[lane] |= uint64(buffer[byte + part]) << uint64(8 * part)
        byte += 8
    for index in range(count):
        word = uint32(0)
        for part in range(4):
            word |= uint32(buffer[byte + part]) << uint32(8 * part)
        words[index] = word
        byte += 4
    a, b, c, d, e, f, g, h = states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7]
    place, more = uint64(0), uint64(count)
    while place < more and a < uint64(LOW):
        a = (a << uint64(32)) | uint64(words[place])
        place += uint64(1)
    mask, shift = (uint64(1) << uint64(precision)) - uint64(1), uint64(precision)
    at, even = uint64(start), uint64(start + (end - start) // LANES * LANES)
    while at < even:
        a, place = _pop(a, codes, steps, mask, shift, words, place, more, out, at)
        b, place = _pop(b, codes, steps, mask, shift, words, place, more, out, at + uint64(1))
        c, place = _pop(c, codes, steps, mask, shift, words, place, more, out, at + uint64(2))
        d, place = _pop(d, codes, steps, mask, shift, words, place, more, out, at + uint64(3))
        e, place = _pop(e, codes, steps, mask, shift, words, place, more, out, at + uint64(4))
        f, place = _pop(f, codes, steps, mask, shift, words, place, more, out, at + uint64(5))
        g, place = _pop(g, codes, steps, mask, shift, words, place, more, out, at + uint64(6))
        h, place = _pop(h, codes, steps, mask, shift, words, place, more, out, at + uint64(7))
        at += uint64(LANES)
    states[0], states[1], states[2], states[3], states[4], states[5], states[6], states[7] = a, b, c, d, e, f, g, h
    for lane in range(end - int64(even)):
        states[lane], place = _pop(states[lane], codes, steps, mask, shift, words, place, more, out, at + uint64(lane))
    well = place == more
    for lane in range(LANES):
        well &= states[lane] == uint64(LOW)
    return well
