"""Guarantees: the stepsize, rate and Lyapunov function that a theorem gives, with its assumptions and source."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor

from laconic.core import rows
from laconic.core.delay import Delays
from laconic.core.entry import Source
from laconic.core.problem import Constant, Constants, Kind, Oracles, Problem, Solution


class _Withheld(Constants):
    """In the place of the constants of a function where there is none to minimise: whoever asks has no theorem."""

    def __init__(self) -> None:
        pass

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name) if name.startswith("__") else _about_minimisation()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Withheld)

    def __hash__(self) -> int:
        return hash(_Withheld)

    def __repr__(self) -> str:
        return "withheld"


def _about_minimisation() -> NoReturn:
    raise NoTheorem(
        "its theorem is about minimisation, and the problem is a variational inequality; give an explicit step, or use "
        "a method for those, such as extragradient"
    )


@dataclass(frozen=True)
class Setting:
    """What a theorem is asked about: constants, workers, the shape of x, and terms per worker (fewest, most).

    `composite`: a regulariser is added to f, whose constants are those of f alone. `matrices` gives the smoothness
    matrices (see `Problem.smoothness_matrices`) where somebody asks for them. `monotone` are the constants of a
    variational problem, None of all others; whoever asks such a setting for `constants`, which theorems about
    minimisation are made of, gets NoTheorem. Methods for operators ask for `operator`.
    `delays` are those of the run's workers in virtual time, None where it has none. `solution` gives the minimiser to
    methods that are told it (`newton_star`), which no method in earnest is.
    """

    constants: Constants
    n: int
    shape: tuple[int, ...]
    terms: tuple[int, int] = (1, 1)
    convex: bool = True
    composite: bool = False
    matrices: Callable[[], Tensor | None] | None = field(default=None, compare=False, repr=False)
    monotone: Constants | None = None
    delays: Delays | None = None
    solution: Callable[[], Solution | None] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of(
        problem: Problem, oracles: Oracles, terms: tuple[int, int] | None = None, data_dir: Path | None = None
    ) -> Setting:
        """Of a problem and what a block of it computes; without `terms` the block is all workers."""
        if terms is None:
            counts = oracles.terms()
            terms = int(counts.min()), int(counts.max())
        constants = problem.constants(data_dir)
        return Setting(
            _Withheld() if oracles.variational else constants,
            problem.n,
            oracles.shape,
            terms,
            oracles.convex,
            oracles.regulariser is not None,
            functools.partial(problem.smoothness_matrices, data_dir),
            constants if oracles.variational else None,
            solution=functools.partial(problem.solution, data_dir),
        )

    @property
    def variational(self) -> bool:
        """Whether the problem is a variational inequality."""
        return self.monotone is not None

    @property
    def operator(self) -> Constants:
        """The constants of the operator: of F of a variational problem, of the gradient of any other."""
        return self.constants if self.monotone is None else self.monotone

    @property
    def d(self) -> int:
        """The number of coordinates of x."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Snapshot:
    """What a Lyapunov function may look at: the run's state at one iteration and the problem's solution.

    `x` is the model (*shape), `gap` is f(x) - f*, `gradient` is grad f(x) (*shape), `state` the method's state, whose
    memory belongs to the mechanism.
    """

    x: Tensor
    gap: float
    gradient: Tensor
    state: Any
    oracles: Oracles
    solution: Solution


@dataclass(frozen=True)
class Terms:
    """A Lyapunov value in parts: `shared` + the mean over all workers of `workers` (local,) + `of_mean`(mean vector).

    The mean vector is that of `vectors` (local, *shape) over all workers.
    """

    shared: float
    workers: Tensor | None = None
    vectors: Tensor | None = None
    of_mean: Callable[[Tensor], float] | None = None

    @property
    def value(self) -> float:
        """The sum, on a party that hosts all workers."""
        total = self.shared
        if self.vectors is not None and self.of_mean is not None:
            total += self.of_mean(rows.mean(self.vectors))
        if self.workers is not None:
            total += math.fsum(self.workers.tolist()) / len(self.workers)
        return total


@dataclass(frozen=True)
class Guarantee:
    """What a theorem promises.

    Attributes
    ----------
    step : the largest stepsize it allows.
    source : authors, year, theorem.
    rate : the factor by which E[lyapunov] shrinks per iteration, or None where the theorem gives none.
    lyapunov : computes the Lyapunov function from a :class:`Snapshot`.
    plateau : what remains of the Lyapunov function in the limit (0: exact convergence).
    gap_factor : E f(x_k) - f* <= gap_factor * (rate^k * the first lyapunov + plateau), or None.
    assumes : the assumptions, in words.
    tight : whether instances attain the bound.
    sure : False where a constant is recalled and was not re-derived or read in the paper.
    leans_on : constants that are estimates, on which the promise depends.
    average : log of the weight of x_k in the average iterate that the theorem is about, k = 0, 1, ... (logs, because
        weights may grow geometrically; -inf is no weight); None where the theorem is about x_k itself.
    """

    step: float
    source: Source
    rate: float | None = None
    lyapunov: Callable[[Snapshot], Terms] | None = None
    plateau: float = 0.0
    gap_factor: float | None = None
    assumes: tuple[str, ...] = ()
    tight: bool = False
    sure: bool = True
    leans_on: tuple[str, ...] = ()
    average: Callable[[int], float] | None = None

    def at(self, step: float | None) -> Guarantee:
        """What is left of it at a stepsize: beyond the largest one there is no rate and no Lyapunov function."""
        if step is None or step <= self.step * (1.0 + 1e-12):
            return self
        return replace(self, rate=None, lyapunov=None, gap_factor=None, average=None)


class NoTheorem(ValueError):
    """No theorem covers this combination: an explicit stepsize is needed. The message says why."""


def estimates(**constants: Constant | None) -> tuple[str, ...]:
    """The names of those constants that are only estimates, for `Guarantee.leans_on`."""
    return tuple(name for name, c in constants.items() if c is not None and c.kind is Kind.ESTIMATE)


def known(**constants: Constant | None) -> tuple[float, ...]:
    """The values of the constants; raises NoTheorem naming the first that the problem does not know."""
    for name, constant in constants.items():
        if constant is None:
            raise NoTheorem(f"the theorem needs {name}, which this problem does not know; give an explicit step")
    return tuple(float(c) for c in constants.values() if c is not None)
