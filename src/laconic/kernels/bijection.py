"""A bijection of 0..d-1 under a key: images and preimages of single positions, with no permutation of d made.

A generalised Feistel network (Black and Rogaway 2002) on pairs (left, right) of 0..a-1 and 0..b-1, the number
left * b + right, where a = ceil(sqrt d) and b = ceil(d / a). Rounds take turns in adding to one half, modulo its
side, a number that the other half looks up in the round's own table of random numbers. A result of d or more goes
through once more, until it is below d (there are fewer than a such); last, a random number is added modulo d.

That sum makes the image of each position exactly uniform. The d images together are not a uniform permutation: what
is random are 8 a numbers, not d. The format is in docs/wire.md.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import uint32, uint64

from laconic.kernels.philox import high_product
from laconic.kernels.threads import SPAN, over_rows, over_spans, span

ROUNDS = 8


def sides(d: int) -> tuple[int, int]:
    """The sides a >= b of the smallest rectangle of ceil(sqrt d) rows that has d places."""
    a = math.isqrt(d - 1) + 1
    return a, -(-d // a)


def count(d: int) -> int:
    """How many 64-bit words a bijection of 0..d-1 draws."""
    return ROUNDS * sides(d)[0] + 1


@numba.njit(cache=True, nogil=True)
def _tables(low, high, words, d, a, b, out, shifts):
    """out[row, t a + h]: what round t adds for the other half h, below a in even rounds and below b in odd ones."""
    for row in range(low, high):
        for t in range(ROUNDS):
            side = uint64(b if t & 1 else a)
            for place in range(t * a, (t + 1) * a):
                out[row, place] = high_product(words[row, place], side)
        shifts[row] = high_product(words[row, ROUNDS * a], uint64(d))


@numba.njit(cache=True, nogil=True)
def _add(half, other, table, side, count):
    """Adds to each half, modulo side, what the other one finds in the table: vector instructions but for a gather."""
    for j in range(uint64(count)):
        total = half[j] + table[uint64(other[j])]
        half[j] = min(uint32(total), uint32(total - side))  # what is below 0 wraps around and is large


@numba.njit(cache=True, nogil=True)
def _subtract(half, other, table, side, count):
    for j in range(uint64(count)):
        total = uint32(half[j] - table[uint64(other[j])])
        half[j] = min(total, uint32(total + side))  # as above


@numba.njit(cache=True, nogil=True)
def _split(numbers, b, left, right):
    """The pairs of these numbers."""
    for j in range(uint64(len(numbers))):
        upper = uint64(numbers[j]) // uint64(b)
        left[j] = upper
        right[j] = uint64(numbers[j]) - upper * uint64(b)


@numba.njit(cache=True, nogil=True)
def _forth(numbers, table, a, b, left, right):
    """The network's image of each number below a b, in place."""
    count = len(numbers)
    _split(numbers, b, left, right)
    for t in range(0, ROUNDS, 2):
        _add(left, right, table[t * a : (t + 1) * a], uint32(a), count)
        _add(right, left, table[(t + 1) * a : (t + 2) * a], uint32(b), count)
    for j in range(uint64(count)):
        numbers[j] = uint64(left[j]) * uint64(b) + uint64(right[j])


@numba.njit(cache=True, nogil=True)
def _back(numbers, table, a, b, left, right):
    """The number of which the network makes each, in place."""
    count = len(numbers)
    _split(numbers, b, left, right)
    for t in range(ROUNDS - 2, -1, -2):
        _subtract(right, left, table[(t + 1) * a : (t + 2) * a], uint32(b), count)
        _subtract(left, right, table[t * a : (t + 1) * a], uint32(a), count)
    for j in range(uint64(count)):
        numbers[j] = uint64(left[j]) * uint64(b) + uint64(right[j])


@numba.njit(cache=True, nogil=True)
def _images(low, high, d, a, b, drawn, shifts, positions, out):
    """out[row, j] = the image of positions[j], for pieces of rows."""
    left, right = np.empty(SPAN, np.uint32), np.empty(SPAN, np.uint32)
    for piece in range(low, high):
        row, begin, end = span(piece, len(positions))
        part = out[row, begin:end]
        part[:] = positions[begin:end]
        _forth(part, drawn[row], a, b, left, right)
        for j in range(len(part)):
            while part[j] >= d:
                _forth(part[j : j + 1], drawn[row], a, b, left, right)
            part[j] += shifts[row]
            part[j] -= d if part[j] >= d else 0


@numba.njit(cache=True, nogil=True)
def _preimages(low, high, d, a, b, drawn, shifts, images, out):
    """out[row, j] = the position whose image is images[row, j], for pieces of rows."""
    left, right = np.empty(SPAN, np.uint32), np.empty(SPAN, np.uint32)
    for piece in range(low, high):
        row, begin, end = span(piece, images.shape[1])
        part = out[row, begin:end]
        for j in range(len(part)):
            part[j] = images[row, begin + j] - shifts[row]
            part[j] += d if part[j] < 0 else 0
        _back(part, drawn[row], a, b, left, right)
        for j in range(len(part)):
            while part[j] >= d:
                _back(part[j : j + 1], drawn[row], a, b, left, right)


def _network(words: np.ndarray, d: int) -> tuple[int, int, np.ndarray, np.ndarray]:
    """The sides, each row's tables, and what each row adds last."""
    a, b = sides(d)
    drawn, shifts = np.empty((len(words), ROUNDS * a), dtype=np.uint32), np.empty(len(words), dtype=np.int64)
    over_rows(_tables, len(words), drawn.size, words, d, a, b, drawn, shifts)
    return a, b, drawn, shifts


def images(words: np.ndarray, d: int, positions: np.ndarray) -> np.ndarray:
    """The image of each position under each row's bijection, int64 of shape (rows, positions).

    `words` holds `count(d)` random words of each row, uint64.
    """
    out = np.empty((len(words), len(positions)), dtype=np.int64)
    over_spans(_images, *out.shape, d, *_network(words, d), positions, out)
    return out


def preimages(words: np.ndarray, d: int, images: np.ndarray) -> np.ndarray:
    """The position of each image (rows, count) under its row's bijection, int64 of the same shape."""
    out = np.empty(images.shape, dtype=np.int64)
    over_spans(_preimages, *out.shape, d, *_network(words, d), images, out)
    return out
