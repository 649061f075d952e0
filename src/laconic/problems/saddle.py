"""A saddle point that its bilinear part dominates: where gradient descent-ascent needs tiny steps, or flies apart."""

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

from laconic.core.entry import Count, Interval, Source
from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles, Problem, Solution, single_threaded
from laconic.kernels.memory import empty
from laconic.kernels.threads import over_rows
from laconic.problems import _cache

REFLECTIONS = 3  # of which a rotation is made
NAMES = ("coupled", "unlike")  # the bases of B, and of the D_i


@numba.njit(cache=True, nogil=True)
def _operators(low, high, rows, couplings, linear, mu, z, out):
    """out[r] = K_i z - c_i of worker rows[r], K_i = [[mu I, A_i], [-A_i', mu I]]; `linear` may have no rows."""
    d = couplings.shape[1]
    for r in range(low, high):
        worker, at = rows[r], z[r if z.shape[0] > 1 else 0]
        for j in range(2 * d):
            out[r, j] = mu * at[j] - (linear[worker, j] if len(linear) > 0 else 0.0)
        for i in range(d):
            for j in range(d):
                entry = couplings[worker, i, j]
                out[r, i] += entry * at[d + j]
                out[r, d + j] -= entry * at[i]


@dataclass(frozen=True, eq=False)
class Draws:
    """A_i = B + D_i (n, d, d), c_i (n, 2 d), the solution z* (2 d,), and the singular values of the D_i (n, d)."""

    couplings: np.ndarray
    linear: np.ndarray
    solution: np.ndarray
    away: np.ndarray


class SaddleOracles(Oracles):
    """Oracles of a block: F_i(z) = K_i z - c_i in loops of fixed order, and the f_i whose saddle point it is."""

    def __init__(self, mu: float, draws: Draws, block: Block) -> None:
        super().__init__()
        here = slice(block.low, block.high)
        self.block, self.shape, self._mu = block, draws.solution.shape, mu
        self._couplings, self._linear = draws.couplings[here], draws.linear[here]
        self.maximised = torch.arange(self.d) >= self.d // 2

    def terms(self) -> np.ndarray:
        return np.ones(self.block.size, dtype=np.int64)

    def _applied(self, z: Tensor, rows: np.ndarray, linear: np.ndarray) -> Tensor:
        points = z.reshape(-1, self.d).contiguous().numpy()
        out = empty((len(rows), self.d), torch.float64)
        arguments = (rows, self._couplings, linear, self._mu, points, out.numpy())
        over_rows(_operators, len(rows), len(rows) * self.d * self.d, *arguments)
        return out

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        return self._applied(x, rows, self._linear)

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        """mu ||u||^2 / 2 + u' A_i w - mu ||w||^2 / 2 - c_u' u + c_w' w, for x = (u, w)."""
        half = self.d // 2
        turned = self._applied(x, rows, np.zeros((0, self.d))).numpy()
        found, points = np.empty(len(rows)), x.reshape(-1, self.d).numpy()
        for r, row in enumerate(rows.tolist()):
            z, kz, c = points[r if len(points) > 1 else 0], turned[r], self._linear[row]
            coupled = math.fsum(z[:half] * kz[:half]) - math.fsum(z[half:] * kz[half:])  # twice u'Aw, and the squares
            found[r] = 0.5 * coupled - math.fsum(c[:half] * z[:half]) + math.fsum(c[half:] * z[half:])
        return torch.from_numpy(found)


@dataclass(frozen=True)
class Saddle(Problem):
    """f_i(u, w) = mu ||u||^2 / 2 + u' (B + D_i) w - mu ||w||^2 / 2 - <a_i, u> + <b_i, w>, minimised over u and
    maximised over w: F_i(z) = K_i z - c_i with K_i = [[mu I, B + D_i], [-(B + D_i)', mu I]].

    The singular values of B go evenly from 0 to `coupling`; the D_i, of sum 0, have largest singular value
    `similarity`, attained. z* is drawn first and the c_i made for it, so it is known to rounding. z^0 = 0.

    All constants are exact: F is mu-strongly monotone and sqrt(coupling^2 + mu^2)-Lipschitz, F_i - F is D_i, and the
    rest are singular values.

    Parameters
    ----------
    d : coordinates of u, and as many of w.
    workers : n.
    coupling : ||B||.
    similarity : max ||D_i||, which is delta; 0 where there is one worker.
    mu : of the quadratic parts.
    noise : how unlike the c_i are.
    seed : of the draws.

    Examples
    --------
    >>> c = Saddle(coupling=10.0, mu=0.1).constants()
    >>> float(c.L) / float(c.mu)
    100.00499987500625
    """

    d: Annotated[int, Count(1)] = 20
    workers: Annotated[int, Count(1)] = 10
    coupling: Annotated[float, Interval(0.0)] = 10.0
    similarity: Annotated[float, Interval(0.0)] = 0.5
    mu: Annotated[float, Interval(0.0, open="low")] = 0.1
    noise: Annotated[float, Interval(0.0)] = 1.0
    seed: Annotated[int, Count(0)] = 0

    name: ClassVar[str] = "saddle"
    example: ClassVar[str] = "saddle(d=20, workers=10, coupling=10.0, similarity=0.5, mu=0.1)"
    source: ClassVar[Source | None] = Source(
        authors="Aleksandr Beznosikov, Valentin Samokhin, Alexander Gasnikov",
        year=2020,
        arxiv="2010.13112",
        where="bilinear experiments",
        title="Distributed Saddle-Point Problems: Lower Bounds, Near-Optimal and Robust Algorithms",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def oracles(self, block: Block, data_dir: Path | None = None) -> SaddleOracles:
        """The oracles of a block; needs no data."""
        return SaddleOracles(self.mu, _draws(self), block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """All constants, exact, by singular values."""
        return _constants(self)

    def solution(self, data_dir: Path | None = None) -> Solution:
        """The saddle point; ||z - z*||^2 <= ||F(z)||^2 / mu^2 certifies it."""
        draws = _draws(self)
        z = torch.from_numpy(draws.solution.copy())
        slopes = _whole(self).gradients(z).numpy()
        mean = np.array([math.fsum(column) for column in slopes.T]) / self.workers
        return Solution(z, math.nan, math.fsum(mean**2) / self.mu**2)


def _whole(problem: Saddle) -> SaddleOracles:
    return SaddleOracles(problem.mu, _draws(problem), Block.whole(problem.workers))


def _rotated(values: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Matrices with these singular values (..., d), in the bases that reflections along these vectors make."""
    matrix = values[..., :, None] * np.eye(values.shape[-1])
    for u in left:
        along = (u[:, None] * matrix).sum(axis=-2)  # a sum of rows in their order, whatever the machine
        matrix = matrix - u[:, None] * (2.0 / math.fsum(u * u) * along)[..., None, :]
    for u in right:
        along = np.add.reduce(np.moveaxis(matrix * u, -1, 0), axis=0)
        matrix = matrix - (2.0 / math.fsum(u * u) * along)[..., :, None] * u
    return matrix


@functools.lru_cache(maxsize=8)
def _draws(problem: Saddle) -> Draws:
    n, d, mu = problem.workers, problem.d, problem.mu

    def normal(name: str, count: int, size: int) -> np.ndarray:
        return Keys(problem.seed, 0, f"problem/saddle/{name}", np.arange(count), count).normal(size).numpy()

    bases = [normal(name, 2 * REFLECTIONS, d) for name in NAMES]
    (one, other), (first, second) = ((basis[:REFLECTIONS], basis[REFLECTIONS:]) for basis in bases)
    common = problem.coupling * (np.linspace(0.0, 1.0, d) if d > 1 else np.ones(1))
    away = _centred(normal("away", n, d))
    largest = np.abs(away).max()
    away = away * (problem.similarity / largest) if largest > 0.0 else away
    couplings = _rotated(common, one, other) + _rotated(away, first, second)
    z, rows = normal("solution", 1, 2 * d)[0], np.arange(n)
    linear = np.empty((n, 2 * d))
    _operators(0, n, rows, couplings, np.zeros((0, 2 * d)), mu, z[None], linear)
    return Draws(couplings, linear + problem.noise * _centred(normal("noise", n, 2 * d)), z, np.abs(away))


def _centred(drawn: np.ndarray) -> np.ndarray:
    """Less their mean over workers; of one worker nothing is left."""
    mean = np.array([math.fsum(column) for column in drawn.T]) / len(drawn)
    return drawn - mean


@functools.lru_cache(maxsize=8)
def _constants(problem: Saddle) -> Constants:
    return _cache.constants(problem.fingerprint(), lambda: _computed(problem))


@single_threaded
def _computed(problem: Saddle) -> Constants:
    draws, n, mu = _draws(problem), problem.workers, problem.mu
    a = torch.from_numpy(draws.couplings)
    each = np.sqrt(mu**2 + torch.linalg.svdvals(a)[:, 0].numpy() ** 2)
    whole = max(float(torch.linalg.eigvalsh(square.mean(dim=0))[-1]) for square in (a @ a.mT, a.mT @ a))
    spread = math.sqrt(max(math.fsum(column**2) / n for column in draws.away.T))
    at_solution = _whole(problem).gradients(torch.from_numpy(draws.solution.copy())).numpy()
    exact = {
        "L": math.hypot(problem.coupling, mu),
        "L_max": float(each.max()),
        "L_tilde": math.sqrt(math.fsum(each**2) / n),
        "L_plus": math.sqrt(mu**2 + whole),
        "L_pm": spread,
        "mu": mu,
        "mu_workers": mu,
        "delta": float(draws.away.max()),
        "delta_server": float(draws.away[0].max()),
        "delta_mean": spread,
        "L_sample": float(each.max()),
        "sigma_star": math.sqrt(math.fsum(at_solution.ravel() ** 2) / n),
    }
    how = "closed form and singular values"
    return Constants(L_workers=tuple(each.tolist()), **{name: Constant(one, how=how) for name, one in exact.items()})
