"""The quadratics of the PermK and DASHA papers: scaled tridiagonal matrices, a dial for how unlike the workers are."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numba
import numpy as np
import torch
from scipy.linalg import solveh_banded
from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles, Problem, Solution, single_threaded
from laconic.kernels.memory import empty
from laconic.kernels.threads import over_rows

HESSIAN_BYTES = 8 << 30  # Hessians of all workers beyond this are refused


@numba.njit(cache=True, nogil=True)
def _gradients(low, high, scales, linear, shift, x, out):
    """out[r] = scales[r] T x + shift x - linear[r] e_1, T = tridiag(-1, 2, -1) / 4."""
    d = x.shape[1]
    for r in range(low, high):
        at = x[r if x.shape[0] > 1 else 0]
        scale = 0.25 * scales[r]
        for j in range(1, d - 1):
            out[r, j] = scale * (2.0 * at[j] - at[j - 1] - at[j + 1]) + shift * at[j]
        last = d - 1
        if d > 1:
            out[r, last] = scale * (2.0 * at[last] - at[last - 1]) + shift * at[last]
        out[r, 0] = scale * (2.0 * at[0] - (at[1] if d > 1 else 0.0)) + shift * at[0] - linear[r]


@numba.njit(cache=True, nogil=True)
def _forms(low, high, x, energy, square):
    """energy[p] = x' T x as a sum of squares of differences, square[p] = ||x||^2, for the points p."""
    d = x.shape[1]
    for p in range(low, high):
        differences, total = x[p, 0] ** 2 + x[p, d - 1] ** 2, 0.0
        for j in range(d):
            total += x[p, j] ** 2
            if j > 0:
                differences += (x[p, j] - x[p, j - 1]) ** 2
        energy[p], square[p] = 0.25 * differences, total


@dataclass(frozen=True, eq=False)
class Draws:
    """A_i = scales[i] T + shift I and b_i = linear[i] e_1 for all workers; low and high are T's extreme eigenvalues."""

    scales: np.ndarray
    linear: np.ndarray
    shift: float
    low: float
    high: float

    @property
    def mean(self) -> float:
        """The mean of the scales."""
        return math.fsum(self.scales) / len(self.scales)

    def workers_ends(self) -> np.ndarray:
        """The eigenvalues of A_i at the two ends of T's spectrum, (n, 2); all others lie between them."""
        return self.scales[:, None] * np.array([self.low, self.high]) + self.shift

    def mean_ends(self) -> tuple[float, float]:
        """The least and largest eigenvalue of the mean matrix."""
        first, second = self.mean * self.low + self.shift, self.mean * self.high + self.shift
        return min(first, second), max(first, second)


class QuadraticOracles(Oracles):
    """Oracles of a block, from two numbers per worker: no matrix is stored."""

    def __init__(self, d: int, draws: Draws, block: Block) -> None:
        super().__init__()
        self.block, self.shape = block, (d,)
        self.convex = bool(draws.workers_ends().min() >= 0.0)
        self._scales, self._linear = draws.scales[block.low : block.high], draws.linear[block.low : block.high]
        self._shift = draws.shift

    def start(self) -> Tensor:
        """sqrt(d) e_1."""
        x = torch.zeros(self.d, dtype=torch.float64)
        x[0] = math.sqrt(self.d)
        return x

    def terms(self) -> np.ndarray:
        return np.ones(self.block.size, dtype=np.int64)

    def _forms(self, x: np.ndarray, rows: np.ndarray) -> np.ndarray:
        energy, square = np.empty(len(x)), np.empty(len(x))
        over_rows(_forms, len(x), x.size, x, energy, square)
        return 0.5 * (self._scales[rows] * energy + self._shift * square)

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        points = x.reshape(-1, self.d).contiguous().numpy()
        return torch.from_numpy(self._forms(points, rows) - self._linear[rows] * points[:, 0])

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        points = x.reshape(-1, self.d).contiguous().numpy()
        out = empty((len(rows), self.d), torch.float64)
        arguments = (self._scales[rows], self._linear[rows], self._shift, points, out.numpy())
        over_rows(_gradients, len(rows), out.numel(), *arguments)
        return out

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        d = self.d
        size = d * (d + 1) // 2
        if 8 * size * len(rows) > HESSIAN_BYTES:
            takes = f"{8e-9 * size * len(rows):.0f} GB"
            raise ValueError(f"quadratic(d={d}) : the Hessians of {len(rows)} workers take {takes}; take a smaller d")
        diagonal = np.concatenate([[0], np.cumsum(np.arange(d, 1, -1))])
        out = torch.zeros((len(rows), size), dtype=torch.float64)
        scales = torch.from_numpy(self._scales[rows])[:, None]
        out[:, diagonal] = 0.5 * scales + self._shift
        out[:, diagonal[:-1] + 1] = -0.25 * math.sqrt(2.0) * scales
        return out

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        directions = v.reshape(-1, self.d).contiguous().numpy()
        out = empty((len(rows), self.d), torch.float64)
        nothing = np.zeros(len(rows))
        over_rows(_gradients, len(rows), out.numel(), self._scales[rows], nothing, self._shift, directions, out.numpy())
        return out

    def excess(self, x: Tensor, solution: Solution, rows: np.ndarray | None = None) -> Tensor:
        """f_i(x) - f_i(x*) - <grad f_i(x*), x - x*>, shape (rows,); its mean over all workers is f(x) - f*."""
        away = (x - solution.x).reshape(-1, self.d).contiguous().numpy()
        return torch.from_numpy(self._forms(away, self._rows(rows)))


@dataclass(frozen=True)
class Quadratic(Problem):
    """Quadratics f_i(x) = x' A_i x / 2 - b_i' x with tridiagonal A_i.

    For every worker xi, xi' ~ N(0, 1) in this order; nu_i = 1 + noise xi, A_i = nu_i T + c I with
    T = tridiag(-1, 2, -1) / 4, and b_i = (nu_i / 4) (-1 + noise xi') e_1. The same c for all makes the mean matrix's
    least eigenvalue `mu`. x^0 = sqrt(d) e_1. With noise 0 all are equal; with noise 0.8 many f_i are not convex.

    All constants are exact, from the eigenvalues sin^2(j pi / (2 (d + 1))) of T.

    Parameters
    ----------
    d : the dimension.
    workers : n.
    noise : how unlike the workers are; the papers take 0, 0.05, 0.1, 0.2 and 0.8.
    mu : the least eigenvalue of the mean matrix.
    seed : of the draws.

    Notes
    -----
    The papers' float32 is float64 here, and the numbers come from our own generator, so that each worker's can be
    drawn anywhere.

    Examples
    --------
    >>> problem = Quadratic(d=20, workers=3, noise=0.0)
    >>> problem.constants().L_pm.value
    0.0
    """

    d: Annotated[int, Count(1)] = 1000
    workers: Annotated[int, Count(1)] = 10
    noise: Annotated[float, Interval(0.0)] = 0.8
    mu: Annotated[float, Interval(0.0, open="low")] = 1e-6
    seed: Annotated[int, Count(0)] = 0

    name: ClassVar[str] = "quadratic"
    example: ClassVar[str] = "quadratic(d=1000, workers=10, noise=0.8)"
    source: ClassVar[Source | None] = Source(
        authors="Rafał Szlendak, Alexander Tyurin, Peter Richtárik",
        year=2021,
        arxiv="2110.03300",
        where="quadratic experiments",
        title="Permutation Compressors for Provably Faster Distributed Nonconvex Optimization",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def oracles(self, block: Block, data_dir: Path | None = None) -> QuadraticOracles:
        """The oracles of a block; needs no data."""
        return QuadraticOracles(self.d, _draws(self), block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """All constants, exact by closed forms."""
        return _constants(self)

    def smoothness_matrices(self, data_dir: Path | None = None) -> Tensor:
        """The A_i, or |A_i|, with eigenvalues made positive, where f_i is not convex."""
        return _matrices(self)

    def solution(self, data_dir: Path | None = None) -> Solution:
        """The minimiser, by a tridiagonal solve with refinement; its gap is certified by the gradient."""
        return _solution(self)


@functools.lru_cache(maxsize=8)
def _draws(problem: Quadratic) -> Draws:
    n, angle = problem.workers, math.pi / (2 * (problem.d + 1))
    xi = Keys(problem.seed, 0, "problem/quadratic", np.arange(n), n).normal(2).numpy()
    scales = 1.0 + problem.noise * xi[:, 0]
    linear = 0.25 * scales * (-1.0 + problem.noise * xi[:, 1])
    low, high = math.sin(angle) ** 2, math.sin(problem.d * angle) ** 2
    mean = math.fsum(scales) / n
    return Draws(scales, linear, problem.mu - min(mean * low, mean * high), low, high)


@functools.lru_cache(maxsize=2)
@single_threaded
def _matrices(problem: Quadratic) -> Tensor:
    draws, d = _draws(problem), problem.d
    matrices = torch.empty(problem.workers, d, d, dtype=torch.float64)
    tridiagonal = torch.eye(d, dtype=torch.float64).mul_(0.5)
    tridiagonal.diagonal(1).fill_(-0.25)
    tridiagonal.diagonal(-1).fill_(-0.25)
    for matrix, scale, ends in zip(matrices, draws.scales, draws.workers_ends(), strict=True):
        torch.mul(tridiagonal, scale, out=matrix).diagonal().add_(draws.shift)
        if ends.min() < 0.0:
            values, vectors = torch.linalg.eigh(matrix)
            matrix.copy_((vectors * values.abs()) @ vectors.T)
    return matrices


@functools.lru_cache(maxsize=8)
def _constants(problem: Quadratic) -> Constants:
    draws = _draws(problem)
    n, worker_ends = problem.workers, draws.workers_ends()
    away = np.abs(draws.scales - draws.mean) * draws.high
    smoothness = np.abs(worker_ends).max(axis=1)
    spread = math.sqrt(math.fsum(away**2) / n)
    at_solution = _solution_gradients(problem)
    exact = {
        "L": draws.mean_ends()[1],
        "L_max": float(smoothness.max()),
        "L_tilde": math.sqrt(math.fsum(smoothness**2) / n),
        "L_plus": math.sqrt(max(math.fsum(end**2) / n for end in worker_ends.T)),
        "L_pm": spread,
        "mu": problem.mu,
        "mu_workers": float(worker_ends.min()),
        "delta": float(away.max()),
        "delta_server": float(away[0]),
        "delta_mean": spread,
        "delta_first": float(np.abs(draws.scales - draws.scales[0]).max()) * draws.high,
        "L_sample": float(smoothness.max()),
        "sigma_star": math.sqrt(math.fsum(at_solution**2) / n),
        "hessian_lipschitz": 0.0,
    }
    known = {name: Constant(value, how="closed form") for name, value in exact.items()}
    return Constants(L_workers=tuple(smoothness.tolist()), **known)


def _solution_gradients(problem: Quadratic) -> np.ndarray:
    """||grad f_i(x*)|| of all workers: the gradient is (nu_i - mean nu) T x* - (b_i - mean b), two vectors for all."""
    draws, x = _draws(problem), _solution(problem).x.numpy()[None]
    tx = np.empty((1, problem.d))
    _gradients(0, 1, np.ones(1), np.zeros(1), 0.0, x, tx)
    factors, ends = draws.scales - draws.mean, draws.linear - math.fsum(draws.linear) / problem.workers
    rest = math.fsum(tx[0, 1:] ** 2)
    return np.sqrt((factors * tx[0, 0] - ends) ** 2 + factors**2 * rest)


@functools.lru_cache(maxsize=8)
def _solution(problem: Quadratic) -> Solution:
    draws, d = _draws(problem), problem.d
    linear = math.fsum(draws.linear) / problem.workers
    bands = np.zeros((2, d))
    bands[0, 1:] = -0.25 * draws.mean
    bands[1] = 0.5 * draws.mean + draws.shift
    x, slope = np.zeros((1, d)), np.empty((1, d))
    best, least = x, math.inf
    for _ in range(4):  # a solve and three refinements
        _gradients(0, 1, np.array([draws.mean]), np.array([linear]), draws.shift, x, slope)
        squared = math.fsum(slope[0] ** 2)
        if squared < least:
            best, least = x, squared
        x = x - solveh_banded(bands[-d:], slope[0])[None]
    value = -0.5 * linear * float(best[0, 0])  # f(x*) = -b'x* / 2
    return Solution(torch.from_numpy(best[0].copy()), value, least / (2.0 * problem.mu))
