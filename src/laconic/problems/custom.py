"""Your own problem: a LIBSVM file in a spec string, or from Python your arrays or your torch.nn.Module."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.core.problem import Constants, Solution
from laconic.problems import _arrays, _module
from laconic.problems._base import LinearProblem
from laconic.problems._linear import Dealt, Model
from laconic.problems.logistic import SPLITS, Logistic
from laconic.problems.ridge import Ridge


@dataclass(frozen=True)
class Custom(LinearProblem):
    """A linear model on your LIBSVM file. In Python, `Custom.from_arrays` and `Custom.from_module` take your own data.

    Parameters
    ----------
    path : a LIBSVM file, plain, .xz, .bz2 or .gz; a name is looked up as for `logistic`.
    loss : "logistic" (two classes) or "ridge" (any targets, half the mean of squares).
    l2, workers, intercept, split, concentration, drop_last, seed, features : as for `logistic` and `ridge`.

    Raises
    ------
    ValueError : data absent or broken, more workers than rows, labels that are not two classes.

    Examples
    --------
    >>> import numpy as np
    >>> rows, labels = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]]), np.array([1, -1, 1])
    >>> problem = Custom.from_arrays(rows, labels, workers=3, l2=0.1)
    >>> problem.constants().mu.value
    0.1
    """

    path: str = "breast_cancer"
    loss: Annotated[str, OneOf(("logistic", "ridge"))] = "logistic"
    l2: Annotated[float, Interval(0.0)] = 1e-3
    workers: Annotated[int, Count(1)] = 10
    intercept: bool = False
    split: Annotated[str, OneOf(SPLITS)] = "contiguous"
    concentration: Annotated[float, Interval(0.0, open="low")] = 0.5
    drop_last: bool = False
    seed: Annotated[int, Count(0)] = 0
    features: Annotated[int | None, Count(1)] = None

    name: ClassVar[str] = "custom"
    example: ClassVar[str] = "custom(path='breast_cancer', loss='logistic', workers=10)"
    source: ClassVar[Source | None] = None

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def model(self) -> Model:
        """The loss with the ridge."""
        return _problem(self).model()

    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows in the order of the workers."""
        return _problem(self).dealt(data_dir)

    @staticmethod
    def from_arrays(
        rows: Any,
        labels: Any,
        *,
        workers: int | None = None,
        loss: str = "logistic",
        l2: float = 1e-3,
        nonconvex: float = 0.0,
        constants: Constants | None = None,
        solution: Solution | None = None,
    ) -> _arrays.Arrays:
        """A linear model on arrays in memory.

        Parameters
        ----------
        rows : one matrix (NumPy, torch or SciPy sparse, (rows, d)) that is dealt contiguously to `workers` workers, or
            a list of matrices, one per worker, in which other workers' numbers may be NaN.
        labels : a vector, or a list of vectors like `rows`. Two classes for the logistic loss.
        workers : n, where `rows` is one matrix.
        loss : "logistic" or "ridge".
        l2, nonconvex : weights of ||x||^2 / 2 and of sum x^2 / (1 + x^2).
        constants, solution : what you know already; otherwise computed, which needs the rows of all workers.

        Raises
        ------
        ValueError : shapes that do not fit, more workers than rows, labels that are not two classes.
        """
        return _arrays.build(rows, labels, workers, loss, l2, nonconvex, constants, solution)

    @staticmethod
    def from_module(
        module: torch.nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        inputs: Tensor | Sequence[Tensor],
        targets: Tensor | Sequence[Tensor],
        *,
        workers: int | None = None,
        l2: float = 0.0,
        convex: bool = False,
        constants: Constants | None = None,
        solution: Solution | None = None,
    ) -> _module.Modules:
        """A model trained on each worker's data: f_i(x) = loss(module(inputs_i), targets_i) + l2 / 2 ||x||^2.

        x is the vector of all parameters that ask for a gradient, and x^0 their present values. Gradients come from
        torch.func, worker by worker, so that they have the same bits in every block.

        Parameters
        ----------
        module : float64 or float32; its buffers are constants, and it must have no randomness (dropout).
        loss : a mean over rows, such as `torch.nn.functional.cross_entropy`.
        inputs, targets : one tensor each, dealt contiguously to `workers`, or lists with one tensor per worker.
        workers : n, where `inputs` is one tensor.
        l2 : the weight of ||x||^2 / 2.
        convex : whether you know that every f_i is convex.
        constants, solution : what you know already; otherwise smoothness is estimated by power iterations at x^0 and
            at a few points around it, and there is no solution.

        Raises
        ------
        ValueError : shapes that do not fit, more workers than rows, a module without parameters.
        """
        return _module.build(module, loss, inputs, targets, workers, l2, convex, constants, solution)


def _logistic(problem: Custom) -> Logistic:
    return Logistic(
        problem.path,
        problem.l2,
        problem.workers,
        problem.intercept,
        problem.split,
        problem.concentration,
        0.0,
        problem.drop_last,
        problem.seed,
        problem.features,
    )


def _ridge(problem: Custom) -> Ridge:
    return Ridge(
        problem.path,
        problem.l2,
        problem.workers,
        problem.intercept,
        problem.split,
        problem.drop_last,
        problem.seed,
        problem.features,
    )


LOSSES: dict[str, Callable[[Custom], LinearProblem]] = {"logistic": _logistic, "ridge": _ridge}


@functools.lru_cache(maxsize=16)
def _problem(problem: Custom) -> LinearProblem:
    return LOSSES[problem.loss](problem)
