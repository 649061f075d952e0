"""What the parts of `similarity_lecture` share: data that are alike by chance, what a run costs, and fitted slopes."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd

from laconic.core.keys import Keys
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.lab.run import Runs, run
from laconic.lab.trace import numbers
from laconic.problems.custom import Custom

DELTA = 0.2  # similarity of the rotated quadratics, whose L is 1
LONGEST = 10**6  # iterations


class Lecture(Protocol):
    """What is asked of the recipe: its sizes."""

    @property
    def d(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def rows(self) -> int: ...
    @property
    def doublings(self) -> int: ...
    @property
    def most(self) -> int: ...
    @property
    def ratio(self) -> float: ...
    @property
    def accuracy(self) -> float: ...
    @property
    def seeds(self) -> int: ...


# ---- data ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Independent rows: features (M, N, d), of variance j^-(2 decay) in coordinate j, and Gaussian noise (M, N)."""

    features: np.ndarray
    noise: np.ndarray
    decay: float

    @staticmethod
    def draw(workers: int, rows: int, d: int, decay: float, seed: int) -> Sample:
        """The first workers' rows do not depend on how many workers there are."""
        keys = Keys(seed, 0, "recipe/similarity", np.arange(workers), workers)
        drawn = keys.normal(rows * (d + 1)).numpy().reshape(workers, rows, d + 1)
        return Sample(drawn[:, :, :d] * _scales(d, decay), drawn[:, :, d], decay)

    @property
    def hessians(self) -> np.ndarray:
        """A_i'A_i / N, of the squared loss without the ridge."""
        return np.einsum("mni,mnj->mij", self.features, self.features) / self.features.shape[1]

    def l2_for(self, ratio: float) -> float:
        """The l2 with which delta_mean / mu of `ridge` is as asked for, if it can be."""
        mean = self.hessians.mean(0)
        away = self.hessians - mean
        delta = math.sqrt(np.linalg.eigvalsh((away @ away).mean(0))[-1])
        return max(1e-6, delta / ratio - float(np.linalg.eigvalsh(mean)[0]))

    def ridge(self, l2: float) -> Problem:
        """Squared loss; every coordinate weighs the same in what is to be predicted."""
        d = self.features.shape[2]
        targets = (self.features / _scales(d, self.decay)).sum(2) / math.sqrt(d) + self.noise
        return Custom.from_arrays(list(self.features), list(targets), loss="ridge", l2=l2)

    def logistic(self, l2: float) -> Problem:
        """The signs of the same targets, with half the noise, as labels."""
        return self.scaled(1.0, l2)

    def scaled(self, factor: float, l2: float) -> Problem:
        """The logistic problem with longer features and the same labels."""
        d = self.features.shape[2]
        targets = (self.features / _scales(d, self.decay)).sum(2) / math.sqrt(d) + 0.5 * self.noise
        rows = list(factor * self.features)
        return Custom.from_arrays(rows, list(np.sign(targets)), loss="logistic", l2=l2)


def _scales(d: int, decay: float) -> np.ndarray:
    return np.arange(1.0, d + 1.0) ** -decay


def rotated(d: int, workers: int, mu: float, smooth: float = 1.0) -> str:
    """Quadratics in a random basis with similarity `DELTA`, beside which mu and L are chosen."""
    return f"rotated_quadratic(d={d}, workers={workers}, mu={mu!r}, smooth={smooth!r}, similarity={DELTA!r}, seed=1)"


def problem_of(spec: str | Problem) -> Problem:
    return cast(Problem, parse(spec)) if isinstance(spec, str) else spec


def constants_of(problem: str | Problem) -> dict[str, float]:
    """Those that are known, by name."""
    return {name: float(value) for name, value in problem_of(problem).constants().named().items()}


# ---- runs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a method had spent when its gap was `accuracy` times the first one; infinite where it never was.

    vectors : the busiest worker's uplink bytes, in units of d numbers.  gradients : of every worker, products with
    Hessians among them.  server : gradients of the server's f_1.
    """

    iterations: float = math.inf
    rounds: float = math.inf
    vectors: float = math.inf
    messages: float = math.inf
    gradients: float = math.inf
    server: float = math.inf


def first_gap(problem: str | Problem) -> float:
    """f(x^0) - f*."""
    problem = problem_of(problem)
    oracles, solution = problem.host(Block.whole(problem.n)), problem.solution()
    assert solution is not None
    return float(oracles.values(oracles.start()).mean()) - solution.value


@functools.lru_cache(maxsize=128)
def course(problem: str | Problem, spec: str, accuracy: float, every: int = 1, seed: int = 0) -> Runs:
    """A run until the gap is that share of the first; the same one where it is asked for again."""
    return run(
        problem, [(spec, spec)], iterations=LONGEST, until=accuracy * first_gap(problem), every=every, seeds=[seed]
    )


def cost_of(problem: str | Problem, spec: str, accuracy: float, every: int = 1, seed: int = 0) -> Cost:
    """What that run costs."""
    runs = course(problem, spec, accuracy, every, seed)
    if runs.results[0]["status"] != "reached":
        return Cost()
    return _at(runs.trace.iloc[-1], problem_of(problem))


def mean_cost(problem: str | Problem, spec: str, accuracy: float, every: int, seeds: int) -> Cost:
    """The mean over seeds."""
    costs = [cost_of(problem, spec, accuracy, every, seed) for seed in range(seeds)]
    return Cost(*(float(np.mean(values)) for values in zip(*(vars(cost).values() for cost in costs), strict=True)))


def _at(row: Any, problem: Problem) -> Cost:
    d = problem.oracles(Block(0, 1, problem.n)).d
    return Cost(
        float(row["iteration"]),
        float(row["rounds"]),
        float(row["uplink_max"]) / (8.0 * d),
        float(row["messages"]),
        float(row["gradients"] + row["products"]),
        float(row["server_gradients"]),
    )


# ---- slopes ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Slope:
    """The slope of a line on logarithmic axes, with its interval of 95% (NaN for three points or fewer)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        around = "" if math.isnan(self.low) else f" (95%: {self.low:.2f} to {self.high:.2f})"
        return f"{self.value:.2f}{around}"


def slope(x: Any, y: Any) -> Slope:
    """Least squares of log y over log x. Where a y is infinite, so is the slope."""
    a, b = np.log(np.asarray(x, dtype=float)), np.log(np.maximum(np.asarray(y, dtype=float), 1e-300))
    if not np.isfinite(b).all():
        return Slope(math.inf, math.nan, math.nan)
    from scipy import stats  # its import takes longer than this part of the recipe

    fit = cast(Any, stats.linregress(a, b))
    value = float(fit.slope)
    around = float(fit.stderr * stats.t.ppf(0.975, len(a) - 2)) if len(a) > 3 else math.nan
    return Slope(value, value - around, value + around)


def column(table: Any, name: str) -> np.ndarray:
    """A column of a table as float64."""
    return numbers(cast(pd.DataFrame, table), name)
