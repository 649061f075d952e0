"""Natural compression: stochastic rounding of magnitudes to powers of two, as sign and exponent."""

from __future__ import annotations

import numba
import numpy as np
import torch
from numba import uint64
from torch import Tensor

from laconic.kernels.philox import word_pair
from laconic.kernels.threads import over_rows

MANTISSA = {torch.float64: 52, torch.float32: 23}
WIDTH = {torch.float64: 12, torch.float32: 9}


@numba.njit(inline="always")
def _round(pattern, word, mantissa, top):
    """Adds uniform bits below the exponent and drops the mantissa: carries with probability mantissa / 2**bits."""
    code = (uint64(pattern) + (word >> uint64(64 - mantissa))) >> uint64(mantissa)
    exponent = uint64(pattern) >> uint64(mantissa)
    if (exponent & top) == top:  # inf and NaN stay non-finite
        return exponent
    return code - uint64((code & top) == top)  # the largest finite binade never rounds up to infinity


@numba.njit(cache=True, nogil=True)
def _encode(low, high, patterns, mantissa, top, address, workers, out):
    d = patterns.shape[1]
    for r in range(low, high):
        for block in range((d + 1) // 2):
            first, second = word_pair(address, workers[r], block)
            out[r, 2 * block] = _round(patterns[r, 2 * block], first, mantissa, top)
            if 2 * block + 1 < d:
                out[r, 2 * block + 1] = _round(patterns[r, 2 * block + 1], second, mantissa, top)


def encode(v: Tensor, address: np.ndarray, workers: np.ndarray) -> Tensor:
    """Codes of v (rows, d), sign and exponent as int16 of shape (rows, d); coordinate j uses the worker's j-th word."""
    size, mantissa = v.element_size(), MANTISSA[v.dtype]
    out = torch.empty(v.shape, dtype=torch.int16)
    top = np.uint64((1 << (WIDTH[v.dtype] - 1)) - 1)
    patterns = v.contiguous().numpy().view(f"u{size}")
    over_rows(
        _encode, v.shape[0], 8 * v.numel(), patterns, mantissa, top, address, workers, out.numpy().view(np.uint16)
    )
    return out


def encode_reference(v: Tensor, words: np.ndarray) -> Tensor:
    """`encode` in NumPy from the words themselves, uint64 of shape (rows, d)."""
    mantissa, width = MANTISSA[v.dtype], WIDTH[v.dtype]
    patterns = v.numpy().view(f"u{v.element_size()}").astype(np.uint64)
    top = np.uint64((1 << (width - 1)) - 1)
    code = (patterns + (words >> np.uint64(64 - mantissa))) >> np.uint64(mantissa)
    code -= ((code & top) == top).astype(np.uint64)
    exponent = patterns >> np.uint64(mantissa)
    code = np.where((exponent & top) == top, exponent, code)
    return torch.from_numpy(code.astype(np.uint16).view(np.int16))


def decode(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """The values of codes: plus or minus powers of two, and zero."""
    unsigned = codes.numpy().view(np.uint16).astype(f"u{dtype.itemsize}")
    return torch.from_numpy((unsigned << unsigned.dtype.type(MANTISSA[dtype])).view(f"f{dtype.itemsize}"))
