"""Orthonormal discrete cosine transforms (DCT-II) of many short rows: products with a matrix in a fixed order."""

from __future__ import annotations

import functools
import math

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.kernels.threads import over_rows


@functools.lru_cache(maxsize=64)
def basis(n: int) -> np.ndarray:
    """The cosines, row k of frequency k: c_k cos(pi (2 i + 1) k / (2 n)), float64 of shape (n, n), orthonormal."""
    angles = (2 * np.arange(n) + 1) * np.arange(n)[:, None] % (4 * n)  # whole numbers: no large argument of a cosine
    matrix = np.cos(angles * (math.pi / (2 * n))) * math.sqrt(2.0 / n)
    matrix[0] = 1.0 / math.sqrt(n)
    return matrix


@numba.njit(cache=True, nogil=True)
def _multiply(low, high, values, matrix, out):
    """out[r] = sum over i of values[r, i] matrix[i], the terms added in the order of i."""
    n = values.shape[1]
    for r in range(low, high):
        for j in range(n):
            out[r, j] = 0.0
        for i in range(n):
            for j in range(n):
                out[r, j] += values[r, i] * matrix[i, j]


def _times(values: Tensor, matrix: np.ndarray) -> Tensor:
    flat = values.reshape(math.prod(values.shape[:-1]), values.shape[-1]).contiguous().numpy()
    out = np.empty_like(flat)
    over_rows(_multiply, len(flat), flat.size * flat.shape[1], flat, matrix, out)
    return torch.from_numpy(out).view(values.shape)


def forward(values: Tensor) -> Tensor:
    """The transform along the last axis, float64."""
    return _times(values, np.ascontiguousarray(basis(values.shape[-1]).T))


def inverse(values: Tensor) -> Tensor:
    """The inverse (and transpose) of `forward`."""
    return _times(values, basis(values.shape[-1]))
