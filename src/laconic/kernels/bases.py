"""Symmetric matrices in other bases: V'HV per row, sums of squares (e_j + e_l)(e_j + e_l)', and products.

Matrices are svecs (`laconic.kernels.svec`), all numbers float64 on the CPU; a row's bits do not depend on its
neighbours. V_r are d x k, one per row.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.kernels import memory
from laconic.kernels.svec import ROOT
from laconic.kernels.threads import over_rows


@numba.njit(cache=True, nogil=True)
def _add(factor, vector, target):
    for c in range(len(target)):
        target[c] += factor * vector[c]


@numba.njit(cache=True, nogil=True)
def _inward(low, high, svecs, shift, vectors, out):
    d, k = vectors.shape[1:]
    image, inner = np.empty((d, k)), np.empty((k, k))
    for row in range(low, high):
        v, place = vectors[row], 0
        image[:] = 0.0
        inner[:] = 0.0
        for i in range(d):
            _add(svecs[row, place] - shift, v[i], image[i])
            for j in range(i + 1, d):
                entry = svecs[row, place + j - i] / ROOT
                if entry != 0.0:  # most are zero where data are sparse
                    _add(entry, v[j], image[i])
                    _add(entry, v[i], image[j])
            place += d - i
        for i in range(d):
            for a in range(k):
                _add(v[i, a], image[i, a:], inner[a, a:])
        place = 0
        for a in range(k):
            out[row, place] = inner[a, a]
            for b in range(a + 1, k):
                out[row, place + b - a] = ROOT * inner[a, b]
            place += k - a


@numba.njit(cache=True, nogil=True)
def _unpack(low, high, svecs, out):
    k = out.shape[1]
    for row in range(low, high):
        place = 0
        for a in range(k):
            out[row, a, a] = svecs[row, place]
            for b in range(a + 1, k):
                out[row, a, b] = out[row, b, a] = svecs[row, place + b - a] / ROOT
            place += k - a


@numba.njit(cache=True, nogil=True)
def _products(low, high, svecs, x, out):
    d = x.shape[1]
    for row in range(low, high):
        here, image, place = x[row], out[row], 0
        image[:] = 0.0
        for i in range(d):
            total = 0.0
            for j in range(i + 1, d):
                entry = svecs[row, place + j - i] / ROOT
                total += entry * here[j]
                image[j] += entry * here[i]
            image[i] += svecs[row, place] * here[i] + total
            place += d - i


@numba.njit(cache=True, nogil=True)
def _coordinates(low, high, vectors, x, out):
    for row in range(low, high):
        out[row] = 0.0
        for i in range(vectors.shape[1]):
            out[row] += x[row, i] * vectors[row, i]


@numba.njit(cache=True, nogil=True)
def _combinations(low, high, vectors, y, out):
    for row in range(low, high):
        for i in range(vectors.shape[1]):
            total = 0.0
            for c in range(vectors.shape[2]):
                total += vectors[row, i, c] * y[row, c]
            out[row, i] = total


@numba.njit(cache=True, nogil=True)
def _squares(low, high, svecs, d, out):
    for row in range(low, high):
        here, place = out[row], 0
        sums = np.zeros(d)
        for i in range(d):
            for j in range(i + 1, d):
                entry = svecs[row, place + j - i] / ROOT
                here[place + j - i] = entry
                sums[i] += entry
                sums[j] += entry
            place += d - i
        place = 0
        for i in range(d):
            here[place] = svecs[row, place] - sums[i]
            place += d - i


@numba.njit(cache=True, nogil=True)
def _of_squares(low, high, weights, d, out):
    for row in range(low, high):
        here, place = out[row], 0
        sums = np.zeros(d)
        for i in range(d):
            for j in range(i + 1, d):
                weight = weights[row, place + j - i]
                here[place + j - i] = ROOT * weight
                sums[i] += weight
                sums[j] += weight
            place += d - i
        place = 0
        for i in range(d):
            here[place] = weights[row, place] + sums[i]
            place += d - i


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.contiguous().numpy()


def inward(svecs: Tensor, shift: float, vectors: Tensor) -> Tensor:
    """The svecs (rows, k (k + 1) / 2) of V_r' (H_r - shift I) V_r; svecs is (rows, d (d + 1) / 2)."""
    rows, _, k = vectors.shape
    out = memory.empty((rows, k * (k + 1) // 2), torch.float64)
    over_rows(_inward, rows, svecs.numel() * 2 * k, _numpy(svecs), shift, _numpy(vectors), out.numpy())
    return out


def unpacked(svecs: Tensor, k: int) -> Tensor:
    """The symmetric matrices of svecs, (rows, k, k)."""
    out = memory.empty((len(svecs), k, k), torch.float64)
    over_rows(_unpack, len(svecs), out.numel(), _numpy(svecs), out.numpy())
    return out


def products(svecs: Tensor, x: Tensor) -> Tensor:
    """H_r x_r, (rows, d): each row's own vector, of x (rows, d)."""
    out = memory.empty(tuple(x.shape), torch.float64)
    over_rows(_products, len(x), svecs.numel(), _numpy(svecs), _numpy(x), out.numpy())
    return out


def coordinates(vectors: Tensor, x: Tensor) -> Tensor:
    """V_r' x_r, (rows, k)."""
    out = memory.empty((len(x), vectors.shape[2]), torch.float64)
    over_rows(_coordinates, len(x), vectors.numel(), _numpy(vectors), _numpy(x), out.numpy())
    return out


def combinations(vectors: Tensor, y: Tensor) -> Tensor:
    """V_r y_r, (rows, d)."""
    out = memory.empty((len(y), vectors.shape[1]), torch.float64)
    over_rows(_combinations, len(y), vectors.numel(), _numpy(vectors), _numpy(y), out.numpy())
    return out


def squares(svecs: Tensor, d: int) -> Tensor:
    """The c with H = sum_j c_jj e_j e_j' + sum_{j < l} c_jl (e_j + e_l)(e_j + e_l)' per row, in the order of svecs."""
    out = memory.empty(tuple(svecs.shape), torch.float64)
    over_rows(_squares, len(svecs), svecs.numel(), _numpy(svecs), d, out.numpy())
    return out


def of_squares(weights: Tensor, d: int) -> Tensor:
    """The svecs of what `squares` takes apart."""
    out = memory.empty(tuple(weights.shape), torch.float64)
    over_rows(_of_squares, len(weights), weights.numel(), _numpy(weights), d, out.numpy())
    return out
