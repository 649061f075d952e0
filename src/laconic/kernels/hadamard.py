"""The fast Walsh-Hadamard transform of every row."""

from __future__ import annotations

import numba
import torch
from torch import Tensor

from laconic.kernels.threads import over_rows

BLOCK = 1 << 12  # coordinates whose stages are done together, while they are in the nearest cache


@numba.njit(inline="always")
def _stages(row, begin, end, half):
    """The stages from `half` on of the coordinates begin..end-1, a power of two of them."""
    while 2 * half <= end - begin:
        for start in range(begin, end, 2 * half):
            for j in range(start, start + half):
                a, b = row[j], row[j + half]
                row[j], row[j + half] = a + b, a - b
        half *= 2


@numba.njit(cache=True, nogil=True)
def _transform(low, high, values):
    d = values.shape[1]
    block = min(BLOCK, d)
    for r in range(low, high):
        for begin in range(0, d, block):
            _stages(values[r], begin, begin + block, 1)
        _stages(values[r], 0, d, block)


def transform(values: Tensor) -> Tensor:
    """H values[r] for every row, in place; values is float64 of shape (rows, d) with d a power of two.

    H_jk is plus or minus one by the parity of the bits that j and k share, as in scipy.linalg.hadamard; H is symmetric
    and H H = d I. Sums are taken in one order, whatever shares the batch.
    """
    rows, d = values.shape
    if d & (d - 1) or values.dtype != torch.float64:
        raise ValueError(f"a Walsh-Hadamard transform of {d} values of {values.dtype}: it takes 2^m values of float64")
    over_rows(_transform, rows, values.numel(), values.numpy())
    return values
