"""Least squares on sparse rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from laconic.core.entry import Count, OneOf, Source
from laconic.problems import _data, _split
from laconic.problems._base import LinearProblem
from laconic.problems._linear import SQUARED, Dealt, Model
from laconic.problems.ridge import SPLITS, targets


@dataclass(frozen=True)
class LeastSquares(LinearProblem):
    """f_i(x) = ||A_i x - y_i||^2 / (2 m_i), with worker i's m_i rows: `ridge` without its l2.

    Where the rows span the space, f is mu-strongly convex. Else it has no mu but a Polyak-Lojasiewicz constant, the
    least eigenvalue of its Hessian that is not 0 (`mu_pl`), and many minimisers; the solution is the one of least norm,
    to which gradient descent from x^0 = 0 goes. Compressed methods may go to another one, so look at the gap there, not
    at the distance. Constants as for `ridge`.

    Parameters
    ----------
    data, workers, intercept, split, drop_last, seed, features : as for `ridge`.

    Raises
    ------
    ValueError : data absent or broken, or more workers than rows.

    Examples
    --------
    >>> constants = LeastSquares(data="digits").constants()  # some pixels are always white
    >>> constants.mu is None, constants.mu_pl.kind.value
    (True, 'exact')
    """

    data: str = "diabetes"
    workers: Annotated[int, Count(1)] = 10
    intercept: bool = False
    split: Annotated[str, OneOf(SPLITS)] = "contiguous"
    drop_last: bool = False
    seed: Annotated[int, Count(0)] = 0
    features: Annotated[int | None, Count(1)] = None

    name: ClassVar[str] = "least_squares"
    example: ClassVar[str] = "least_squares(data='diabetes', workers=10)"
    source: ClassVar[Source | None] = Source(
        authors="Peter Richtárik, Igor Sokolov, Ilyas Fatkhullin",
        year=2021,
        arxiv="2106.05203",
        where="experiments under the Polyak-Lojasiewicz condition",
        title="EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def model(self) -> Model:
        """The squared loss."""
        return Model(SQUARED, 0.0)

    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows in the order of the workers."""
        table = _data.load(self.data, data_dir, self.features)
        dealing = _split.Dealing(_split.named(self.split, 1.0), self.seed, self.drop_last)
        return targets(table, dealing, self.workers, self.intercept)
