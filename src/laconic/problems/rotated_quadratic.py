"""Quadratics in a random basis whose similarity is chosen: the f_i may be as unlike as one likes, and not convex."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.core import rows as per_row
from laconic.core.entry import Count, Interval, Source
from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles, Problem, Solution, single_threaded
from laconic.kernels.memory import empty
from laconic.kernels.threads import over_rows

MATRIX_BYTES = 2 << 30  # matrices of all workers beyond this are refused


@numba.njit(cache=True, nogil=True)
def _products(low, high, matrices, rows, v, out):
    """out[r] = matrices[rows[r]] v, each number added in order."""
    d = v.shape[1]
    for r in range(low, high):
        matrix, at = matrices[rows[r]], v[r if v.shape[0] > 1 else 0]
        for i in range(d):
            total = 0.0
            for j in range(d):
                total += matrix[i, j] * at[j]
            out[r, i] = total


class RotatedOracles(Oracles):
    """Oracles of a block, from a matrix and a vector per worker."""

    def __init__(self, data: Data, block: Block) -> None:
        super().__init__()
        self.block, self.shape, self.convex = block, (data.d,), data.convex
        self._d = data.d
        self._matrices = data.matrices[block.low : block.high]
        self._linear = data.linear[block.low : block.high]

    def terms(self) -> np.ndarray:
        return np.ones(self.block.size, dtype=np.int64)

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        points = x.expand(len(rows), self._d).contiguous()
        return per_row.dot(0.5 * self._products(x, x, rows) - self._linear[torch.from_numpy(rows)], points)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        return self._products(x, x, rows).sub_(self._linear[torch.from_numpy(rows)])

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        directions = v.reshape(-1, self._d).contiguous().numpy()
        out = empty((len(rows), self._d), torch.float64)
        work = len(rows) * self._d**2
        over_rows(_products, len(rows), work, self._matrices.numpy(), rows, directions, out.numpy())
        return out

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        i, j = torch.triu_indices(self._d, self._d)
        upper = self._matrices[torch.from_numpy(rows)][:, i, j]
        return torch.where(i == j, upper, upper * math.sqrt(2.0))

    def excess(self, x: Tensor, solution: Solution, rows: np.ndarray | None = None) -> Tensor:
        """f_i(x) - f_i(x*) - <grad f_i(x*), x - x*>, shape (rows,); its mean over all workers is f(x) - f*."""
        rows = self._rows(rows)
        away = (x - solution.x).expand(len(rows), self._d).contiguous()
        return 0.5 * per_row.dot(self._products(x, away, rows), away)


@dataclass(frozen=True, eq=False)
class Data:
    """H_i (n, d, d) and b_i (n, d) of all workers, the mean of the H_i and what each is less the mean."""

    matrices: Tensor
    linear: Tensor
    mean: Tensor
    away: Tensor
    convex: bool

    @property
    def d(self) -> int:
        """The number of coordinates."""
        return self.mean.shape[0]


@dataclass(frozen=True)
class RotatedQuadratic(Problem):
    """Quadratics f_i(x) = x' H_i x / 2 - b_i' x, H_i = Q diag(mu, ..., smooth) Q' + D_i, with geometric eigenvalues.

    Q is a random rotation; the D_i are random symmetric matrices with sum 0 and max ||D_i|| = similarity exactly, which
    worker 0's attains, so that delta and delta_server are the similarity asked for. Where similarity > mu some f_i are
    not convex, as a rule, and f is. b_i ~ N(0, I); x^0 = 0. All constants are exact, by eigenvalues.

    Parameters
    ----------
    d : the dimension.
    workers : n; of one worker alone, D = 0.
    mu, smooth : the least and largest eigenvalue of the mean matrix.
    similarity : delta.
    seed : of the draws.

    Examples
    --------
    >>> problem = RotatedQuadratic(d=6, workers=3, similarity=0.5)
    >>> round(problem.constants().delta_server.value, 12)
    0.5
    """

    d: Annotated[int, Count(1)] = 20
    workers: Annotated[int, Count(1)] = 10
    mu: Annotated[float, Interval(0.0, open="low")] = 0.01
    smooth: Annotated[float, Interval(0.0, open="low")] = 1.0
    similarity: Annotated[float, Interval(0.0)] = 0.2
    seed: Annotated[int, Count(0)] = 0

    name: ClassVar[str] = "rotated_quadratic"
    example: ClassVar[str] = "rotated_quadratic(d=20, workers=10, mu=0.01, similarity=0.2)"
    source: ClassVar[Source | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu > self.smooth:
            raise ValueError(f"RotatedQuadratic(mu={self.mu!r}) : mu must be at most smooth={self.smooth!r}")
        if 8 * self.workers * self.d**2 > MATRIX_BYTES:
            takes = f"{8e-9 * self.workers * self.d**2:.0f} GB"
            raise ValueError(f"RotatedQuadratic(d={self.d}) : {self.workers} workers' matrices take {takes}; take less")

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def oracles(self, block: Block, data_dir: Path | None = None) -> RotatedOracles:
        """The oracles of a block; needs no data."""
        return RotatedOracles(_data(self), block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """All constants, exact by eigenvalues."""
        return _constants(self)

    def smoothness_matrices(self, data_dir: Path | None = None) -> Tensor:
        """The H_i, with eigenvalues made positive."""
        return _positive(self)

    def solution(self, data_dir: Path | None = None) -> Solution:
        """The minimiser, by a solve with refinement; its gap is certified by the gradient."""
        return _solution(self)


@functools.lru_cache(maxsize=16)
@single_threaded
def _data(problem: RotatedQuadratic) -> Data:
    n, d = problem.workers, problem.d
    workers = Keys(problem.seed, 0, "problem/rotated", np.arange(n), n).normal(d * d + d)
    basis = Keys(problem.seed, 0, "problem/rotated/basis", np.zeros(1, dtype=np.int64), 1).normal(d * d).view(d, d)
    q, _ = torch.linalg.qr(basis)
    ends = math.log(problem.mu), math.log(problem.smooth)
    spectrum = torch.linspace(*ends, d, dtype=torch.float64).exp() if d > 1 else q.new_tensor([problem.smooth])
    mean = _symmetric((q * spectrum) @ q.T)
    drawn = _symmetric(workers[:, : d * d].view(n, d, d))
    away = drawn - drawn.mean(0)
    norms = _norms(away)
    if n > 1:
        first = int(norms.argmax())  # becomes worker 0
        order = [first, *(i for i in range(n) if i != first)]
        away = away[order] * (problem.similarity / float(norms[first]))
    else:
        away = torch.zeros_like(away)
    matrices = mean + away
    convex = bool(torch.linalg.eigvalsh(matrices).min() >= 0.0)
    return Data(matrices, workers[:, d * d :].contiguous(), mean, away, convex)


def _symmetric(matrices: Tensor) -> Tensor:
    return 0.5 * (matrices + matrices.transpose(-1, -2))


def _norms(matrices: Tensor) -> Tensor:
    """Spectral norms of symmetric matrices."""
    return torch.linalg.eigvalsh(matrices).abs().amax(-1)


@functools.lru_cache(maxsize=2)
@single_threaded
def _positive(problem: RotatedQuadratic) -> Tensor:
    values, vectors = torch.linalg.eigh(_data(problem).matrices)
    return _symmetric((vectors * values.abs()[:, None, :]) @ vectors.transpose(-1, -2))


@functools.lru_cache(maxsize=16)
@single_threaded
def _constants(problem: RotatedQuadratic) -> Constants:
    data, solution = _data(problem), _solution(problem)
    each, whole = torch.linalg.eigvalsh(data.matrices), torch.linalg.eigvalsh(data.mean)
    smoothness, away = each.abs().amax(1), _norms(data.away)
    top = lambda matrices: math.sqrt(max(0.0, float(torch.linalg.eigvalsh(_squares(matrices))[-1])))  # noqa: E731
    at_solution = problem.oracles(Block.whole(problem.n)).gradients(solution.x)
    values = {
        "L": float(whole[-1]),
        "L_max": float(smoothness.max()),
        "L_tilde": float(smoothness.square().mean().sqrt()),
        "L_plus": top(data.matrices),
        "L_pm": top(data.away),
        "mu": float(whole[0]),
        "mu_workers": float(each.min()),
        "delta": float(away.max()),
        "delta_server": float(away[0]),
        "delta_mean": top(data.away),
        "delta_first": float(_norms(data.matrices - data.matrices[0]).max()),
        "L_sample": float(smoothness.max()),
        "sigma_star": float(at_solution.square().sum(1).mean().sqrt()),
        "hessian_lipschitz": 0.0,
    }
    known = {name: Constant(value, how="eigenvalues") for name, value in values.items()}
    return Constants(L_workers=tuple(smoothness.tolist()), **known)


def _squares(matrices: Tensor) -> Tensor:
    return (matrices @ matrices).mean(0)


@functools.lru_cache(maxsize=16)
@single_threaded
def _solution(problem: RotatedQuadratic) -> Solution:
    data = _data(problem)
    right = per_row.mean(data.linear)
    everyone = problem.oracles(Block.whole(problem.n))
    best, least = torch.zeros_like(right), math.inf
    x = per_row.solve(data.mean, right)
    for _ in range(4):  # a solve and three refinements
        slope = per_row.mean(everyone.gradients(x))
        if per_row.square(slope) < least:
            best, least = x, per_row.square(slope)
        x = x - per_row.solve(data.mean, slope)
    return Solution(best, -0.5 * per_row.inner(right, best), least / (2.0 * problem.mu))
