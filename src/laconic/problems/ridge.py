"""Ridge regression on sparse rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.problems import _data, _split
from laconic.problems._base import LinearProblem
from laconic.problems._linear import SQUARED, Dealt, Model, deal

SPLITS = ("contiguous", "shuffled", "sorted")


@dataclass(frozen=True)
class Ridge(LinearProblem):
    """f_i(x) = ||A_i x - y_i||^2 / (2 m_i) + l2 / 2 ||x||^2, with worker i's m_i rows.

    All constants are exact, by eigenvalues, while n d^3 is at most 2e9; beyond it L_plus, L_pm and mu are bounds and
    the similarities delta estimates. x^0 = 0.

    Parameters
    ----------
    data : "diabetes" (features and target standardised), or a LIBSVM file by name (from --data-dir, else LACONIC_DATA)
        or path.
    l2 : the weight of ||x||^2 / 2; an intercept is regularised too. With 0 this is `least_squares`.
    workers : n. All rows are dealt, and sizes differ by at most one.
    intercept : whether a column of ones is appended.
    split : "contiguous" (the file's order), "shuffled" or "sorted" (by target).
    drop_last : leave out the tail, so that all workers have rows // workers rows.
    seed : of the split.
    features : the number of features, where the file does not use its last ones.

    Raises
    ------
    ValueError : data absent or broken, or more workers than rows.

    Examples
    --------
    >>> problem = Ridge(workers=4)
    >>> problem.constants().mu.kind.value
    'exact'
    """

    data: str = "diabetes"
    l2: Annotated[float, Interval(0.0)] = 1e-2
    workers: Annotated[int, Count(1)] = 10
    intercept: bool = False
    split: Annotated[str, OneOf(SPLITS)] = "contiguous"
    drop_last: bool = False
    seed: Annotated[int, Count(0)] = 0
    features: Annotated[int | None, Count(1)] = None

    name: ClassVar[str] = "ridge"
    example: ClassVar[str] = "ridge(data='diabetes', l2=1e-2, workers=10)"
    source: ClassVar[Source | None] = Source(
        authors="Arthur E. Hoerl, Robert W. Kennard",
        year=1970,
        title="Ridge Regression: Biased Estimation for Nonorthogonal Problems",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def model(self) -> Model:
        """The squared loss with the ridge."""
        return Model(SQUARED, self.l2)

    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows in the order of the workers."""
        table = _data.load(self.data, data_dir, self.features)
        dealing = _split.Dealing(_split.named(self.split, 1.0), self.seed, self.drop_last)
        return targets(table, dealing, self.workers, self.intercept)


@functools.lru_cache(maxsize=8)
def targets(table: _data.Table, dealing: _split.Dealing, workers: int, intercept: bool) -> Dealt:
    """The rows of a table with any targets, dealt; the same object for the same dealing."""
    return deal(table, table.targets, dealing, workers, intercept)
