"""Curves of one method at many stepsizes, in one program where their values can be stacked, else one by one.

Each is bit for bit the curve that `laconic.run` gives. Runs that are over (diverged, at the target, out of budget)
leave the stack, and the others go on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laconic.core import rows
from laconic.core.method import Method
from laconic.core.problem import Block, Oracles, Problem, Solution
from laconic.core.theory import Setting
from laconic.lab import trace
from laconic.lab.curve import BLOWN_UP, Curve
from laconic.lab.evaluate import Evaluation, Excess, Party, evaluate, mean
from laconic.lab.plan import Limits
from laconic.lab.settle import Entrant
from laconic.runtime.local import Local
from laconic.runtime.stack import Stack, Unstackable, stacked
from laconic.runtime.sweep import Sweep, SweepOracles

COLUMNS = ("iteration", "rounds", "uplink", "downlink", "f", "gap", "grad_norm2")  # as in the trace of a run
WIDEST = 1 << 19  # numbers in the gradients of one stack: wider ones leave the caches, and are slower


@dataclass
class Recording:
    """What was recorded of one curve: a list per column of `COLUMNS`, and how it ended.

    `random`: whether the seed may have mattered; if not, every seed has this curve.
    """

    columns: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    status: str = trace.RUNNING
    random: bool = True

    def add(self, *values: float) -> None:
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.asarray(self.columns[name], dtype=np.float64)

    @property
    def measure(self) -> np.ndarray:
        """The gap, or ||grad f||^2 where f* is not known."""
        gap = self["gap"]
        return gap if len(gap) and math.isfinite(gap[0]) else self["grad_norm2"]

    @property
    def diverged(self) -> bool:
        return self.status == trace.DIVERGED


@dataclass(frozen=True)
class Field:
    """A problem made ready: its oracles hold the data, so they are made once for all curves."""

    problem: Problem
    oracles: Oracles
    solution: Solution | None
    setting: Setting
    data_dir: Path | None = None

    @staticmethod
    def of(problem: Problem, data_dir: Path | None = None) -> Field:
        """Raises ValueError where the data are absent."""
        oracles = problem.host(Block.whole(problem.n), data_dir)
        setting = Setting.of(problem, oracles, data_dir=data_dir)
        return Field(problem, oracles, problem.solution(data_dir), setting, data_dir)

    @property
    def widest(self) -> int:
        """How many runs a stack should hold at most."""
        return max(1, WIDEST // (self.setting.n * max(1, self.setting.d)))


@np.errstate(invalid="ignore", over="ignore")  # curves that diverge are nothing to warn of here
def sweep(
    field: Field, methods: Sequence[Method], seed: int, limits: Limits, every: int
) -> tuple[list[Recording], str]:
    """The curves of settled methods that are alike but for their numbers; and, if they were run one by one, why."""
    if len(methods) > 1:
        try:
            found: list[Recording] = []
            for low in range(0, len(methods), field.widest):
                found += _Together(field, methods[low : low + field.widest], seed, limits, every).run()
            return found, ""
        except Exception as error:  # whatever it is, it either concerns stacks alone or comes up again one by one
            why = " ".join(str(error).split()) or type(error).__name__
            return [alone(field, method, seed, limits, every) for method in methods], why
    return [alone(field, method, seed, limits, every) for method in methods], ""


def alone(field: Field, method: Method, seed: int, limits: Limits, every: int) -> Recording:
    """The curve of one settled method."""
    runtime, found = Local(field.setting.n, seed=seed), Recording()

    def record(row: trace.Row, seconds: list[float]) -> None:
        found.add(*(getattr(row, name) for name in COLUMNS))

    stop = Curve(
        entrant=Entrant(str(method), str(method), method, None, None, ""),
        seed=seed,
        runtime=runtime,
        parties=[Party(runtime.links[0], field.oracles)],
        limits=limits,
        every=every,
        networks=(),
        terms=1,
        shares_decisions=False,
        solution=field.solution,
        record=record,
        pause=lambda curve: None,
    ).run()
    found.status = stop.status
    return found


class _Together:
    """The curves of a stack on their way. What ends a run, and when it is looked at, is what `Curve` says."""

    def __init__(self, field: Field, methods: Sequence[Method], seed: int, limits: Limits, every: int) -> None:
        self.field, self.methods, self.limits, self.every = field, list(methods), limits, every
        self.found = [Recording() for _ in methods]
        self.alive = np.arange(len(methods))  # which of the curves the runs of the stack are
        self.first = math.nan  # f(x^0), the same for all
        self.recorded = (-1, -1)
        self.sweep = Sweep(field.setting.n, seed=seed, runs=len(methods))
        self._stack()

    def _stack(self) -> None:
        self.method: Method = stacked([self.methods[place] for place in self.alive])
        self.oracles = SweepOracles(self.field.oracles, len(self.alive))

    def run(self) -> list[Recording]:
        """To the end of all."""
        link, iteration = self.sweep.link, 0
        link.begin(0)
        self.state = self.sweep.drive(self.method.init(self.oracles, link))
        while True:
            over = self._over(iteration)
            due = self.recorded[0] < 0 or (
                iteration - self.recorded[0] >= self.every and self.sweep.rounds > self.recorded[1]
            )
            if due or any(over):
                self._record(iteration, over, due)
            if not len(self.alive):
                break
            iteration += 1
            link.begin(iteration)
            self.state = self.sweep.drive(self.method.iterate(self.state, self.oracles, link))
        for one in self.found:
            one.random = link.drew
        return self.found

    def _over(self, iteration: int) -> list[str]:
        """Per run: how it ends now, or nothing."""
        x, limits = self._point(), self.limits
        if (limits.rounds is not None and self.sweep.rounds >= limits.rounds) or (
            limits.iterations is not None and iteration >= limits.iterations
        ):
            over = [trace.DONE] * len(self.alive)
        elif limits.budget is not None:
            spent = self.sweep.uplink.mean(axis=0) >= limits.budget
            over = [trace.DONE if done else "" for done in spent]
        else:
            over = [""] * len(self.alive)
        finite = torch.isfinite(x.data.reshape(len(self.alive), -1)).all(dim=1).tolist()
        return [how if good else trace.DIVERGED for how, good in zip(over, finite, strict=True)]

    def _point(self) -> Stack:
        x: Any = self.method.point(self.state)
        if not isinstance(x, Stack):  # nothing has happened yet that tells the runs apart
            x = Stack(x.expand(len(self.alive), *x.shape), 0)
        return x

    def _record(self, iteration: int, over: list[str], due: bool) -> None:
        """Looks at the runs that are due or over, and drops those that are over."""
        looked = range(len(over)) if due else [run for run, how in enumerate(over) if how]
        x = self._point().of(torch.tensor(list(looked)))
        for run, seen in zip(looked, look(self.field, x), strict=True):
            over[run] = self._judged(iteration, seen, over[run])
            up, down = float(self.sweep.uplink[:, run].mean()), float(self.sweep.downlink[:, run].mean())
            one = self.found[self.alive[run]]
            one.add(iteration, self.sweep.rounds, up, down, seen.f, seen.gap, seen.grad_norm2)
            one.status = over[run] or trace.RUNNING
        if due:
            self.recorded = (iteration, self.sweep.rounds)
        left = np.array([run for run, how in enumerate(over) if not how], dtype=np.int64)
        if 0 < len(left) < len(over):
            self.state = self.sweep.keep(self.state, left)
        if len(left) < len(over):
            self.alive = self.alive[left]
            if len(left):
                self._stack()

    def _judged(self, iteration: int, seen: Evaluation, how: str) -> str:
        if iteration == 0:
            if seen.culprit:
                raise Unstackable(seen.culprit)  # a run alone says what is wrong with the data
            self.first = seen.f
        if how == trace.DIVERGED or seen.culprit or not abs(seen.f) <= BLOWN_UP * max(1.0, abs(self.first)):
            return trace.DIVERGED
        if self.limits.until is not None and seen.gap <= self.limits.until:
            return trace.REACHED
        return how


def look(field: Field, x: Stack) -> list[Evaluation]:
    """What the trace sees of each run's point: as `evaluate`, without distances."""
    oracles, solution = field.oracles, field.solution
    if oracles.regulariser is not None:
        runtime = Local(field.setting.n)
        party = Party(runtime.links[0], oracles)
        return [runtime.drive(evaluate(party, point, solution, None))[0] for point in x.data]
    together: Any = SweepOracles(oracles, x.runs)
    gradients = together.gradients(x).data  # in one batch; the rest is cheap at one point
    squares = rows.norm2(rows.mean(gradients).double().reshape(x.runs, -1)).tolist()
    found = []
    for point, square in zip(x.data, squares, strict=True):
        f, gap = mean(oracles.values(point)), math.nan
        if solution is not None and not oracles.variational:
            exact = isinstance(oracles, Excess) and math.isfinite(f)
            gap = mean(oracles.excess(point, solution)) if exact else f - solution.value  # type: ignore[attr-defined]
        culprit = "" if math.isfinite(f) and math.isfinite(square) else "f or its gradient is not finite"
        found.append(Evaluation(f, gap, square, math.nan, math.nan, culprit))
    return found
