"""Smoothness-aware sparsification for full smoothness matrices, one per worker: what DCGD+, DIANA+ and ADIANA+ send."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.smoothness import SmoothSparsification, optimal_sampling
from laconic.core.compressor import Compressor, Decoded, Dense, MatrixUnbiased, Unbiased
from laconic.core.entry import Amount, Source, amount
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.core.problem import single_threaded
from laconic.core.theory import Setting
from laconic.kernels import fold, masks, matrices
from laconic.wire.coding import Bits

FLOOR = 1e-8  # of an eigenvalue, relative to the largest: roots then have a condition of at most 1e4


@dataclass(frozen=True, eq=False)
class Roots:
    """L_i^(1/2) and L_i^(-1/2) of n workers and, as number n, of the mean of the L_i, for the server's own messages.

    `least` are the least eigenvalues of the L_i, `diagonals` their diagonals, float64 of shape (n + 1, d).
    """

    roots: Tensor  # (n + 1, d, d)
    inverses: Tensor  # (n + 1, d, d)
    diagonals: Tensor
    least: Tensor  # (n + 1,)

    @property
    def d(self) -> int:
        """The number of coordinates."""
        return self.diagonals.shape[1]

    def which(self, workers: np.ndarray) -> np.ndarray:
        """The number of each worker's matrix; the server is none of the n."""
        return np.minimum(workers, len(self.least) - 1)

    def norm2(self, v: Tensor, workers: np.ndarray) -> Tensor:
        """<v_i, L_i^-1 v_i> per row of v (rows, *shape)."""
        flat = v.reshape(v.shape[0], self.d).to(torch.float64)
        rows, positions = flat.shape[0], torch.arange(self.d).repeat(flat.shape[0])
        offsets = np.arange(rows + 1) * self.d
        half = matrices.entries(self.inverses, self.which(workers), flat, positions, offsets).view(rows, self.d)
        return fold.dots(half, half)


@functools.lru_cache(maxsize=2)  # by the identity of the tensor, which problems keep
@single_threaded
def roots_of(smoothness: Tensor) -> Roots:
    """The roots of symmetric matrices (n, d, d), their eigenvalues raised to FLOOR of the largest."""
    n, d = smoothness.shape[:2]
    roots, inverses = torch.empty(n + 1, d, d, dtype=torch.float64), torch.empty(n + 1, d, d, dtype=torch.float64)
    diagonals, least = torch.empty(n + 1, d, dtype=torch.float64), torch.empty(n + 1, dtype=torch.float64)
    for i in range(n + 1):
        values, vectors = torch.linalg.eigh(smoothness[i] if i < n else smoothness.mean(0))
        top = float(values[-1])
        values = values.clamp(min=FLOOR * top) if top > 0.0 else torch.ones_like(values)
        roots[i] = (vectors * values.sqrt()) @ vectors.T
        inverses[i] = (vectors / values.sqrt()) @ vectors.T
        diagonals[i], least[i] = (vectors * vectors * values).sum(1), values[0]
    return Roots(roots, inverses, diagonals, least)


@dataclass(frozen=True)
class MatrixSmoothSparsification(Compressor):
    """Worker i sends s = C_i(L_i^(-1/2) x), and what arrives is L_i^(1/2) s, with f_i's smoothness matrix L_i.

    C_i keeps coordinate j with probability p_j = L_i[jj] / (L_i[jj] + rho_i), by a coin of its own, and divides it by
    p_j; rho_i is such that k are kept on average. So gd(direct(matrix_smooth(k))) is DCGD+, gd(diana(...)) DIANA+ and
    adiana(...) ADIANA+. The matrices come from the problem when a method is settled. As the paper does, both ends are
    taken to know them, as they know L: they are not in the ledger. Where a problem has none, L_i is a multiple of the
    identity, and this is `smooth_sparsification(k)`.

    Claim: unbiased, with E||Q_i(x) - x||^2 <= rho_i <x, L_i^-1 x>, where rho_i is the expected smoothness, the largest
    eigenvalue of Ptilde_i o L_i, and with max_j (1 / p_j - 1) in the norm of L_i^-1 itself. In the plain norm omega =
    max_i rho_i / lambda_min(L_i), which is large: what knows of matrices (direct, diana, adiana) has rho = max_i rho_i
    in place of omega L_max. Independent over workers. A message of the server uses the mean of the L_i.

    Eigenvalues below 1e-8 of the largest are raised to it: larger matrices are smoothness matrices as well, and
    singular ones need no pseudo-inverse. Memory: 2 (n + 1) d^2 numbers.

    Parameters
    ----------
    k : how many coordinates are kept on average, a count or a fraction of d.

    >>> str(MatrixSmoothSparsification(k=0.1))
    'matrix_smooth_sparsification(k=0.1)'
    """

    k: Annotated[int | float, Amount()]
    roots: Roots | None = field(default=None, init=False, compare=False, repr=False)

    name = "matrix_smooth_sparsification"
    aliases = ("matrix_smooth",)
    example = "matrix_smooth_sparsification(k=0.1)"
    layout = "the values of full width that the mask keeps, in index order; the mask follows from the seed"
    source = Source(
        "Safaryan, Hanzely, Richtarik",
        2021,
        "Smoothness matrices beat smoothness constants: better communication compression techniques for distributed "
        "optimization",
        "2102.07245",
        "DCGD+, DIANA+ and ADIANA+",
    )

    @property
    def equal(self) -> SmoothSparsification:
        """What this is where all matrices are multiples of the identity."""
        return SmoothSparsification(self.k)

    def informed(self, setting: Setting) -> MatrixSmoothSparsification:
        known = setting.matrices() if setting.matrices is not None else None
        return self if known is None else self.knowing(known)

    def knowing(self, smoothness: Tensor) -> MatrixSmoothSparsification:
        """The same compressor for smoothness matrices (n, d, d) of the workers."""
        other = type(self)(self.k)
        object.__setattr__(other, "roots", roots_of(smoothness))
        return other

    def claim(self, d: int, n: int) -> Unbiased:
        if self.roots is None:
            return self.equal.claim(d, n)
        roots, (p, rho) = self._fitting(d), self._sampling(d)
        expected, own = rho[:-1], (1.0 / p[:-1] - 1.0).amax(1)
        omega = float((expected / roots.least[:-1]).max())
        return MatrixUnbiased(omega, float(expected.max()), float(own.max()), roots.norm2)

    def share(self, d: int, n: int) -> float:
        return amount(self.k, d) / d

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        if self.roots is None:
            return self.equal.schema(shape, dtype, keys)
        return (Slot(Bits(8 * dtype.itemsize), dtype, self._mask(math.prod(shape), keys).sum(1).numpy()),)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        if self.roots is None:
            return self.equal.codes(v, keys)
        flat = v.reshape(v.shape[0], math.prod(v.shape[1:])).to(torch.float64)
        roots, which = self._fitting(flat.shape[1]), self.roots.which(keys.workers)
        positions, offsets = _kept(self._mask(flat.shape[1], keys))
        values = matrices.entries(roots.inverses, which, flat, positions, offsets)
        row = torch.from_numpy(np.repeat(which, np.diff(offsets)))
        return ((values / self._sampling(flat.shape[1])[0][row, positions]).to(v.dtype),)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        if self.roots is None:
            return self.equal.decode(message, shape, dtype, keys)
        roots, which = self._fitting(math.prod(shape)), self.roots.which(keys.workers)
        positions, offsets = _kept(self._mask(roots.d, keys))
        values = matrices.images(roots.roots, which, message.codes[0].to(torch.float64), positions, offsets)
        return Dense(values.to(dtype).view(message.rows, *shape))

    def _fitting(self, d: int) -> Roots:
        """The roots. Raises ValueError where they are for another number of coordinates."""
        assert self.roots is not None
        if self.roots.d != d:
            raise ValueError(
                f"{self} : the problem's smoothness matrices are for {self.roots.d} coordinates, and this is a vector "
                f"of {d}; use smooth_sparsification for parts or other vectors"
            )
        return self.roots

    def _sampling(self, d: int) -> tuple[Tensor, Tensor]:
        """p (n + 1, d) and rho (n + 1,)."""
        return _sampled(self._fitting(d), amount(self.k, d))

    def _mask(self, d: int, keys: Keys) -> Tensor:
        roots, (p, _) = self._fitting(d), self._sampling(d)
        return keys.uniform(d) < p[torch.from_numpy(roots.which(keys.workers))]


@functools.lru_cache(maxsize=16)
def _sampled(roots: Roots, count: int) -> tuple[Tensor, Tensor]:
    best = [optimal_sampling(tuple(diagonal), count) for diagonal in roots.diagonals.tolist()]
    probabilities, rhos = zip(*best, strict=True)
    return torch.tensor(probabilities, dtype=torch.float64), torch.tensor(rhos, dtype=torch.float64)


def _kept(mask: Tensor) -> tuple[Tensor, np.ndarray]:
    """The coordinates that each row keeps, row after row, and where each row's begin and end."""
    positions, numbers = masks.positions(mask)
    offsets = np.zeros(mask.shape[0] + 1, dtype=np.int64)
    np.cumsum(numbers.numpy(), out=offsets[1:])
    return positions, offsets
