"""Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011): random bits as a pure function of an address.

The address of a 64-bit word is (key, worker, step, position): the key is two 32-bit words, the counter is
(position // 2, worker, step's low word, step's high word), and each counter gives two 64-bit words.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import uint32, uint64

ROUNDS = 10
BUFFER = 1 << 12  # 32-bit words that kernels draw at a time


@numba.njit(inline="always")
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Ten rounds on a 128-bit counter with a 64-bit key; all words are uint32."""
    for _ in range(ROUNDS):
        p0 = uint64(0xD2511F53) * uint64(c0)
        p1 = uint64(0xCD9E8D57) * uint64(c2)
        c0, c1, c2, c3 = (
            uint32(p1 >> uint64(32)) ^ c1 ^ k0,
            uint32(p1 & uint64(0xFFFFFFFF)),
            uint32(p0 >> uint64(32)) ^ c3 ^ k1,
            uint32(p0 & uint64(0xFFFFFFFF)),
        )
        k0 = uint32(k0 + uint32(0x9E3779B9))
        k1 = uint32(k1 + uint32(0xBB67AE85))
    return c0, c1, c2, c3


@numba.njit(inline="always")
def word_pair(address, worker, block):
    """The words at positions 2 * block and 2 * block + 1 of a worker's stream. `address` is (k0, k1, step, step')."""
    a, b, c, d = philox4x32(uint32(block), uint32(worker), address[2], address[3], address[0], address[1])
    return uint64(a) | (uint64(b) << uint64(32)), uint64(c) | (uint64(d) << uint64(32))


@numba.njit(inline="always")
def word(address, worker, position):
    """The 64-bit word at a position of a worker's stream."""
    low, high = word_pair(address, worker, position >> 1)
    return high if position & 1 else low


@numba.njit(inline="always")
def high_product(a, b):
    """The upper 64 bits of the product of two uint64."""
    mask = uint64(0xFFFFFFFF)
    a0, a1, b0, b1 = a & mask, a >> uint64(32), b & mask, b >> uint64(32)
    middle = a1 * b0 + ((a0 * b0) >> uint64(32))
    return a1 * b1 + (middle >> uint64(32)) + ((a0 * b1 + (middle & mask)) >> uint64(32))


@numba.njit(inline="always")
def below(address, worker, position, bound):
    """An integer in [0, bound): the upper half of word * bound, uniform to within bound / 2**64."""
    return high_product(word(address, worker, position), uint64(bound))


@numba.njit(cache=True, nogil=True)
def halves(address, worker, block, out):
    """The 32-bit words of the counters block, block + 1, ..., four each: the 64-bit words' lower halves come first.

    out is uint32 of a length that four divides. Written so that compilers make vector instructions of it.
    """
    for j in range(len(out) // 4):
        a, b, c, d = philox4x32(uint32(block + j), uint32(worker), address[2], address[3], address[0], address[1])
        out[4 * j], out[4 * j + 1], out[4 * j + 2], out[4 * j + 3] = a, b, c, d


@numba.njit(cache=True, nogil=True)
def fill(low, high, address, workers, out):
    """out[row, position] = word(address, workers[row], position)."""
    count = out.shape[1]
    buffer = np.empty(BUFFER, np.uint32)
    words = buffer.view(np.uint64)
    for row in range(low, high):
        for begin in range(0, count, BUFFER // 2):
            size = min(BUFFER // 2, count - begin)
            halves(address, workers[row], begin // 2, buffer[: (size + 1) // 2 * 4])
            out[row, begin : begin + size] = words[:size]


@numba.njit(cache=True, nogil=True)
def permutations(low, high, address, workers, out):
    """out[row] = a uniform permutation of 0..d-1 (Fisher and Yates, from the top down)."""
    d = out.shape[1]
    for row in range(low, high):
        for j in range(d):
            out[row, j] = j
        for j in range(d - 1, 0, -1):
            other = np.int64(below(address, workers[row], d - 1 - j, j + 1))
            out[row, j], out[row, other] = out[row, other], out[row, j]


@numba.njit(cache=True, nogil=True)
def subsets(low, high, address, workers, d, out):
    """out[row] = a uniform k-subset of 0..d-1, sorted (Floyd's algorithm: k draws, no permutation of d)."""
    k = out.shape[1]
    taken = np.zeros(d, np.bool_)
    for row in range(low, high):
        for step in range(k):
            j = d - k + step
            candidate = np.int64(below(address, workers[row], step, j + 1))
            chosen = j if taken[candidate] else candidate
            taken[chosen] = True
            out[row, step] = chosen
        out[row].sort()
        for step in range(k):
            taken[out[row, step]] = False
