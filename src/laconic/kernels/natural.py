"""Natural compression: stochastic rounding of magnitudes to powers of two, as sign and exponent."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.philox import BUFFER, halves
from laconic.kernels.threads import over_spans, span

MANTISSA = {torch.float64: 52, torch.float32: 23}
WIDTH = {torch.float64: 12, torch.float32: 9}


@numba.njit(cache=True, nogil=True)
def _encode(low, high, patterns, mantissa, top, address, workers, out):
    """Adds random bits below the exponent and drops the mantissa: it carries with probability mantissa / 2^bits.

    Coordinate j uses the worker's j-th word of the width of a number.
    """
    buffer = np.empty(BUFFER, np.uint32)
    words = buffer.view(patterns.dtype)
    shift = patterns.dtype.type(8 * patterns.itemsize - mantissa)
    for piece in range(low, high):
        row, begin, end = span(piece, patterns.shape[1])
        for start in range(begin, end, len(words)):
            size = min(len(words), end - start)
            used = (size * patterns.itemsize + 15) // 16 * 4
            halves(address, workers[row], start * patterns.itemsize // 16, buffer[:used])
            here, there = patterns[row, start : start + size], out[row, start : start + size]
            for j in range(size):
                exponent = here[j] >> mantissa
                code = (here[j] + (words[j] >> shift)) >> mantissa
                over = (code & top) == top  # the largest finite binade never rounds up to infinity,
                there[j] = exponent if (exponent & top) == top else code - over  # and what is not finite stays so


def encode(v: Tensor, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """Codes of v (rows, d), sign and exponent as int16 of shape (rows, d), of float64 or float32.

    Coordinate j of float64 uses the worker's j-th 64-bit word, of float32 its j-th half of one, lower halves first.
    """
    patterns = v.contiguous().numpy().view(f"u{v.element_size()}")
    number = patterns.dtype.type
    out = memory.empty(tuple(v.shape), torch.int16)
    constants = number(MANTISSA[v.dtype]), number((1 << (WIDTH[v.dtype] - 1)) - 1)
    over_spans(_encode, *v.shape, patterns, *constants, address, workers, out.numpy().view(np.uint16))
    return out


def encode_reference(v: Tensor, words: np.ndarray) -> Tensor:
    """`encode` in NumPy from the words themselves, uint64 for float64 and uint32 for float32, of shape (rows, d)."""
    mantissa, width, size = MANTISSA[v.dtype], WIDTH[v.dtype], v.element_size()
    patterns = v.numpy().view(f"u{size}").astype(np.uint64)
    top = np.uint64((1 << (width - 1)) - 1)
    code = (patterns + (words.astype(np.uint64) >> np.uint64(8 * size - mantissa))) >> np.uint64(mantissa)
    code -= ((code & top) == top).astype(np.uint64)
    exponent = patterns >> np.uint64(mantissa)
    code = np.where((exponent & top) == top, exponent, code)
    return torch.from_numpy(code.astype(np.uint16).view(np.int16))


@numba.njit(cache=True, nogil=True)
def _decode(low, high, codes, mantissa, out):
    for piece in range(low, high):
        row, begin, end = span(piece, codes.shape[1])
        here, there = codes[row, begin:end], out[row, begin:end]
        for j in range(end - begin):
            there[j] = out.dtype.type(here[j]) << mantissa


def decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of codes: plus or minus powers of two, and zero."""
    out = memory.empty(tuple(codes.shape), dtype)
    patterns = out.view(1, -1).numpy().view(f"u{dtype.itemsize}")
    mantissa = patterns.dtype.type(MANTISSA[dtype])
    over_spans(_decode, *patterns.shape, codes.reshape(1, -1).numpy().view(np.uint16), mantissa, patterns)
    return out
