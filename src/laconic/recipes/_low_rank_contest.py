"""Low-rank compressors against others at equal bytes, all tuned: who meets whom, on what, and the curves."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from laconic.core.method import Method
from laconic.core.problem import Problem, single_threaded
from laconic.core.spec import parse
from laconic.lab.criteria import Criterion
from laconic.lab.curve import Curve
from laconic.lab.evaluate import Party
from laconic.lab.grid import points
from laconic.lab.plan import Limits
from laconic.lab.settle import Entrant
from laconic.lab.sweep import Field, Recording, sweep
from laconic.lab.trace import Row
from laconic.problems.network import Network
from laconic.recipes._low_rank_operators import affordable
from laconic.runtime.local import Local
from laconic.runtime.network import Line
from laconic.runtime.network import Network as Lines

DENSE, LONG, SVD, BARE = "no compression", "no compression, as many rounds", "SVD", "SVD, no memory"
DECOMPOSITIONS = {
    "SVD": "rank(rank={rank})",
    "randomised SVD": "random_rank(rank={rank}, oversampling=2, powers=0)",
    "power iteration": "power_iteration(rank={rank})",
}
POWERSGD, TOPK, QSGD, QSGD_SHIFTED, NATURAL = "PowerSGD", "TopK", "QSGD", "QSGD, DASHA", "natural"
ALTERNATING = "PowerSGD, one factor a round"
EF14 = ", EF14"
OURS = (*DECOMPOSITIONS, *(label + EF14 for label in DECOMPOSITIONS), POWERSGD, ALTERNATING)
OTHERS = (TOPK, TOPK + EF14, QSGD, QSGD_SHIFTED, NATURAL)
NETWORKS = (Lines.parse("10mbit,20ms"), Lines("1 Mbit/s up, 10 Mbit/s down, 20 ms", Line(1e6, 1e7, 0.02)))
SECONDS = ("seconds, symmetric", "seconds, slow uplink")  # on each of NETWORKS
_LONGEST = 6  # times the rounds of rank 1 that a method with short messages may take


@dataclass(frozen=True)
class LastValue(Criterion):
    """f where a curve ends; the median over seeds."""

    def score(self, curve: Recording) -> float:
        last = curve["f"][-1]
        return float(last) if math.isfinite(last) and not curve.diverged else math.inf

    def __str__(self) -> str:
        return "f at the end of the budget"


@dataclass(frozen=True)
class Arena:
    """A problem and the conditions on which methods meet: an equal budget of bytes that a worker sends.

    `share` is the probability with which a worker takes part; `messages` the budget in dense messages; `best` is
    subtracted from f in figures; candidates are `multiples` of 1/L, then up to `widen` more where the best is at an
    end, ranks, coordinates in the bytes of each rank, and levels of QSGD. `tuning` are the
    seeds of the search, whose worst counts; `records`: points of a curve, about.
    """

    problem_name: str
    conditions: str
    problem: str
    share: float
    messages: float
    best: float
    ranks: tuple[int, ...]
    levels: tuple[int, ...]
    multiples: tuple[float, ...]
    tuning: tuple[int, ...]
    seeds: int
    widen: int
    records: int
    data_dir: Path | None

    @property
    def name(self) -> str:
        """For titles."""
        return f"{self.problem_name}, {self.conditions}"


@dataclass(frozen=True)
class Raced:
    """A method's winner and its curves on seeds not used for tuning, one table per seed.

    Columns: rounds, uplink, f, grad_norm2, accuracy, and simulated seconds on each of NETWORKS.
    """

    spec: str
    multiple: float
    edge: str
    curves: list[pd.DataFrame]
    minutes: float

    def end(self, column: str) -> float:
        """The median over seeds of a column's last value."""
        return float(np.median([curve[column].iloc[-1] for curve in self.curves]))

    def to(self, target: float, column: str) -> float:
        """The median over seeds of `column` where f is first at most the target; infinite where it never is."""
        found = []
        for curve in self.curves:
            there = np.flatnonzero(curve["f"].to_numpy() <= target)
            found.append(float(curve[column].iloc[there[0]]) if len(there) else math.inf)
        return float(np.median(found))


@dataclass(frozen=True)
class Candidate:
    """A method at one step, and what became of it on the seeds of the tuning."""

    method: Method
    multiple: float
    score: float
    rounds: int
    edge: str = ""


@dataclass(frozen=True)
class Contest:
    """Who met where, by label."""

    arena: Arena
    raced: dict[str, Raced]

    def best(self, labels: tuple[str, ...], column: str = "f") -> str:
        """The label of those given that ends lowest."""
        return min((label for label in labels if label in self.raced), key=lambda label: self.raced[label].end(column))


def contests(arenas: list[Arena], jobs: int) -> list[Contest]:
    """All of them, several processes at a time."""
    if jobs == 1 or len(arenas) == 1:
        return [contest(arena) for arena in arenas]
    spawn, threads = multiprocessing.get_context("spawn"), max(1, (os.cpu_count() or 1) // jobs)
    with ProcessPoolExecutor(min(jobs, len(arenas)), spawn, torch.set_num_threads, (threads,)) as pool:
        return list(pool.map(contest, arenas))


@single_threaded
def contest(arena: Arena) -> Contest:
    """Tunes everybody and runs the winners."""
    field = Field.of(_problem(arena), arena.data_dir)
    return Contest(arena, _Race(arena, field).run())


def _problem(arena: Arena) -> Problem:
    found = parse(arena.problem)
    assert isinstance(found, Problem)
    return found


class _Race:
    """One contest on its way."""

    def __init__(self, arena: Arena, field: Field) -> None:
        self.arena, self.field = arena, field
        self.raced: dict[str, Raced] = {}
        rows, columns = field.oracles.shape
        dense, self.factor = 8 * rows * columns, 8 * (rows + columns)
        self.budget = dense * arena.messages * arena.share  # the same number of rounds for every share
        self.longest = math.ceil(_LONGEST * arena.messages * dense / self.factor)
        self.unit = 1.0 / float(field.setting.constants.L)
        self.ks = [affordable(rank * self.factor, rows * columns) for rank in arena.ranks]

    def run(self) -> dict[str, Raced]:
        arena, svd = self.arena, DECOMPOSITIONS[SVD]
        self._best_of(DENSE, ["direct(identity)"] if arena.share == 1.0 else ["direct(identity)", "ef21(identity)"])
        self._best_of(SVD, [f"ef21({svd.format(rank=_braces(arena.ranks))})"])
        rank, multiple = self._found(SVD)
        for label, compressor in DECOMPOSITIONS.items():
            if label != SVD:
                self._best_of(label, [f"ef21({compressor.format(rank=rank)})"], multiple)
            self._best_of(label + EF14, [f"ef14({compressor.format(rank=rank)})"], multiple)
        self._best_of(BARE, [f"direct({svd.format(rank=rank)})"], multiple)
        if arena.share == 1.0:
            self._best_of(POWERSGD, [f"powersgd(rank={rank})"], multiple)
            self._best_of(ALTERNATING, [f"alternating_powersgd(rank={_braces(arena.ranks)})"], multiple)
        self._best_of(TOPK, [f"ef21(topk(k={_braces(self.ks)}))"])
        k, multiple = self._found(TOPK)
        self._best_of(TOPK + EF14, [f"ef14(topk(k={k}))"], multiple)
        self._best_of(QSGD, [f"direct(qsgd(levels={_braces(arena.levels)}))"])
        level, multiple = self._found(QSGD)
        self._best_of(QSGD_SHIFTED, [f"dasha(qsgd(levels={level}))"], multiple)
        self._best_of(NATURAL, ["direct(natural)", "ef21(natural)"])
        self._best_of(LONG, ["direct(identity)"], rounds=int(self.raced[SVD].end("rounds")))
        return self.raced

    def _found(self, label: str) -> tuple[int, float]:
        """The rank, coordinates or levels that won, and the step as a multiple of 1/L."""
        raced = self.raced[label]
        method: Any = parse(raced.spec)
        inner = method.mechanism if self.arena.share == 1.0 else method.mechanism.mechanism
        return getattr(inner.compressor, {TOPK: "k", QSGD: "levels"}.get(label, "rank")), raced.multiple

    def _best_of(
        self, label: str, mechanisms: Sequence[str], multiple: float | None = None, rounds: int | None = None
    ) -> None:
        """Tunes the mechanisms and runs the best; by rounds where they are given, else by bytes.

        Where a multiple is given, one that a method of the same kind was found to like, the search begins there.
        """
        begun, arena = time.perf_counter(), self.arena
        limits = Limits(rounds, None, None, None) if rounds else Limits(self.longest, None, None, self.budget)
        found: list[Candidate] = []
        for mechanism in mechanisms:
            inside = mechanism if arena.share == 1.0 else f"partial({mechanism}, probability={arena.share!r})"
            for point in points(f"gd({inside}, step={self.unit!r})", None):
                if multiple and not arena.widen:  # the search would end where it begins
                    found.append(
                        Candidate(self._stepped(point.method, multiple), multiple, 0.0, self.longest // _LONGEST)
                    )
                else:
                    found += self._climb(point.method, (multiple,) if multiple else arena.multiples, limits)
        best = min(found, key=lambda one: one.score)
        if math.isinf(best.score):
            raise ValueError(f"{arena.name}: {label} diverged at all {len(found)} steps; give more steps")
        first = len(arena.tuning)
        seeds = range(first, first + (1 if self._certain(best.method) else arena.seeds))
        every = max(1, best.rounds // arena.records)
        curves = [self._curve(best.method, seed, limits, every) for seed in seeds]
        minutes = (time.perf_counter() - begun) / 60.0
        self.raced[label] = Raced(str(best.method), best.multiple, best.edge, curves, minutes)

    def _climb(self, method: Any, multiples: Sequence[float], limits: Limits) -> list[Candidate]:
        """Multiples of 1/L, judged by the worst seed: those given, then on by factors of two while an end is best."""
        tried: dict[float, Candidate] = {}
        wanted, left = list(multiples), self.arena.widen
        while wanted:
            settled = [self._stepped(method, one) for one in wanted]
            seeds = self.arena.tuning[:1] if self._certain(settled[0]) else self.arena.tuning
            for seed in seeds:
                curves, _ = sweep(self.field, settled, seed, limits, 10**6)
                for one, multiple, curve in zip(settled, wanted, curves, strict=True):
                    score, before = LastValue().score(curve), tried.get(multiple)
                    score = score if before is None else max(score, before.score)
                    tried[multiple] = Candidate(one, multiple, score, int(curve["rounds"][-1]))
            best = min(tried.values(), key=lambda one: (one.score, one.multiple)).multiple
            ends = [2.0 * best] if best == max(tried) and math.isfinite(tried[best].score) else []
            ends += [best / 2.0] if best == min(tried) else []
            wanted, left = (ends, left - 1) if left else ([], 0)
            if ends and not wanted:
                tried[best] = dataclasses.replace(tried[best], edge="step")
        return list(tried.values())

    def _stepped(self, method: Any, multiple: float) -> Method:
        return dataclasses.replace(method, step=multiple * self.unit).settled(self.field.setting)

    def _certain(self, method: Any) -> bool:
        """Whether all seeds have the same curve."""
        inner = getattr(method.mechanism, "compressor", None)
        return self.arena.share == 1.0 and inner is not None and inner.name in ("identity", "rank", "topk")

    def _curve(self, method: Method, seed: int, limits: Limits, every: int) -> pd.DataFrame:
        """A curve with what the trace does not know: accuracy, and seconds that depend on bytes alone."""
        problem, rows = self.field.problem, []
        runtime = Local(self.field.setting.n, seed=seed)

        def record(row: Row, seconds: list[float]) -> None:
            accuracy = math.nan
            if isinstance(problem, Network):
                accuracy = problem.accuracy(curve.point(), self.arena.data_dir)
            spent = [clock.seconds for clock in curve.clocks]
            rows.append((row.rounds, row.uplink, row.f, row.grad_norm2, accuracy, *spent))

        curve = Curve(
            entrant=Entrant(str(method), str(method), method, None, None, ""),
            seed=seed,
            runtime=runtime,
            parties=[Party(runtime.links[0], self.field.oracles)],
            limits=limits,
            every=every,
            networks=NETWORKS,
            terms=1,
            shares_decisions=False,
            solution=None,
            record=record,
            pause=lambda curve: None,
        )
        curve.run()
        return pd.DataFrame(rows, columns=["rounds", "uplink", "f", "grad_norm2", "accuracy", *SECONDS])


def _braces(values: Sequence[int]) -> str:
    """A set of values in a spec."""
    unique = sorted(set(values))
    return str(unique[0]) if len(unique) == 1 else f"{{{', '.join(map(str, unique))}}}"
