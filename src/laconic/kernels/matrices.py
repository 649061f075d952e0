"""Products of each row's own matrix with few coordinates: some entries of M v, and M s for a sparse s."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.threads import over_rows


@numba.njit(cache=True, nogil=True)
def _entries(low, high, matrices, which, v, positions, offsets, out):
    for row in range(low, high):
        matrix, here = matrices[which[row]], v[row]
        for place in range(offsets[row], offsets[row + 1]):
            line, total = matrix[positions[place]], 0.0
            for j in range(len(here)):
                total += line[j] * here[j]
            out[place] = total


def entries(matrices: Tensor, which: np.ndarray, v: Tensor, positions: Tensor, offsets: np.ndarray) -> Tensor:
    """The entries of matrices[which[r]] v[r] at row r's positions, offsets[r] to offsets[r + 1] of them; float64.

    matrices is (m, d, d), v (rows, d), both float64. Terms are added in order.
    """
    out = memory.empty((len(positions),), torch.float64)
    arguments = matrices.numpy(), which, v.contiguous().numpy(), positions.numpy(), offsets, out.numpy()
    over_rows(_entries, v.shape[0], len(positions) * v.shape[1], *arguments)
    return out


@numba.njit(cache=True, nogil=True)
def _images(low, high, matrices, which, values, positions, offsets, out):
    for row in range(low, high):
        matrix, there = matrices[which[row]], out[row]
        there[:] = 0.0
        for place in range(offsets[row], offsets[row + 1]):
            line, value = matrix[positions[place]], values[place]
            for j in range(len(there)):
                there[j] += value * line[j]


def images(matrices: Tensor, which: np.ndarray, values: Tensor, positions: Tensor, offsets: np.ndarray) -> Tensor:
    """matrices[which[r]] s_r (rows, d) for symmetric matrices and the sparse s_r of values at positions; float64.

    Columns are added in the order of the positions.
    """
    out = memory.empty((len(which), matrices.shape[1]), torch.float64)
    arguments = matrices.numpy(), which, values.numpy(), positions.numpy(), offsets, out.numpy()
    over_rows(_images, len(which), len(positions) * matrices.shape[1], *arguments)
    return out
