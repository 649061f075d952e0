"""Symmetric matrices as svecs: the upper triangle by rows, off-diagonals times sqrt(2). Unpacking, and products."""

from __future__ import annotations

import math

import numba
import torch
from torch import Tensor

from laconic.kernels.threads import over_rows

ROOT = math.sqrt(2.0)


@numba.njit(cache=True, nogil=True)
def _unpack(svec, out):
    d, k = out.shape[0], 0
    for i in range(d):
        out[i, i] = svec[k]
        for j in range(i + 1, d):
            out[i, j] = out[j, i] = svec[k + j - i] / ROOT
        k += d - i


@numba.njit(cache=True, nogil=True)
def _products(low, high, svecs, x, out):
    """Row i of a triangle serves coordinate i as a dot product and those after it as a multiple of x_i."""
    d = len(x)
    for r in range(low, high):
        row, image = svecs[r], out[r]
        image[:] = 0.0
        k = 0
        for i in range(d):
            total, here = 0.0, x[i] / ROOT
            for j in range(i + 1, d):
                entry = row[k + j - i]
                total += entry * x[j]
                image[j] += entry * here
            image[i] += row[k] * x[i] + total / ROOT
            k += d - i


def matrix(svec: Tensor, d: int) -> Tensor:
    """The symmetric (d, d) matrix of a float64 svec on the CPU, a fresh tensor."""
    out = torch.empty(d, d, dtype=svec.dtype)
    _unpack(svec.contiguous().numpy(), out.numpy())
    return out


def products(svecs: Tensor, x: Tensor) -> Tensor:
    """H_r x per row, of float64 svecs (rows, d (d + 1) / 2) on the CPU; a row's bits do not depend on its neighbours.

    x is (d,), the result (rows, d).
    """
    out = torch.empty((len(svecs), len(x)), dtype=svecs.dtype)
    arguments = (svecs.contiguous().numpy(), x.contiguous().numpy(), out.numpy())
    over_rows(_products, len(svecs), svecs.numel(), *arguments)
    return out
