"""What problems with a regulariser share: f + r, whose oracles are those of f, and a certified minimiser."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.core import rows
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles, Problem, Solution, single_threaded
from laconic.core.regulariser import Regulariser
from laconic.problems import _cache
from laconic.problems._base import LinearProblem
from laconic.problems._constrained import saddle_point
from laconic.problems._spectra import DENSE, rounded

STRETCH = 50  # accelerated proximal steps between two trials of Newton's method
STRETCHES = 200
LENGTHS = 0.5 ** np.arange(9)  # of a Newton step that are tried
HESSIANS = 1 << 23  # numbers of Hessians that are held at once


class Regularised(Oracles):
    """The oracles of the f_i where everyone knows the regulariser; x^0 is moved to where it is finite."""

    def __init__(self, smooth: Any, regulariser: Regulariser) -> None:
        super().__init__()
        self.block, self.shape, self.dtype, self.convex = smooth.block, smooth.shape, smooth.dtype, smooth.convex
        self.regulariser, self._smooth, self.maximised = regulariser, smooth, smooth.maximised

    def start(self) -> Tensor:
        assert self.regulariser is not None
        x = self._smooth.start()
        return x if math.isfinite(self.regulariser.value(x)) else self.regulariser.prox(x, 1.0)

    def terms(self) -> np.ndarray:
        return self._smooth.terms()

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self._smooth._values(x, rows)

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        return self._smooth._gradients(x, rows, batch)

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        return self._smooth._hessians(x, rows)

    def _hessian_changes(self, x: Tensor, since: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        return self._smooth._hessian_changes(x, since, rows)

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        return self._smooth._products(x, v, rows)

    def _spans(self, rows: np.ndarray) -> tuple[Tensor, float]:
        return self._smooth._spans(rows)


class Stable(Regularised):
    """The same of oracles that know f_i(x) - f_i(x*) - <grad f_i(x*), x - x*> without cancellation."""

    def excess(self, x: Tensor, solution: Solution, rows: np.ndarray | None = None) -> Tensor:
        """f_i(x) - f_i(x*) - <grad f_i(x*), x - x*>, shape (rows,), without the regulariser."""
        return self._smooth.excess(x, solution, self._rows(rows))


class CompositeProblem(Problem):
    """A problem f + r. Subclasses give the smooth problem f and the regulariser r."""

    @abstractmethod
    def parts(self) -> tuple[Problem, Regulariser]:
        """f and r."""

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.parts()[0].n

    def oracles(self, block: Block, data_dir: Path | None = None) -> Oracles:
        """The oracles of the f_i of a block, with the regulariser."""
        problem, regulariser = self.parts()
        smooth = problem.oracles(block, data_dir)
        return (Stable if hasattr(smooth, "excess") else Regularised)(smooth, regulariser)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """Those of f, but sigma_star, which is at the minimiser of f + r; mu_pl says nothing of f + r."""
        problem, _ = self.parts()
        return _constants(self, problem.constants(data_dir), data_dir)

    def smoothness_matrices(self, data_dir: Path | None = None) -> Tensor | None:
        """Those of f."""
        return self.parts()[0].smoothness_matrices(data_dir)

    def solution(self, data_dir: Path | None = None) -> Solution | None:
        """The minimiser of f + r with its certificate, kept on disk; None where there is no certificate."""
        return _solution(self, self.fingerprint(data_dir), data_dir)

    def fingerprint(self, data_dir: Path | None = None) -> str:
        """A hash of f and r."""
        problem, regulariser = self.parts()
        return hashlib.sha256(f"{problem.fingerprint(data_dir)} {regulariser}".encode()).hexdigest()


@functools.lru_cache(maxsize=16)
def _constants(problem: CompositeProblem, constants: Constants, data_dir: Path | None) -> Constants:
    solution, found = problem.solution(data_dir), None
    if solution is not None:
        gradients = problem.oracles(Block.whole(problem.n), data_dir).gradients(solution.x)
        root = math.sqrt(math.fsum(rows.norm2(gradients).tolist()) / problem.n)
        found = Constant(rounded(root), how="at the minimiser with the regulariser")
    return dataclasses.replace(constants, sigma_star=found, mu_pl=None)


@functools.lru_cache(maxsize=16)
def _solution(problem: CompositeProblem, key: str, data_dir: Path | None) -> Solution | None:
    smooth, regulariser = problem.parts()
    oracles, constants = problem.oracles(Block.whole(problem.n), data_dir), smooth.constants(data_dir)
    mu = 0.0 if constants.mu is None else constants.mu.value
    if oracles.variational:
        solve = functools.partial(saddle_point, oracles, regulariser, constants.L.value, mu)
        return _cache.solution(key, solve) if mu > 0.0 else None
    bounded = isinstance(smooth, LinearProblem)  # from below: losses and ridge are >= 0
    convex = mu > 0.0 or (oracles.convex and bounded)
    if not convex or oracles.dtype != torch.float64 or len(oracles.shape) > 1 or oracles.d > DENSE:
        return None
    found = _cache.solution(key, lambda: _Search(oracles, regulariser, constants.L.value).run(mu, bounded))
    return found if math.isfinite(found.gap) else None


class _Search:
    """Accelerated proximal steps until Newton's method on the fixed-point equation x = prox(x - t grad f(x)) catches.

    The proximal operator acts on each coordinate by itself and is piecewise linear with slopes 0 and 1, so that a
    Newton step solves a linear system in the coordinates of slope 1 (semismooth Newton).
    """

    def __init__(self, oracles: Oracles, regulariser: Regulariser, smooth: float) -> None:
        self.oracles, self.regulariser, self.step = oracles, regulariser, 1.0 / smooth

    def gradient(self, x: Tensor) -> Tensor:
        return rows.mean(self.oracles.gradients(x))

    def hessian(self, x: Tensor) -> np.ndarray:
        """hess f(x), (d, d)."""
        n, d = self.oracles.block.size, self.oracles.d
        size, total = d * (d + 1) // 2, torch.zeros(d * (d + 1) // 2, dtype=torch.float64)
        some = max(1, HESSIANS // size)
        for first in range(0, n, some):
            total += self.oracles.hessians(x, np.arange(first, min(first + some, n))).sum(dim=0)
        return rows.svec_to_matrix(total / n, d).numpy()

    def forward_backward(self, x: Tensor) -> Tensor:
        return self.regulariser.prox(x - self.step * self.gradient(x), self.step)

    def error(self, x: Tensor) -> float:
        """The norm of the shortest subgradient."""
        return math.sqrt(rows.square(self.regulariser.least_subgradient(x, self.gradient(x))))

    def accelerated(self, x: Tensor) -> Tensor:
        """Nesterov's steps, begun anew where they point uphill (O'Donoghue and Candes 2015)."""
        y, t = x, 1.0
        for _ in range(STRETCH):
            ahead = self.forward_backward(y)
            if rows.inner(y - ahead, ahead - x) > 0.0:
                t = 1.0
            following = 0.5 * (1.0 + math.sqrt(1.0 + 4.0 * t * t))
            y, x, t = ahead + (t - 1.0) / following * (ahead - x), ahead, following
        return x

    def newton(self, x: Tensor) -> Tensor:
        """The step to the solution of the equation linearised at x."""
        ahead = x - self.step * self.gradient(x)
        small = 1e-12 * float(ahead.abs().max())
        rise = self.regulariser.prox(ahead + small, self.step) - self.regulariser.prox(ahead - small, self.step)
        free = (rise > small).numpy()
        residual = (x - self.regulariser.prox(ahead, self.step)).numpy()
        move, curvature = -residual, self.hessian(x)
        if free.any():
            right = -residual[free] / self.step - curvature[np.ix_(free, ~free)] @ move[~free]
            move[free] = np.linalg.lstsq(curvature[np.ix_(free, free)], right, rcond=None)[0]
        return torch.from_numpy(move)

    @single_threaded
    def run(self, mu: float, bounded: bool) -> Solution:
        """The best point found, with the better of the certificates that are known."""
        x = best = self.oracles.start()
        least = self.error(best)
        for _ in range(STRETCHES):
            move, height = self.newton(x), self.value(x)
            trial = self.forward_backward(x + move)
            for length in LENGTHS:
                if self.error(trial) < 0.5 * least or self.value(trial) < height:
                    break
                trial = self.forward_backward(x + length * move)
            else:
                trial = x
            error = self.error(trial)
            if not error < 0.5 * least:
                if least <= 1e-13 * math.sqrt(rows.square(self.gradient(best))):
                    break
                trial = self.accelerated(trial)
                error = self.error(trial)
            x = trial
            best, least = (trial, error) if error < least else (best, least)
        return self.certified(best, mu, bounded)

    def value(self, x: Tensor) -> float:
        """f(x) + r(x)."""
        return math.fsum(self.oracles.values(x).tolist()) / self.oracles.block.n + self.regulariser.value(x)

    def certified(self, x: Tensor, mu: float, bounded: bool) -> Solution:
        gradient, value = self.gradient(x), self.value(x)
        gaps = [max(self.regulariser.certificate(x, gradient, value), 0.0)] if bounded else []
        gaps += [rows.square(self.regulariser.least_subgradient(x, gradient)) / (2.0 * mu)] if mu > 0.0 else []
        return Solution(x, value, min(gaps))
