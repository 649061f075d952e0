"""Algebra of one row per worker: a row's bits are the same whatever shares its block, on any number of threads."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from laconic.core.problem import single_threaded
from laconic.kernels import fold, memory
from laconic.kernels import svec as packed


def dot(a: Tensor, b: Tensor) -> Tensor:
    """<a_i, b_i> per row; a and b are (rows, *shape). Shape (rows,)."""
    return fold.dots(a.reshape(a.shape[0], math.prod(a.shape[1:])), b.reshape(b.shape[0], math.prod(b.shape[1:])))


def norm2(a: Tensor) -> Tensor:
    """||a_i||^2 per row, shape (rows,)."""
    return dot(a, a)


def mean(a: Tensor) -> Tensor:
    """The mean over rows, added in row order; a is (rows, *shape), the result (*shape)."""
    total = torch.zeros(a.shape[1:], dtype=a.dtype)
    if a.shape[0]:
        fold.fold_dense(a.reshape(a.shape[0], -1), 1.0 / a.shape[0], total.view(-1))
    return total


def mixed(old: Tensor, new: Tensor, weight: float) -> Tensor:
    """(1 - weight) old + weight new, as a fresh tensor, in one pass; `new` itself, bit for bit, for a weight of 1."""
    if isinstance(old, Tensor):
        return torch.lerp(old, new, weight, out=memory.empty(tuple(old.shape), old.dtype))
    return torch.lerp(old, new, weight)  # of several runs


def inner(a: Tensor, b: Tensor) -> float:
    """<a, b> of two vectors of the server, in the same fixed order."""
    return float(dot(a.reshape(1, -1), b.reshape(1, -1)))


def square(a: Tensor) -> float:
    """||a||^2 of one vector of the server."""
    return inner(a, a)


@single_threaded
def solve(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix^{-1} vector for a symmetric positive definite matrix (d, d), on one thread.

    Raises torch.linalg.LinAlgError where it is not positive definite.
    """
    factor = torch.linalg.cholesky(matrix)
    return torch.cholesky_solve(vector[:, None], factor)[:, 0]


def svec_to_matrix(svec: Tensor, d: int) -> Tensor:
    """The symmetric (d, d) matrix of an svec: its upper triangle by rows, off-diagonals times sqrt(2)."""
    return packed.matrix(svec, d)


def svec_products(svecs: Tensor, x: Tensor) -> Tensor:
    """H_i x per row, shape (rows, *shape), of the symmetric matrices with these svecs (rows, d (d + 1) / 2)."""
    return packed.products(svecs, x.reshape(-1)).view(len(svecs), *x.shape)
