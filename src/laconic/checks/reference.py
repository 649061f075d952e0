"""The small problem that estimators, mechanisms and methods are tried on: quadratic terms, everything known exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from laconic.core.keys import Keys
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles, Problem, Solution, single_threaded
from laconic.core.regulariser import Regulariser
from laconic.core.rows import dot, solve
from laconic.core.theory import Setting

TERMS = (3, 5, 4, 2)  # of workers 0, 1, 2, 3, and again


@dataclass(frozen=True)
class Reference(Problem):
    """f_i is the mean over its terms of (scale / 2) (ridge ||y||^2 + <a, y>^2), y = x / unit - z, all a and z its own.

    Parameters
    ----------
    workers, d : how many, and the coordinates.
    families : worker i has the terms of worker i modulo this.
    scale, unit : in which f and x are measured: powers of two change no bits but exponents.
    unlike : how far the z are from each other; with 0 every term's gradient vanishes at the solution.
    bent : how unlike the matrices of the terms are; with 0 all are ridge I + a diagonal.
    ridge : the least eigenvalue, at least.
    away : how far the start is from the solution. Along all axes, or along one of them.
    along : the axis, or -1.
    regulariser : what everyone adds to f.
    """

    workers: int = 4
    d: int = 6
    families: int = 1 << 20
    scale: float = 1.0
    unit: float = 1.0
    unlike: float = 1.0
    bent: float = 1.0
    ridge: float = 0.5
    away: float = 1.0
    along: int = -1
    regulariser: Regulariser | None = None

    name: ClassVar[str] = "reference"

    @property
    def n(self) -> int:
        return self.workers

    def oracles(self, block: Block, data_dir: Path | None = None) -> ReferenceOracles:
        return ReferenceOracles(self, block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        return _constants(self)

    def solution(self, data_dir: Path | None = None) -> Solution | None:
        return None if self.regulariser is not None else _solution(self)

    def setting(self) -> Setting:
        """What theorems are asked about."""
        counts = self.oracles(Block.whole(self.n)).terms()
        terms, composite = (int(counts.min()), int(counts.max())), self.regulariser is not None
        return Setting(self.constants(), self.n, (self.d,), terms, composite=composite, solution=self.solution)


@dataclass(frozen=True, eq=False)
class _Data:
    """Directions a (n, m, d), centres z (n, m, d), and the number of terms of each worker, (n,)."""

    a: Tensor
    z: Tensor
    terms: np.ndarray


@functools.lru_cache(maxsize=32)
def _data(problem: Reference) -> _Data:
    n, d, most = problem.n, problem.d, max(TERMS)
    family = np.arange(n) % problem.families
    numbers = Keys(3, d, "/reference", family, max(n, 1)).normal(2 * most * d).view(n, most, 2, d)
    axes = torch.zeros(most, d, dtype=torch.float64)
    axes[torch.arange(most), torch.arange(most) % d] = 1.5
    a = problem.bent * numbers[:, :, 0] + (1.0 - problem.bent) * axes
    common = torch.linspace(-1.0, 1.0, d, dtype=torch.float64) if d > 1 else torch.ones(1, dtype=torch.float64)
    counts = np.array(TERMS)[family % len(TERMS)] if problem.bent else np.full(n, most)
    return _Data(a, common + problem.unlike * numbers[:, :, 1], counts)


class ReferenceOracles(Oracles):
    """Oracles of a block. `looked` counts terms by itself, where the gradients are made."""

    def __init__(self, problem: Reference, block: Block) -> None:
        super().__init__()
        self.block, self.shape, self.regulariser = block, (problem.d,), problem.regulariser
        self.problem, self.looked = problem, 0
        data, here = _data(problem), slice(block.low, block.high)
        self._a, self._z, self._counts = data.a[here], data.z[here], data.terms[here]
        self._h, self._right = _matrices(problem)[here], _linear(problem)[here]

    def terms(self) -> np.ndarray:
        return self._counts

    def start(self) -> Tensor:
        x, d = _solution(self.problem).x, self.problem.d
        away = torch.full((d,), d**-0.5, dtype=x.dtype) * torch.where(torch.arange(d) % 2 == 0, 1.0, -1.0)
        if self.problem.along >= 0:
            away = torch.eye(d, dtype=x.dtype)[self.problem.along]
        return x + self.problem.away * self.problem.unit * away

    def _terms_at(self, x: Tensor, rows: np.ndarray, indices: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """y, a and <a, y> of terms (rows, size, ...)."""
        place = torch.from_numpy(rows)[:, None], torch.from_numpy(indices)
        a, z = self._a[place], self._z[place]
        y = (x / self.problem.unit).reshape(-1, 1, self.problem.d) - z
        flat = dot(a.reshape(-1, self.problem.d), y.reshape(-1, self.problem.d))
        return y, a, flat.view(*indices.shape, 1)

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        counts = self._counts[rows][:, None]
        indices = np.tile(np.arange(max(TERMS)), (len(rows), 1))
        weights = torch.from_numpy((indices < counts) / counts)
        y, _, products = self._terms_at(x, rows, np.minimum(indices, counts - 1))
        squares = dot(y.reshape(-1, self.problem.d), y.reshape(-1, self.problem.d)).view(indices.shape)
        each = 0.5 * self.problem.scale * (self.problem.ridge * squares + products[:, :, 0] ** 2)
        return _sums((weights * each)[:, :, None])[:, 0]

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        if batch is None:
            self.looked += int(self._counts[rows].sum())
            place = torch.from_numpy(rows)
            return _sums(self._h[place] * x.reshape(-1, self.problem.d)[:, :, None]) - self._right[place]
        self.looked += batch.indices.size
        y, a, products = self._terms_at(x, rows, batch.indices)
        factor = self.problem.scale / self.problem.unit / max(1, batch.indices.shape[1])
        return _sums((self.problem.ridge * y + products * a) * factor)

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        i, j = torch.triu_indices(self.problem.d, self.problem.d)
        upper = self._h[torch.from_numpy(rows)][:, i, j]
        return torch.where(i == j, upper, upper * math.sqrt(2.0))

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        self.looked += int(self._counts[rows].sum())
        return _sums(self._h[torch.from_numpy(rows)] * v.reshape(-1, self.problem.d)[:, :, None])

    def excess(self, x: Tensor, solution: Solution, rows: np.ndarray | None = None) -> Tensor:
        """f_i(x) - f_i(x*) - <grad f_i(x*), x - x*>."""
        rows = self._rows(rows)
        away = (x - solution.x).expand(len(rows), -1).contiguous()
        return 0.5 * dot(_sums(self._h[torch.from_numpy(rows)] * away[:, :, None]), away)


def _sums(each: Tensor) -> Tensor:
    """The sums over the second axis, in order, whatever else is in the block."""
    total = torch.zeros(each.shape[0], *each.shape[2:], dtype=each.dtype)
    for one in each.unbind(1):
        total = total + one
    return total


@functools.lru_cache(maxsize=32)
def _matrices(problem: Reference) -> Tensor:
    """The Hessians, (n, d, d)."""
    data = _data(problem)
    eye = torch.eye(problem.d, dtype=torch.float64)
    found = []
    for a, terms in zip(data.a, data.terms.tolist(), strict=True):
        outer = a[:terms, :, None] * a[:terms, None, :]
        found.append((problem.ridge * eye + outer.sum(0) / terms) * (problem.scale / problem.unit**2))
    return torch.stack(found)


@functools.lru_cache(maxsize=32)
def _linear(problem: Reference) -> Tensor:
    """What the gradients at 0 are less than 0, (n, d)."""
    data, found = _data(problem), []
    for a, z, terms in zip(data.a, data.z, data.terms.tolist(), strict=True):
        a, z = a[:terms], z[:terms]
        found.append((problem.ridge * z + (a * z).sum(1, keepdim=True) * a).sum(0) / terms)
    return torch.stack(found) * (problem.scale / problem.unit)


@functools.lru_cache(maxsize=32)
@single_threaded
def _solution(problem: Reference) -> Solution:
    oracles_at_zero = _plain_gradient(problem, torch.zeros(problem.d, dtype=torch.float64))
    h = _matrices(problem).mean(0)
    x = solve(h, -oracles_at_zero)
    x = x - solve(h, _plain_gradient(problem, x))
    value = float(_whole(problem).values(x).mean())
    return Solution(x, value, float(_plain_gradient(problem, x).square().sum() / (2.0 * _least(h))))


def _whole(problem: Reference) -> ReferenceOracles:
    return ReferenceOracles(problem, Block.whole(problem.n))


def _plain_gradient(problem: Reference, x: Tensor) -> Tensor:
    return _whole(problem).gradients(x).mean(0)


def _least(h: Tensor) -> float:
    return float(torch.linalg.eigvalsh(h)[0])


@functools.lru_cache(maxsize=32)
@single_threaded
def _constants(problem: Reference) -> Constants:
    h = _matrices(problem)
    mean, data = h.mean(0), _data(problem)
    each, whole = torch.linalg.eigvalsh(h), torch.linalg.eigvalsh(mean)
    away = torch.linalg.eigvalsh(h - mean).abs().amax(1)
    squares = (h @ h).mean(0)
    top: Callable[[Tensor], float] = lambda m: math.sqrt(max(0.0, float(torch.linalg.eigvalsh(m)[-1])))  # noqa: E731
    at_solution = _whole(problem).gradients(_solution(problem).x)
    norms = data.a.square().sum(2).amax(1)
    spread = top(((h - mean) @ (h - mean)).mean(0))
    values = {
        "L": float(whole[-1]),
        "L_max": float(each[:, -1].max()),
        "L_tilde": float(each[:, -1].square().mean().sqrt()),
        "L_plus": top(squares),
        "L_pm": spread,
        "mu": float(whole[0]),
        "mu_workers": float(each[:, 0].min()),
        "delta": float(away.max()),
        "delta_server": float(away[0]),
        "delta_mean": spread,
        "delta_first": float(torch.linalg.eigvalsh(h - h[0]).abs().max()),
        "L_sample": float(norms.max() + problem.ridge) * problem.scale / problem.unit**2,
        "sigma_star": float(at_solution.square().sum(1).mean().sqrt()),
        "hessian_lipschitz": 0.0,
    }
    return Constants(L_workers=tuple(each[:, -1].tolist()), **{name: Constant(one) for name, one in values.items()})
