"""Logistic regression on sparse rows, with a ridge or a non-convex regulariser."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.problems import _data, _split
from laconic.problems._base import LinearProblem
from laconic.problems._linear import LOGISTIC, Dealt, Model, deal

SPLITS = ("contiguous", "shuffled", "sorted", "dirichlet")


@dataclass(frozen=True)
class Logistic(LinearProblem):
    """f_i(x) = mean_j log(1 + exp(-b_j <a_j, x>)) + l2 / 2 ||x||^2 + nonconvex sum_k x_k^2 / (1 + x_k^2) over i's rows.

    Rows stay sparse. L and L_i are exact (attained at x = 0), mu >= l2, L_plus and L_pm are bounds, the similarities
    delta are estimates at a few points. x^0 = 0.

    Parameters
    ----------
    data : "breast_cancer" (standardised), "digits" (0-4 against 5-9, scaled to [0, 1]), or a LIBSVM file by name (from
        --data-dir, else LACONIC_DATA; .xz, .bz2 and .gz are read directly) or path.
        Labels are -1/+1, 0/1 or 1/2.
    l2 : the weight of ||x||^2 / 2; an intercept is regularised too. With 0 there is no certified solution.
    workers : n. All rows are dealt, and sizes differ by at most one.
    intercept : whether a column of ones is appended.
    split : "contiguous" (the file's order), "shuffled", "sorted" (by label) or "dirichlet" (skewed labels, sizes equal
        all the same).
    concentration : of the Dirichlet split; small is more skewed.
    nonconvex : the weight of sum x^2 / (1 + x^2); above 0, f is not convex and has no solution.
    drop_last : leave out the tail, so that all workers have rows // workers rows, as in the FedNL papers.
    seed : of the split.
    features : the number of features, where the file does not use its last ones.

    Raises
    ------
    ValueError : data absent or broken, more workers than rows, labels that are not two classes.

    Examples
    --------
    >>> problem = Logistic(l2=1e-2, workers=4)
    >>> problem.constants().mu.value
    0.01
    """

    data: str = "breast_cancer"
    l2: Annotated[float, Interval(0.0)] = 1e-3
    workers: Annotated[int, Count(1)] = 10
    intercept: bool = False
    split: Annotated[str, OneOf(SPLITS)] = "contiguous"
    concentration: Annotated[float, Interval(0.0, open="low")] = 0.5
    nonconvex: Annotated[float, Interval(0.0)] = 0.0
    drop_last: bool = False
    seed: Annotated[int, Count(0)] = 0
    features: Annotated[int | None, Count(1)] = None

    name: ClassVar[str] = "logistic"
    example: ClassVar[str] = "logistic(data='breast_cancer', l2=1e-3, workers=10)"
    source: ClassVar[Source | None] = Source(
        authors="Peter Richtárik, Igor Sokolov, Ilyas Fatkhullin",
        year=2021,
        arxiv="2106.05203",
        where="experiments",
        title="EF21: A New, Simpler, Theoretically Better, and Practically Faster Error Feedback",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def model(self) -> Model:
        """The logistic loss with both regularisers."""
        return Model(LOGISTIC, self.l2, self.nonconvex)

    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows in the order of the workers."""
        table = _data.load(self.data, data_dir, self.features)
        dealing = _split.Dealing(_split.named(self.split, self.concentration), self.seed, self.drop_last)
        return two_classes(table, dealing, self.workers, self.intercept)


@functools.lru_cache(maxsize=8)
def two_classes(table: _data.Table, dealing: _split.Dealing, workers: int, intercept: bool) -> Dealt:
    """The rows of a table whose labels are two classes, dealt; the same object for the same dealing."""
    return deal(table, _data.signs(table.targets, table.name), dealing, workers, intercept)
