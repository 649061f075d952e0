"""Methods against each other on one recipe: the same learning rates for all, the best of each with other seeds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from _training import Job, Record, Store, Train
from _training_page import Curve, Spread, at, numbers, spread, table


@dataclass(frozen=True)
class Row:
    """A method: its name, what says it on the command line, and how much longer its step takes than a plain one."""

    name: str
    options: Mapping[str, Any] = field(hash=False)
    factor: float = 1.0


@dataclass(frozen=True)
class Measure:
    """What runs are judged by: a field of their evaluations, in which direction it is better, and how it is shown.

    `start`: whether curves begin before the first step, where a loss is so large that nothing else would be seen.
    """

    field: str
    larger: bool
    label: str
    scale: float = 1.0
    unit: str = ""
    digits: int = 4
    start: bool = True

    def of(self, record: Record) -> float:
        """At the end of a run, the larger the better; below everything where the loss was not finite."""
        if record["diverged"]:
            return -math.inf
        value = float(record["result"][self.field])
        return value if self.larger else -value

    def shown(self, value: float | None) -> str:
        """A value of `of` in a table."""
        if value is None:
            return ""
        sign = self.scale if self.larger else -self.scale
        return "diverged" if value == -math.inf else f"{sign * value:.{self.digits}f}{self.unit}"

    def text(self, values: Spread) -> str:
        """Values of `of` over seeds."""
        return values.text(self.scale if self.larger else -self.scale, self.digits, self.unit)


ACCURACY = Measure("test_accuracy", True, "test accuracy, %", 100.0, "%", 2)
LOSS = Measure("validation_loss", False, "validation loss, nats per token", start=False)
TEST_LOSS = Measure("test_loss", False, "test loss")


@dataclass(frozen=True)
class Grid:
    """Rows on one recipe at some learning rates; the first seed chooses them, by the measure at the end of the run.

    Parameters
    ----------
    name : in the names of its runs.
    seconds : of a plain run on two free cores.
    rates : in the order in which they are tried.
    """

    name: str
    task: str
    options: Mapping[str, Any]
    rows: Sequence[Row]
    rates: Sequence[float]
    measure: Measure
    seconds: float
    seeds: Sequence[int] = (0,)
    ranks: int | None = 2
    data: bool = True
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The options that all runs share, in words."""
        given = ((name.replace("_", " "), value) for name, value in self.options.items())
        return ", ".join(name if value is True else f"{name} {value}" for name, value in given)

    def job(self, row: Row, lr: float, seed: int) -> Job:
        """A run."""
        options = {**self.options, **row.options, "lr": lr, "seed": seed, **self.more}
        program = Train(self.task, options, self.ranks, self.data)
        return Job(f"{self.name} {row.name} lr={lr:g} seed={seed}", program, self.seconds * row.factor)

    def jobs(self, store: Store) -> Iterator[Job]:
        """All rows at the first learning rate, then at the others; then other seeds of the best."""
        for lr in self.rates:
            yield from (self.job(row, lr, self.seeds[0]) for row in self.rows)
        for seed in self.seeds[1:]:
            for row in self.rows:
                if self.complete(store, row) and (best := self.best(store, row)) is not None:
                    yield self.job(row, best, seed)

    def found(self, store: Store, row: Row, lr: float) -> float | None:
        """The measure of the first seed's run; None before it was made."""
        record = store.find(self.job(row, lr, self.seeds[0]))
        return None if record is None else self.measure.of(record)

    def complete(self, store: Store, row: Row) -> bool:
        """Whether all learning rates were tried."""
        return all(self.found(store, row, lr) is not None for lr in self.rates)

    def best(self, store: Store, row: Row) -> float | None:
        """The best learning rate of those that were tried; None where all diverged, or none was tried."""
        tried = {lr: self.found(store, row, lr) for lr in self.rates}
        known = {lr: value for lr, value in tried.items() if value is not None and value > -math.inf}
        return max(known, key=lambda lr: known[lr]) if known else None

    def runs(self, store: Store, row: Row) -> list[Record]:
        """Of the best learning rate, all seeds that are there and did not diverge."""
        best = self.best(store, row)
        found = [] if best is None else [store.find(self.job(row, best, seed)) for seed in self.seeds]
        return [one for one in found if one is not None and not one["diverged"]]

    def ends(self, store: Store, row: Row) -> Spread:
        """The measure at the end over seeds."""
        return spread(self.measure.of(one) for one in self.runs(store, row))

    def records(self, store: Store) -> list[Record]:
        """All that are there."""
        return [record for job in self.jobs(store) if (record := store.find(job)) is not None]

    def table(self, store: Store) -> str:
        """Each row at each learning rate, its bytes, and its seeds at the best."""
        rates = sorted(self.rates)
        body = []
        for row in self.rows:
            runs = self.runs(store, row)
            size, calls = "", ""
            if runs:
                steps = runs[0]["result"]["steps"]
                up = runs[0]["result"]["up_per_step"]
                size = f"{up:,.0f}"
                calls = f"{runs[0]['result'].get('evaluations', steps) / steps:.2f}"
            cells = [self.measure.shown(self.found(store, row, lr)) for lr in rates]
            seeds = [self.measure.text(self.ends(store, row))] if len(self.seeds) > 1 else []
            body.append([row.name, size, calls, *cells, *seeds])
        seeds = [f"best rate, seeds {', '.join(map(str, self.seeds))}"] if len(self.seeds) > 1 else []
        head = ["", "bytes up per step", "gradients per step", *(f"lr {lr:g}" for lr in rates), *seeds]
        return table(head, body)

    def curves(self, store: Store, axis: str, scale: float = 1.0, measure: Measure | None = None) -> list[Curve]:
        """The best of each row along a column of its evaluations; steps stand for gradients where nothing counts."""
        chosen, found = measure or self.measure, []
        for place, row in enumerate(self.rows):
            lines = []
            for one in self.runs(store, row):
                x = numbers(one["curve"], axis if axis in one["curve"] else "step")
                y = numbers(one["curve"], chosen.field)
                shown = (x > 0) | chosen.start
                lines.append((scale * x[shown], chosen.scale * y[shown]))
            if lines:
                found.append(Curve(row.name, place, lines))
        return found

    def reaches(self, store: Store, row: Row, axis: str, place: float) -> Spread:
        """The measure after so much of an axis, over seeds, the larger the better."""
        sign = 1.0 if self.measure.larger else -1.0
        ends = []
        for one in self.runs(store, row):
            value = at(one["curve"], axis if axis in one["curve"] else "step", place, self.measure.field)
            ends.append(None if value is None else sign * value)
        return spread(ends)

    def total(self, store: Store, row: Row, axis: str) -> float | None:
        """How much of an axis a run of the row takes; None where there is none."""
        runs = self.runs(store, row)
        return float(numbers(runs[0]["curve"], axis if axis in runs[0]["curve"] else "step")[-1]) if runs else None
