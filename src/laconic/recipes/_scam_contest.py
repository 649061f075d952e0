"""SCAM and importances against TopK and its memories, all tuned: at equal rounds, bytes and gradient evaluations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from laconic.core.problem import Problem
from laconic.core.spec import parse
from laconic.lab.criteria import Criterion
from laconic.lab.figures import Panel, Series
from laconic.lab.recipe import Bench
from laconic.lab.run import Runs, run
from laconic.lab.sweep import Recording
from laconic.lab.trace import numbers
from laconic.lab.tune import tune
from laconic.recipes._common import line, seeds_of

AXES: dict[str, str] = {
    "rounds": "communication rounds",
    "uplink": "uplink per worker [kB]",
    "gradients": "passes over a worker's data",
}
OPERATORS = {"(7)": "impk", "(8)": "random_impk", "(9)": "reweighted_impk", "(10)": "random_reweighted_impk"}
DOMAINS = {"c": "cube", "s": "simplex"}
PLAIN = {
    "TopK": "direct(topk(k={k}))",
    "TopK, EF14": "ef14(topk(k={k}))",
    "TopK, EF21": "ef21(topk(k={k}))",
    "TopK, SCAM": "scam(topk(k={k}))",
    "TopK, SCAM-21": "scam_21(topk(k={k}))",
}
OURS = "TopK, SCAM-21"  # not among the source's methods
FAMILIES = ("ImpK_c", "ImpK_s", "ImpK_c, SCAM", "ImpK_s, SCAM")
_ROUNDING = 1e-12  # gaps below count as this
_ENDING = 0.1  # of what was spent, over which a curve's end is averaged


@dataclass(frozen=True)
class Ending(Criterion):
    """The mean of log10 of a column over the last tenth of the records; the mean over seeds."""

    column: str

    def score(self, curve: Recording) -> float:
        values = curve[self.column]
        judged = values[math.ceil((1.0 - _ENDING) * len(values)) - 1 :]
        if curve.diverged or not np.isfinite(judged).all():
            return math.inf
        return float(np.mean(np.log10(np.maximum(judged, _ROUNDING))))

    def combined(self, scores: Sequence[float]) -> float:
        return math.fsum(scores) / len(scores) if all(map(math.isfinite, scores)) else math.inf

    def __str__(self) -> str:
        return f"mean log10 {self.column} at the end"


@dataclass(frozen=True)
class Arena:
    """A problem on which all methods meet: `rounds` of those without importances, k coordinates a message.

    `column` is what is compared at the end: the gap, or f where f* is not known.
    """

    name: str
    problem: str
    k: str
    rounds: int
    multipliers: str  # of 1 / L, where tunings begin
    column: str = "gap"
    estimator: str = ""


@dataclass(frozen=True)
class Candidate:
    """A method of a family, before its step is tuned; `searches` gradients more per round go into importances."""

    family: str
    label: str
    mechanism: str
    searches: int = 0


def candidates(arena: Arena, searches: Sequence[int], operators: Sequence[str]) -> list[Candidate]:
    """TopK with its memories, and ImpK on both domains, with SCAM for operator (9), which alone feels the memory."""
    found = [Candidate(label, label, form.format(k=arena.k)) for label, form in PLAIN.items()]
    pairs = [("", "direct", number) for number in operators] + [(", SCAM", "scam", "(9)")]
    for letter, domain in DOMAINS.items():
        for memory, form, number in pairs:
            for count in searches:
                inner = f"{form}({OPERATORS[number]}(k={arena.k}))"
                mechanism = f"local_importance({inner}, domain={domain}, steps={count})"
                family = f"ImpK_{letter}{memory}"
                found.append(Candidate(family, f"{family} {number}, J = {count}", mechanism, count))
    return found


@dataclass(frozen=True)
class Standing:
    """What came out in an arena.

    Attributes
    ----------
    table : one row per candidate and budget: where it ended on the tuning's seeds, at which step.
    values : by axis, then family: the column at equal cost on other seeds, geometric means.
    panels : one per axis.
    """

    arena: Arena
    table: pd.DataFrame
    values: dict[str, dict[str, float]]
    panels: list[Panel]

    def ratio(self, axis: str, mine: Sequence[str], others: Sequence[str]) -> float:
        """The best of mine over the best of the others; below 1 where mine is better."""
        values = self.values[axis]
        return min(values[family] for family in mine) / min(values[family] for family in others)


def meet(arena: Arena, found: Sequence[Candidate], seeds: int, widen: int, bench: Bench) -> Standing:
    """Tunes every candidate at equal rounds and at equal gradients, runs the best of each family on other seeds."""
    problem: Any = parse(arena.problem)
    rows: list[dict[str, Any]] = []
    tested = tuple(range(1, 1 + seeds))
    best: dict[bool, dict[str, tuple[Candidate, str]]] = {}
    for paid in (False, True):  # whether the gradients of the searches are paid for in rounds
        best[paid] = {}
        scores: dict[str, float] = {}
        for cut in sorted({_rounds(arena, one, paid) for one in found}, reverse=True):
            some = [one for one in found if _rounds(arena, one, paid) == cut]
            tuned = tune(
                problem,
                {one.label: _spec(arena, problem, one, bench) for one in some},
                rounds=cut, multipliers=arena.multipliers, seeds=1, test_seeds=tested[:1],
                criterion=Ending(arena.column), every=max(2, cut // 40), widen=widen, jobs=bench.jobs,
                data_dir=bench.data_dir, progress=bench.progress,
            )  # fmt: skip
            for one, choice in zip(some, tuned.choices, strict=True):
                rows.append({"problem": arena.name, "equal": "gradients" if paid else "rounds", "method": one.label,
                             "rounds": cut, "γL": choice.multiple, f"{arena.column} at the end": 10.0**choice.score,
                             "on another seed": 10.0**choice.test})  # fmt: skip
                if choice.spec is not None and choice.score < scores.get(one.family, math.inf):
                    scores[one.family], best[paid][one.family] = choice.score, (one, choice.spec)
    runs = {False: _runs(arena, problem, best[False], False, tested, bench)}
    dear = {family: chosen for family, chosen in best[True].items() if chosen[0].searches}
    runs[True] = runs[False] | _runs(arena, problem, dear, True, tested, bench)
    values = {axis: _values(arena, runs[axis == "gradients"], axis) for axis in AXES}
    panels = [_panel(arena, runs[axis == "gradients"], axis) for axis in AXES]
    return Standing(arena, pd.DataFrame(rows), values, panels)


def _rounds(arena: Arena, one: Candidate, paid: bool) -> int:
    return max(5, arena.rounds // (1 + one.searches)) if paid else arena.rounds


def _spec(arena: Arena, problem: Problem, one: Candidate, bench: Bench) -> str:
    """With the step 1 / L, so that all methods are tuned in multiples of the same number."""
    step = 1.0 / float(problem.constants(bench.data_dir).L)
    estimator = f", estimator={arena.estimator}" if arena.estimator else ""
    return f"gd({one.mechanism}, step={step!r}{estimator})"


def _runs(
    arena: Arena,
    problem: Problem,
    best: dict[str, tuple[Candidate, str]],
    paid: bool,
    seeds: Sequence[int],
    bench: Bench,
) -> dict[str, Runs]:
    """The best of each family on seeds that were not tuned on."""
    found = {}
    for family, (one, spec) in best.items():
        rounds = _rounds(arena, one, paid)
        every = max(2, rounds // 50)
        found[family] = run(problem, [(family, spec)], rounds=rounds, every=every, seeds=seeds, data_dir=bench.data_dir)
    return found


def _values(arena: Arena, runs: dict[str, Runs], axis: str) -> dict[str, float]:
    """Where every family is when as much is spent as all of them spent; curves that blew up count as infinite."""
    spent = min(float(numbers(rows, axis)[-1]) for family in runs for rows in seeds_of(runs[family], family))
    values = {}
    for family, of in runs.items():
        logs = []
        for rows in seeds_of(of, family):
            cost, column = numbers(rows, axis), numbers(rows, arena.column)
            column, cost = column[cost <= spent * (1.0 + 1e-9)], cost[cost <= spent * (1.0 + 1e-9)]
            judged = column[cost >= min((1.0 - _ENDING) * spent, cost[-1])]
            logs.append(
                float(np.mean(np.log10(np.maximum(judged, _ROUNDING)))) if np.isfinite(judged).all() else math.inf
            )
        values[family] = 10.0 ** float(np.mean(logs))
    return values


def _panel(arena: Arena, runs: dict[str, Runs], axis: str) -> Panel:
    unit = 1e3 if axis == "uplink" else 1.0
    found = [line(runs[family], family, axis, arena.column, unit=unit) for family in runs]
    lines = [Series(one.label, one.x, np.maximum(one.y, _ROUNDING)) for one in found]
    return Panel(arena.name, AXES[axis], "f(x) − f*" if arena.column == "gap" else "training loss f(x)", lines)
