"""Three quadratics on which gradient descent with Top-1 diverges for every stepsize."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.problem import Batch, Block, Constant, Constants, Oracles, Problem, Solution

DIRECTIONS = torch.tensor([[-3.0, 2.0, 2.0], [2.0, -3.0, 2.0], [2.0, 2.0, -3.0]], dtype=torch.float64)


class CounterexampleOracles(Oracles):
    """Oracles of f_i(x) = <a_i, x>^2 + ||x||^2 / 4, by elementwise sums of fixed order."""

    def __init__(self, scale: float, block: Block) -> None:
        super().__init__()
        self.block, self.shape, self._scale = block, (3,), scale
        self._directions = DIRECTIONS[block.low : block.high]

    def start(self) -> Tensor:
        """scale (1, 1, 1)."""
        return torch.full((3,), self._scale, dtype=torch.float64)

    def terms(self) -> np.ndarray:
        return np.ones(self.block.size, dtype=np.int64)

    def _project(self, x: Tensor, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        a = self._directions[torch.from_numpy(rows)]
        products = a * x
        return a, products[:, 0] + products[:, 1] + products[:, 2]

    def _values(self, x: Tensor, rows: np.ndarray) -> Tensor:
        squares = x * x
        norm = squares[..., 0] + squares[..., 1] + squares[..., 2]
        return self._project(x, rows)[1] ** 2 + 0.25 * norm

    def _gradients(self, x: Tensor, rows: np.ndarray, batch: Batch | None) -> Tensor:
        a, projected = self._project(x, rows)
        return 2.0 * projected[:, None] * a + 0.5 * x

    def _hessians(self, x: Tensor, rows: np.ndarray) -> Tensor:
        a = self._directions[torch.from_numpy(rows)]
        matrices = 2.0 * a[:, :, None] * a[:, None, :] + 0.5 * torch.eye(3, dtype=torch.float64)
        i, j = torch.triu_indices(3, 3)
        matrices = matrices * (math.sqrt(2.0) + (1.0 - math.sqrt(2.0)) * torch.eye(3, dtype=torch.float64))
        return matrices[:, i, j]

    def _products(self, x: Tensor, v: Tensor, rows: np.ndarray) -> Tensor:
        return self._gradients(v, rows, None)

    def excess(self, x: Tensor, solution: Solution, rows: np.ndarray | None = None) -> Tensor:
        """f_i(x) - f_i(x*) - <grad f_i(x*), x - x*>, shape (rows,); x* = 0, so this is f_i(x)."""
        return self._values(x - solution.x, self._rows(rows))


@dataclass(frozen=True)
class Counterexample(Problem):
    """f_i(x) = <a_i, x>^2 + ||x||^2 / 4 for a = (-3, 2, 2), (2, -3, 2), (2, 2, -3), from x^0 = scale (1, 1, 1).

    Each worker's largest gradient entry points away from the solution, so direct Top-1 multiplies x by exactly
    1 + 11 step / 6 per round, for every stepsize. Error feedback repairs it. The Hessian of f has the eigenvalues
    7/6, 103/6 and 103/6; L_i = 69/2; x* = 0.

    Parameters
    ----------
    scale : how far the start is from the solution, in each coordinate.

    Examples
    --------
    >>> Counterexample().constants().L_max.value
    34.5
    """

    scale: Annotated[float, Interval(0.0, open="low")] = 1.0

    name: ClassVar[str] = "counterexample"
    example: ClassVar[str] = "counterexample"
    source: ClassVar[Source | None] = Source(
        authors="Aleksandr Beznosikov, Samuel Horváth, Peter Richtárik, Mher Safaryan",
        year=2020,
        arxiv="2002.12410",
        where="example of divergence",
        title="On Biased Compression for Distributed Learning",
    )

    @property
    def n(self) -> int:
        """Three workers."""
        return 3

    def oracles(self, block: Block, data_dir: Path | None = None) -> CounterexampleOracles:
        """The oracles of a block; needs no data."""
        return CounterexampleOracles(self.scale, block)

    def constants(self, data_dir: Path | None = None) -> Constants:
        """All constants, exact, by hand."""
        return _constants()

    def solution(self, data_dir: Path | None = None) -> Solution:
        """x* = 0 with f* = 0, exactly."""
        return Solution(torch.zeros(3, dtype=torch.float64), 0.0, 0.0)


@functools.lru_cache(maxsize=1)
def _constants() -> Constants:
    """With M = mean a_i a_i' (eigenvalues 1/3, 25/3, 25/3) and ||a_i||^2 = 17: H = 2 M + I/2, mean H_i^2 = 70 M + I/4.

    The H_i - H differ by a permutation of coordinates, so one norm serves all: orthogonally to a_i and (1, 1, 1) the
    eigenvalue is -50/3, and the other two have the sum 50/3 and the product -200/9. Of 2 (a_i a_i' - a_1 a_1') they are
    +-2 sqrt(17^2 - <a_i, a_1>^2), with <a_i, a_1> = -8.
    """
    spread = math.sqrt(2600.0) / 3.0  # mean H_i^2 - H^2 = 68 M - 4 M^2, largest at 25/3
    apart = (25.0 + math.sqrt(825.0)) / 3.0
    values = {
        "L": 103.0 / 6.0,
        "L_max": 34.5,
        "L_tilde": 34.5,
        "L_plus": math.sqrt(70.0 * 25.0 / 3.0 + 0.25),
        "L_pm": spread,
        "mu": 7.0 / 6.0,
        "mu_workers": 0.5,
        "delta": apart,
        "delta_server": apart,
        "delta_mean": spread,
        "delta_first": 30.0,
        "L_sample": 34.5,
        "sigma_star": 0.0,
        "hessian_lipschitz": 0.0,
    }
    known = {name: Constant(value, how="closed form") for name, value in values.items()}
    return Constants(L_workers=(34.5,) * 3, **known)
