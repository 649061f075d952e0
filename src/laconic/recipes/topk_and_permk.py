"""TopK and PermK together: contraction, bias, three memories, and tuned curves by number of workers and noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from laconic.core.entry import Count, Interval, Range, Source
from laconic.lab.recipe import Bench, Outcome, Recipe
from laconic.recipes._common import timed
from laconic.recipes._topk_permk_claims import claims
from laconic.recipes._topk_permk_exact import exact
from laconic.recipes._topk_permk_memories import memories
from laconic.recipes._topk_permk_panels import cells, kept

LOW = 0.05  # noise up to here is low


@dataclass(frozen=True)
class Several(Range):
    """A tuple of different values, each in a range, and at least `least` of them."""

    each: Range
    least: int = 1

    def holds(self, value: Any) -> bool:
        return (
            isinstance(value, tuple)
            and len(set(value)) == len(value) >= self.least
            and all(self.each.holds(one) for one in value)
        )

    def examples_outside(self) -> tuple[Any, ...]:
        wrong = [(value,) for value in self.each.examples_outside()]
        return (*wrong, 3, "many", *([()] if self.least else []))

    def __str__(self) -> str:
        return f"a tuple of {f'at least {self.least}' if self.least else 'any number of'} different values, {self.each}"


@dataclass(frozen=True)
class TopKAndPermK(Recipe):
    """Every claim of a study on TopK behind PermK's blocks, counted out where possible and else run.

    The curves are on the quadratics of PermK's paper. k is a tenth of PermK's block d / n. Every method gets the bytes
    of `rounds` rounds of TopK, and its step is tuned by powers of two, beginning around 1 / L.

    Parameters
    ----------
    d : the dimension.
    workers : the numbers of workers, at most d; one row of panels each.
    noises : how unlike workers are, one column of panels each; one of them at most 0.05.
    mu : the least eigenvalue of the mean matrix; L is about 1.
    rounds : of TopK.
    seeds : on which the tuned methods are run.
    widen : how often the multiples of a step are widened where the best one lies at an end.
    further : more numbers of workers, at noises up to 0.05 alone, such as (1000,).
    theory_rounds : of the parts about memories and theorems.

    >>> TopKAndPermK().small().workers
    (4, 20)
    """

    d: Annotated[int, Count(10)] = 1000
    workers: Annotated[tuple[int, ...], Several(Count(2))] = (10, 100)
    noises: Annotated[tuple[float, ...], Several(Interval(0.0))] = (0.0, 0.05, 0.2, 0.8)
    mu: Annotated[float, Interval(0.0, open="low")] = 1e-6
    rounds: Annotated[int, Count(1)] = 8000
    seeds: Annotated[int, Count(1)] = 1
    widen: Annotated[int, Count(0)] = 4
    further: Annotated[tuple[int, ...], Several(Count(2), least=0)] = ()
    theory_rounds: Annotated[int, Count(10)] = 300

    name: ClassVar[str] = "topk_and_permk"
    example: ClassVar[str] = "topk_and_permk"
    title: ClassVar[str] = "TopK behind PermK's blocks: what a study says and what the numbers say"
    source: ClassVar[Source | None] = Source(
        "Acharya, Kharisov, Beznosikov",
        2023,
        "Research on the combination of Top-K and Perm-K gradient sparsification algorithms for distributed setting",
        where="slides, Scientific Practicum Conference, 19 May 2023",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        most = max((*self.workers, *self.further))
        if most > self.d:
            raise ValueError(f"TopKAndPermK(d={self.d}) : d must be at least the number of workers, here {most}")
        if set(self.workers) & set(self.further):
            raise ValueError(f"TopKAndPermK(further={self.further}) : further must hold none of the workers")
        if min(self.noises) > LOW:
            raise ValueError(f"TopKAndPermK(noises={self.noises}) : noises must hold one of at most {LOW}")

    def small(self) -> TopKAndPermK:
        return TopKAndPermK(d=40, workers=(4, 20), noises=(0.0, 0.8), mu=1e-3, rounds=100, widen=0, theory_rounds=50)

    def run(self, bench: Bench) -> Outcome:
        minutes: dict[str, float] = {}
        with timed(minutes, "what is counted out"):
            first = exact(self.d, self.workers[0], kept(self.d, self.workers[0]))
        with timed(minutes, "memories and theorems"):
            second = memories(self.theory_rounds)
        wanted = [(n, noise) for n in self.workers for noise in self.noises]
        wanted += [(n, noise) for n in self.further for noise in self.noises if noise <= LOW]
        found = cells(self, wanted, bench)
        third = claims(found)
        for cell in found:
            name = f"n = {cell.n}, noise {cell.noise:g}"
            minutes[f"{name}: {cell.curves} curves"] = cell.minutes
            minutes[f"{name}: one curve"] = cell.minutes / cell.curves
        parts = (first, second, third)
        return Outcome(
            [verdict for part in parts for verdict in part.verdicts],
            {name: figure for part in parts for name, figure in part.figures.items()},
            {name: table for part in parts for name, table in part.tables.items()},
            minutes,
        )
