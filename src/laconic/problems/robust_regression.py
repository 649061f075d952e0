"""Robust linear regression: a saddle point that is not quadratic; somebody shifts all features to spoil the fit."""

from __future__ import annotations

import functools
import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numba
import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Constant, Constants, Kind, Oracles, Problem, Solution, single_threaded
from laconic.kernels.memory import empty
from laconic.kernels.threads import over_rows
from laconic.problems import _cache, _data, _split
from laconic.problems._linear import ALL_TERMS, Dealt
from laconic.problems.ridge import SPLITS, targets

WIDEST = 1 << 27  # numbers in the Jacobians of all workers, beyond which constants are not computed
POINTS = 6  # of the ball around x*, at which Jacobians are taken besides z^0 and z*
MARGIN = 1.05  # on constants seen at some points only
NEWTON_STEPS = 60


@numba.njit(cache=True, nogil=True)
def _operators(low, high, rows, batch, starts, indptr, indices, data, labels, z, l2, damping, values, out):
    """out[r] = F_i(z) of worker rows[r] over its terms batch[r] or all, and values[r] = f_i(z) where it has rows."""
    d, size = z.shape[1] // 2, batch.shape[1]
    for r in range(low, high):
        worker, at = rows[r], z[r if z.shape[0] > 1 else 0]
        count = size if size > 0 else starts[worker + 1] - starts[worker]
        shift, residual, squares = 0.0, 0.0, 0.0
        for j in range(d):
            shift += at[j] * at[d + j]
            out[r, j] = 0.0
        for t in range(count):
            term = starts[worker] + (batch[r, t] if size > 0 else t)
            away = shift - labels[term]
            for k in range(indptr[term], indptr[term + 1]):
                away += data[k] * at[indices[k]]
            for k in range(indptr[term], indptr[term + 1]):
                out[r, indices[k]] += data[k] * away
            residual += away
            squares += away * away
        for j in range(d):
            u, w = at[j], at[d + j]
            out[r, j] = (out[r, j] + residual * w) / count + l2 * u
            out[r, d + j] = damping * w - residual / count * u
            squares += count * (l2 * u * u - damping * w * w)
        if len(values) > 0:
            values[r] = 0.5 * squares / count


class RobustOracles(Oracles):
    """Oracles of a block. They look at these workers' rows only."""

    convex = False  # F_i is monotone near the solution only

    def __init__(self, rows: Dealt, l2: float, damping: float, block: Block) -> None:
        super().__init__()
        self.block, self.shape, self._numbers = block, (2 * rows.d,), (l2, damping)
        self._starts = rows.starts[block.low : block.high + 1]
        self._data = (self._starts, rows.indptr, rows.indices, rows.values, rows.labels)
        self._entries = int(rows.indptr[self._starts[-1]] - rows.indptr[self._starts[0]])
        self.maximised = torch.arange(self.d) >= rows.d

    def terms(self) -> np.ndarray:
        return np.diff(self._starts)

    def _looked(self, z: Tensor, rows: np.ndarray, terms: np.ndarray, values: np.ndarray) -> Tensor:
        points = z.reshape(-1, self.d).contiguous().numpy()
        out = empty((len(rows), self.d), torch.float64)
        over_rows(
            _operators, len(rows), 2 * self._entries, rows, terms, *self._data, points, *self._numbers, values,
            out.numpy(),
        )  # fmt: skip
        return out

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        terms = ALL_TERMS if batch is None else np.ascontiguousarray(batch.indices)
        return self._looked(x, rows, terms, np.empty(0))

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        values = np.empty(len(rows))
        self._looked(x, rows, ALL_TERMS, values)
        return torch.from_numpy(values)


@dataclass(frozen=True)
class RobustRegression(Problem):
    """f_i(u, w) = mean_j (<u, a_j + w> - b_j)^2 / 2 + l2 / 2 ||u||^2 - damping / 2 ||w||^2 over worker i's rows a_j and
    targets b_j: u fits, and w, the same for all rows, shifts them for the worst, at a price.

    F is monotone where ||u||^2 <= damping and not everywhere: mu is the least eigenvalue of the symmetric part of F's
    Jacobian, min(least of the Hessian in u, damping - ||u||^2). All constants are estimates, from Jacobians at z^0, at
    z* and at points of the ball around z* with z^0 on its rim, which methods that come nearer at every step do not
    leave. mu is not known where the Jacobian is not positive definite at one of them: take a larger damping. z^0 = 0.

    Parameters
    ----------
    data : "breast_cancer" (features standardised, targets 0 and 1), "digits", "diabetes", or a LIBSVM file by name
        (from --data-dir, else LACONIC_DATA) or path.
    l2 : the weight of ||u||^2 / 2.
    damping : the price of ||w||^2 / 2.
    workers : n. All rows are dealt, and sizes differ by at most one.
    split : "contiguous" (the file's order), "shuffled" or "sorted" (by target).
    drop_last : leave out the tail, so that all workers have rows // workers rows.
    seed : of the split.
    features : the number of features, where the file does not use its last ones.

    Raises
    ------
    ValueError : data absent or broken, more workers than rows, or a damping so small that no saddle point is found.

    Examples
    --------
    >>> RobustRegression(workers=4).constants().mu.kind.value
    'estimate'
    """

    data: str = "breast_cancer"
    l2: Annotated[float, Interval(0.0, open="low")] = 0.1
    damping: Annotated[float, Interval(0.0, open="low")] = 1.0
    workers: Annotated[int, Count(1)] = 10
    split: Annotated[str, OneOf(SPLITS)] = "contiguous"
    drop_last: bool = False
    seed: Annotated[int, Count(0)] = 0
    features: Annotated[int | None, Count(1)] = None

    name: ClassVar[str] = "robust_regression"
    example: ClassVar[str] = "robust_regression(data='breast_cancer', l2=0.1, damping=1.0, workers=10)"
    source: ClassVar[Source | None] = Source(
        authors="Aleksandr Beznosikov, Martin Takac, Alexander Gasnikov",
        year=2023,
        arxiv="2302.07615",
        where="experiments",
        title="Similarity, Compression and Local Steps: Three Pillars of Efficient Communications for Distributed "
        "Variational Inequalities",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows in the order of the workers."""
        table = _data.load(self.data, data_dir, self.features)
        dealing = _split.Dealing(_split.named(self.split, 1.0), self.seed, self.drop_last)
        return targets(table, dealing, self.workers, False)

    def oracles(self, block: Block, data_dir: Path | None = None) -> RobustOracles:
        """The oracles of a block. Raises ValueError where data are absent, broken, or fewer than the workers."""
        return RobustOracles(self.dealt(data_dir), self.l2, self.damping, block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """The constants around the solution, all estimates, kept on disk."""
        moments = _moments(self.dealt(data_dir), self.l2, self.damping)
        return _cache.constants(self.fingerprint(data_dir), lambda: _constants(moments, self.solution(data_dir).x))

    def solution(self, data_dir: Path | None = None) -> Solution:
        """The saddle point by Newton's method; ||F||^2 / mu^2 certifies it, with mu that of its neighbourhood."""
        moments = _moments(self.dealt(data_dir), self.l2, self.damping)
        return _cache.solution(self.fingerprint(data_dir), lambda: _solved(moments, str(self)))

    def fingerprint(self, data_dir: Path | None = None) -> str:
        """A hash of the rows, who holds them, l2 and damping."""
        text = f"robust {self.dealt(data_dir).digest()} {self.l2!r} {self.damping!r}"
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Moments:
    """What F and its Jacobian are made of: mean a a' (n, d, d), mean a (n, d), mean b a (n, d), mean b (n,)."""

    squares: np.ndarray
    means: np.ndarray
    products: np.ndarray
    targets: np.ndarray
    l2: float
    damping: float

    def whole(self) -> Moments:
        """Those of f, as of one worker."""
        parts = (self.squares, self.means, self.products, self.targets)
        squares, means, products, targets = (part.mean(axis=0, keepdims=True) for part in parts)
        return Moments(squares, means, products, targets, self.l2, self.damping)

    def operators(self, z: np.ndarray) -> np.ndarray:
        """F_i(z), (n, 2 d)."""
        u, w = np.split(z, 2)
        shift = float(u @ w)
        residual = (self.means @ u + shift - self.targets)[:, None]
        first = self.squares @ u - self.products + shift * self.means + residual * w + self.l2 * u
        return np.concatenate([first, self.damping * w - residual * u], axis=1)

    def jacobians(self, z: np.ndarray) -> np.ndarray:
        """Of the F_i at z, (n, 2 d, 2 d)."""
        u, w = np.split(z, 2)
        eye, shifted = np.eye(len(u)), self.means + w
        residual = self.means @ u + float(u @ w) - self.targets
        cross = self.means[:, :, None] * w
        bent = self.squares + cross + cross.transpose(0, 2, 1) + np.outer(w, w) + self.l2 * eye
        mixed = shifted[:, :, None] * u + residual[:, None, None] * eye
        least = np.broadcast_to(self.damping * eye - np.outer(u, u), bent.shape)
        return np.concatenate(
            [np.concatenate([bent, mixed], axis=2), np.concatenate([-mixed.transpose(0, 2, 1), least], axis=2)], axis=1
        )


@functools.lru_cache(maxsize=4)
def _moments(rows: Dealt, l2: float, damping: float) -> Moments:
    if rows.n * (2 * rows.d) ** 2 > WIDEST:
        raise ValueError(
            f"robust_regression with {rows.n} workers and {rows.d} features : the Jacobians are too large; take fewer"
        )
    parts = [(rows.part(i), rows.labels[rows.starts[i] : rows.starts[i + 1]]) for i in range(rows.n)]
    return Moments(
        np.stack([(a.T @ a).toarray() / len(b) for a, b in parts]),
        np.stack([np.asarray(a.mean(axis=0)).ravel() for a, _ in parts]),
        np.stack([a.T @ b / len(b) for a, b in parts]),
        np.array([b.mean() for _, b in parts]),
        l2,
        damping,
    )


@single_threaded
def _solved(moments: Moments, name: str) -> Solution:
    """Newton's method from 0, with halved steps where ||F|| would grow, to rounding."""
    whole = moments.whole()
    z = np.zeros(2 * moments.means.shape[1])
    slope = whole.operators(z)[0]
    best, least = z, float(slope @ slope)
    for _ in range(NEWTON_STEPS):
        matrix, size = torch.from_numpy(whole.jacobians(z)[0]), 1.0
        move = torch.linalg.solve(matrix, torch.from_numpy(slope)).numpy()
        while size > 1e-6 and np.linalg.norm(whole.operators(z - size * move)[0]) > np.linalg.norm(slope):
            size *= 0.5
        z = z - size * move
        slope = whole.operators(z)[0]
        if float(slope @ slope) >= least:
            break
        best, least = z, float(slope @ slope)
    mu = _convexity(whole.jacobians(best)[0])
    if not (mu > 0.0 and math.sqrt(least) < 1e-9 * (1.0 + float(np.linalg.norm(best)))):
        raise ValueError(f"{name} : no saddle point is found where F is monotone; take a larger damping")
    return Solution(torch.from_numpy(best), math.nan, least / mu**2)


def _convexity(jacobian: np.ndarray) -> float:
    return float(torch.linalg.eigvalsh(torch.from_numpy(0.5 * (jacobian + jacobian.T)))[0])


@single_threaded
def _constants(moments: Moments, solution: Tensor) -> Constants:
    best, n = solution.numpy(), len(moments.targets)
    noise = Keys(0, 0, "problem/robust_regression", np.arange(POINTS), POINTS).normal(len(best)).numpy()
    radius = np.linalg.norm(best) / np.linalg.norm(noise, axis=1, keepdims=True)
    seen = [_at(moments.jacobians(z)) for z in [np.zeros_like(best), best, *(best + radius * noise)]]
    most = {name: np.max(np.array([one[name] for one in seen]), axis=0) * MARGIN for name in seen[0]}
    each, least = most["each"], min(one["mu"] for one in seen)
    spread = moments.operators(best)
    values = {
        "L": float(most["L"]),
        "L_max": float(each.max()),
        "L_tilde": math.sqrt(math.fsum(each**2) / n),
        "L_plus": float(most["L_plus"]),
        "L_pm": float(most["L_pm"]),
        "delta": float(most["away"].max()),
        "delta_server": float(most["away"][0]),
        "delta_mean": float(most["L_pm"]),
        "sigma_star": math.sqrt(math.fsum(spread.ravel() ** 2) / n),
    }
    if least > 0.0:
        values["mu"] = float(least) / MARGIN
    how = f"Jacobians at z^0, z* and {POINTS} points of the ball around z*, a margin of {MARGIN}"
    known = {name: Constant(one, Kind.ESTIMATE, how) for name, one in values.items()}
    return Constants(L_workers=tuple(each.tolist()), **known)


def _at(jacobians: np.ndarray) -> dict[str, np.ndarray | float]:
    """The constants at one point."""
    each = torch.from_numpy(jacobians)
    mean = each.mean(dim=0)
    squares, apart = each.mT @ each, (each - mean).mT @ (each - mean)
    return {
        "L": float(_root(mean.T @ mean)),
        "each": _root(squares).numpy(),
        "away": _root(apart).numpy(),
        "L_plus": float(_root(squares.mean(dim=0))),
        "L_pm": float(_root(apart.mean(dim=0))),
        "mu": _convexity(mean.numpy()),
    }


def _root(squares: Tensor) -> Tensor:
    """The roots of the largest eigenvalues."""
    return torch.linalg.eigvalsh(squares)[..., -1].clamp_min(0.0).sqrt()
