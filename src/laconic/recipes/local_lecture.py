"""A lecture's middle: local steps, the lower bound on rounds, finite sums, and collectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import pandas as pd

from laconic.core.entry import Count, Interval, Source
from laconic.lab.figures import Grid
from laconic.lab.recipe import Bench, Outcome, Recipe, Verdict
from laconic.recipes._common import timed
from laconic.recipes._local_lecture_bounds import alike, lower_bound, stochastic
from laconic.recipes._local_lecture_limits import local_methods
from laconic.recipes._local_lecture_network import network
from laconic.recipes._local_lecture_sums import estimator, sums


@dataclass(frozen=True)
class LocalLecture(Recipe):
    """Every claim about local methods, lower bounds, finite sums and collectives of a lecture, put to numbers.

    Logistic regression and a ridge on data of the library, a chain dealt to two workers on which the lower bound on
    rounds is exact, sums whose constants are known, and the library's model of networks. All steps are the theorems'
    own unless a claim is about another step; where the claim is about the best step, steps are tuned.

    Parameters
    ----------
    data : of the logistic regression: embedded, or a LIBSVM file.
    l2 : its regularisation.
    rounds : of its curves.
    condition : the largest L / mu of the slopes over L / mu; for sums a quarter of it.
    components : the largest n of the slopes over n.
    accuracy : of the first gap, where rounds and gradients are counted.
    most : the largest number of workers of the speed-ups.
    seeds : for what is random.

    >>> LocalLecture().small().condition
    256.0
    """

    data: str = "breast_cancer"
    l2: Annotated[float, Interval(0.0, open="low")] = 0.01
    rounds: Annotated[int, Count(10)] = 2000
    condition: Annotated[float, Interval(64.0)] = 4096.0
    components: Annotated[int, Count(16)] = 256
    accuracy: Annotated[float, Interval(0.0, 0.1, open="low")] = 1e-8
    most: Annotated[int, Count(64)] = 4096
    seeds: Annotated[int, Count(1)] = 3

    name: ClassVar[str] = "local_lecture"
    example: ClassVar[str] = "local_lecture"
    title: ClassVar[str] = "Local steps, finite sums and collectives: what a lecture says and what the numbers say"
    source: ClassVar[Source | None] = Source(
        "Beznosikov",
        2023,
        "Lecture on distributed optimization (slides, 5 December 2023)",
        where="collectives, local methods, lower bounds, and the slides on finite sums",
    )

    def small(self) -> LocalLecture:
        return LocalLecture(l2=0.1, rounds=150, condition=256.0, components=64, accuracy=2e-4, most=1024, seeds=1)

    def run(self, bench: Bench) -> Outcome:
        seeds, accuracy = self.seeds, self.accuracy
        lengths = (10, 60, self.rounds // 4) if self.rounds > 240 else (10, 60)
        parts: dict[str, Callable[[], Outcome]] = {
            "network": lambda: network(self.most),
            "local methods": lambda: local_methods(self.data, self.l2, self.rounds, bench.data_dir),
            "lower bound": lambda: lower_bound(self.condition, accuracy, seeds),
            "stochastic gradients": lambda: stochastic(lengths, seeds, bench.jobs),
            "workers alike": lambda: alike(1e-7),
            "finite sums": lambda: sums(self.condition / 4.0, self.components, accuracy, seeds),
            "estimator": estimator,
        }
        verdicts: list[Verdict] = []
        figures: dict[str, Grid] = {}
        tables: dict[str, pd.DataFrame] = {}
        minutes: dict[str, float] = {}
        for label, part in parts.items():
            with timed(minutes, label):
                found = part()
            verdicts += found.verdicts
            figures |= found.figures
            tables |= found.tables
        return Outcome(verdicts, figures, tables, minutes)
