"""Binary classification by the squared sigmoid: a smooth, bounded, non-convex loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from laconic.core.entry import Count, Interval, OneOf, Source
from laconic.problems import _data, _split
from laconic.problems._base import LinearProblem
from laconic.problems._linear import SIGMOID, Dealt, Model
from laconic.problems.logistic import SPLITS, two_classes


@dataclass(frozen=True)
class SquaredSigmoid(LinearProblem):
    """f_i(x) = mean_j (1 - sigma(b_j <a_j, x>))^2 + l2 / 2 ||x||^2 over i's rows, sigma(t) = 1 / (1 + exp(-t)).

    MARINA's problem. Not convex: no solution and no gap. The second derivative of the loss lies in
    [-0.12020, 0.15406], so L_i = 0.15406 lambda_max(A_i'A_i) / m_i + l2 is a bound, and below the 0.154 max ||a_j||^2
    that the paper's experiments use. L, L_plus and L_pm are bounds too, the similarities delta are estimates. x^0 = 0.

    Parameters
    ----------
    data : as for `logistic`.
    l2 : the weight of ||x||^2 / 2.
    workers : n. All rows are dealt, and sizes differ by at most one.
    intercept : whether a column of ones is appended, as in the paper's experiments.
    split, concentration, drop_last, seed, features : as for `logistic`.

    Raises
    ------
    ValueError : data absent or broken, more workers than rows, labels that are not two classes.

    Examples
    --------
    >>> problem = SquaredSigmoid(workers=5)
    >>> problem.solution() is None, problem.constants().L.kind.value
    (True, 'bound')
    """

    data: str = "breast_cancer"
    l2: Annotated[float, Interval(0.0)] = 0.0
    workers: Annotated[int, Count(1)] = 10
    intercept: bool = False
    split: Annotated[str, OneOf(SPLITS)] = "contiguous"
    concentration: Annotated[float, Interval(0.0, open="low")] = 0.5
    drop_last: bool = False
    seed: Annotated[int, Count(0)] = 0
    features: Annotated[int | None, Count(1)] = None

    name: ClassVar[str] = "squared_sigmoid"
    aliases: ClassVar[tuple[str, ...]] = ("marina_loss",)
    example: ClassVar[str] = "squared_sigmoid(data='breast_cancer', workers=5)"
    source: ClassVar[Source | None] = Source(
        authors="Eduard Gorbunov, Konstantin Burlachenko, Zhize Li, Peter Richtárik",
        year=2021,
        arxiv="2102.07845",
        where="experiments",
        title="MARINA: Faster Non-Convex Distributed Learning with Compression",
    )

    @property
    def n(self) -> int:
        """The number of workers."""
        return self.workers

    def model(self) -> Model:
        """The squared sigmoid with the ridge."""
        return Model(SIGMOID, self.l2)

    def dealt(self, data_dir: Path | None = None) -> Dealt:
        """The rows in the order of the workers."""
        table = _data.load(self.data, data_dir, self.features)
        dealing = _split.Dealing(_split.named(self.split, self.concentration), self.seed, self.drop_last)
        return two_classes(table, dealing, self.workers, self.intercept)
