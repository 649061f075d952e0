"""A lecture on data similarity: how alike workers are, the table of similarity methods, and four rates in messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import pandas as pd

from laconic.core.entry import Count, Interval, Source
from laconic.lab.figures import Grid
from laconic.lab.recipe import Bench, Outcome, Recipe, Verdict
from laconic.recipes._common import timed
from laconic.recipes._similarity_rates import rates
from laconic.recipes._similarity_table import table
from laconic.recipes._similarity_theory import mirror_descent, similarity


@dataclass(frozen=True)
class SimilarityLecture(Recipe):
    """Every claim about data similarity of a lecture on distributed optimization, put to numbers.

    The table of methods on quadratics whose delta and mu are chosen, and on ridge and logistic problems with
    independent rows; the rates in messages on ridge. All steps are the theorems' own unless a claim is about another.

    Parameters
    ----------
    d : the dimension of the quadratics; ridge and logistic problems have as many features, or a multiple.
    workers : M, where it is not varied.
    rows : a worker's local sample size N, where it is not varied.
    doublings : how many values of delta / mu, from 2, each twice the last; of N there are as many.
    most, ratio : the largest M and delta / mu of the messages.
    accuracy : the gap to reach, as a share of the first one.
    seeds : for what is random.

    >>> SimilarityLecture().small().most
    16
    """

    d: Annotated[int, Count(4)] = 20
    workers: Annotated[int, Count(2)] = 10
    rows: Annotated[int, Count(4)] = 100
    doublings: Annotated[int, Count(3)] = 8
    most: Annotated[int, Count(16)] = 256
    ratio: Annotated[float, Interval(2.0)] = 16.0
    accuracy: Annotated[float, Interval(0.0, 0.1, open="both")] = 1e-8
    seeds: Annotated[int, Count(1)] = 2

    name: ClassVar[str] = "similarity_lecture"
    example: ClassVar[str] = "similarity_lecture"
    title: ClassVar[str] = "Data similarity: what a lecture says and what the numbers say"
    source: ClassVar[Source | None] = Source(
        "Beznosikov",
        2023,
        "Lecture on distributed optimization (slides, 5 December 2023)",
        where="second half, from data similarity on",
    )

    def small(self) -> SimilarityLecture:
        return SimilarityLecture(d=10, workers=4, rows=30, doublings=3, most=16, ratio=3.0, accuracy=1e-4, seeds=1)

    def run(self, bench: Bench) -> Outcome:
        verdicts: list[Verdict] = []
        figures: dict[str, Grid] = {}
        tables: dict[str, pd.DataFrame] = {}
        minutes: dict[str, float] = {}
        for part in (similarity, mirror_descent, table, rates):
            with timed(minutes, part.__name__.replace("_", " ")):
                found = part(self)
            verdicts += found.verdicts
            figures |= found.figures
            tables |= found.tables
        return Outcome(verdicts, figures, tables, minutes)
