"""Any smooth problem with a regulariser, and the lasso."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.core.problem import Problem
from laconic.core.regulariser import Regulariser
from laconic.problems._composite import CompositeProblem
from laconic.problems.least_squares import LeastSquares
from laconic.problems.ridge import SPLITS
from laconic.regularisers.l1 import L1


@dataclass(frozen=True)
class Composite(CompositeProblem):
    """f + r: a problem of the catalogue with a regulariser, for methods with a proximal step (`gd`).

    `composite(logistic(l2=1e-3), box(low=-0.5, high=0.5))` is logistic regression in a box. The solution is certified
    by ||s||^2 / (2 mu), s the shortest subgradient, where f is mu-strongly convex, and by convexity alone for linear
    models in a bounded box or with the l1 norm (a duality gap); of a saddle point, such as
    `composite(saddle, box(low=-1.0, high=1.0))`, by ||s||^2 / mu^2. x^0 is that of f, projected where r is infinite.
    The trace shows f + r, its gap, and the squared norm of the shortest subgradient; constants are those of f.

    Parameters
    ----------
    problem : f.
    regulariser : r, which everyone knows: it costs no communication.

    Raises
    ------
    ValueError : a problem that has a regulariser already.

    Examples
    --------
    >>> from laconic.problems.ridge import Ridge
    >>> from laconic.regularisers.box import Box
    >>> problem = Composite(Ridge(l2=0.1), Box(low=0.0, high=0.2))
    >>> str(problem)
    'composite(ridge(l2=0.1), box(low=0.0, high=0.2))'
    >>> bool((problem.solution().x == 0.2).any())
    True
    """

    problem: Problem
    regulariser: Regulariser

    name: ClassVar[str] = "composite"
    example: ClassVar[str] = "composite(ridge(l2=0.01), l1(weight=0.1))"
    source: ClassVar[Source | None] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.problem, CompositeProblem):
            raise ValueError(f"Composite(problem={self.problem}) : problem must be one without a regulariser")

    def parts(self) -> tuple[Problem, Regulariser]:
        """f and r."""
        return self.problem, self.regulariser


@dataclass(frozen=True)
class Lasso(CompositeProblem):
    """f_i(x) = ||A_i x - y_i||^2 / (2 m_i) and r(x) = l1 ||x||_1: `composite(least_squares(...), l1(weight=l1))`.

    With equal m_i this is ||A x - y||^2 / (2 m) + l1 ||x||_1 over all m rows, which is scikit-learn's scaling; the
    literature's ||A x - y||^2 / 2 + t ||x||_1 is m times it with t = m l1. From l1 = max_j |(A'y)_j| / m on the
    solution is 0.

    Parameters
    ----------
    data, workers, split, drop_last, seed, features : as for `ridge`.
    l1 : the weight of the norm.

    Raises
    ------
    ValueError : data absent or broken, or more workers than rows.

    Examples
    --------
    >>> int((Lasso(l1=0.1).solution().x != 0).sum()), Lasso().constants().L.kind.value
    (4, 'exact')
    """

    data: str = "diabetes"
    l1: Annotated[float, Interval(0.0, open="low")] = 0.1
    workers: Annotated[int, Count(1)] = 10
    split: Annotated[str, OneOf(SPLITS)] = "contiguous"
    drop_last: bool = False
    seed: Annotated[int, Count(0)] = 0
    features: Annotated[int | None, Count(1)] = None

    name: ClassVar[str] = "lasso"
    example: ClassVar[str] = "lasso(data='diabetes', l1=0.1, workers=10)"
    source: ClassVar[Source | None] = Source(
        authors="Robert Tibshirani",
        year=1996,
        title="Regression shrinkage and selection via the lasso",
    )

    def parts(self) -> tuple[Problem, Regulariser]:
        """Least squares and the l1 norm."""
        rows = LeastSquares(
            self.data,
            self.workers,
            split=self.split,
            drop_last=self.drop_last,
            seed=self.seed,
            features=self.features,
        )
        return rows, L1(self.l1)
