"""Tuned curves of TopK, PermK and their combinations on the quadratics of PermK's paper, a panel per n and noise."""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch

from laconic.core.spec import parse
from laconic.core.theory import NoTheorem
from laconic.lab.criteria import SKIPPED, Criterion
from laconic.lab.recipe import Bench
from laconic.lab.run import Runs, run
from laconic.lab.sweep import Field, Recording
from laconic.lab.trace import numbers
from laconic.lab.tune import tune
from laconic.recipes._common import seeds_of

PLAIN = ("TopK", "TopK EF14", "TopK EF21")
MEMORIES = ("TopK∘PermK EF0", "TopK∘PermK EF1", "TopK∘PermK EF2", "TopK∘PermK EF21")
COMBINED = ("n TopK∘PermK", *MEMORIES)
MARINA, DESCENT = "MARINA PermK", "GD"
BESIDE = (*PLAIN, MARINA)
LABELS = (*PLAIN, *COMBINED, MARINA, DESCENT)
EVALUATIONS = 200
_FLOOR = 1e-30  # squared gradients below are 0


class Sizes(Protocol):
    """What is asked of the recipe."""

    @property
    def d(self) -> int: ...
    @property
    def mu(self) -> float: ...
    @property
    def rounds(self) -> int: ...
    @property
    def seeds(self) -> int: ...
    @property
    def widen(self) -> int: ...


@dataclass(frozen=True)
class MeanLogGradient(Criterion):
    """The mean of log10 of ||grad f||^2 over the last 90% of what was recorded, averaged over seeds."""

    def score(self, curve: Recording) -> float:
        return math.inf if curve.diverged else mean_log(curve["grad_norm2"])

    def combined(self, scores: Sequence[float]) -> float:
        return math.fsum(scores) / len(scores)

    def __str__(self) -> str:
        return "mean log10 ||grad f||^2 over the last 90%"


def mean_log(squares: np.ndarray) -> float:
    """The mean of log10 over the last 90%, infinite where something is not finite."""
    judged = squares[math.ceil(SKIPPED * len(squares)) :] if len(squares) > 1 else squares
    return float(np.mean(np.log10(np.maximum(judged, _FLOOR)))) if np.isfinite(judged).all() else math.inf


@dataclass(frozen=True)
class Cell:
    """What was found on one problem: rows for the table of steps, the winners' curves by label, and what it took."""

    n: int
    noise: float
    k: int
    budget: float  # uplink bytes per worker
    choices: pd.DataFrame
    runs: dict[str, Runs]
    curves: int
    minutes: float
    nonconvex: int  # workers whose f_i is not convex

    def score(self, label: str) -> float:
        """The mean over seeds of the mean log10 of ||grad f||^2 in what was run with the winner."""
        return float(np.mean([mean_log(numbers(rows, "grad_norm2")) for rows in seeds_of(self.runs[label], label)]))

    def least(self, label: str) -> float:
        """The least ||grad f||^2 reached: that of the middle seed."""
        return float(np.median([np.nanmin(numbers(rows, "grad_norm2")) for rows in seeds_of(self.runs[label], label)]))

    def best(self, labels: Sequence[str]) -> str:
        """Of these the one with the lowest score."""
        return min(labels, key=self.score)


def kept(d: int, n: int) -> int:
    """k: a tenth of PermK's block, and at least 1."""
    return max(1, d // (10 * n))


def problem_of(sizes: Sizes, n: int, noise: float) -> str:
    """The spec of the problem of a panel."""
    return f"quadratic(d={sizes.d}, workers={n}, noise={noise!r}, mu={sizes.mu!r})"


def cells(sizes: Sizes, wanted: Sequence[tuple[int, float]], bench: Bench) -> list[Cell]:
    """All panels, several at a time; those with many workers, which take longest, first."""
    order = sorted(wanted, key=lambda pair: -pair[0])
    found: dict[tuple[int, float], Cell] = {}
    for cell in _computed(sizes, order, bench.jobs):
        found[cell.n, cell.noise] = cell
        if bench.progress:
            done = f"{cell.curves} curves in {cell.minutes:.1f} min"
            print(f"n = {cell.n}, noise {cell.noise:g}: {done}", file=sys.stderr)
    return [found[pair] for pair in wanted]


def _computed(sizes: Sizes, order: Sequence[tuple[int, float]], jobs: int) -> Iterator[Cell]:
    if jobs == 1 or len(order) == 1:
        yield from (cell_of(sizes, n, noise) for n, noise in order)
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, torch.set_num_threads, (threads,)) as pool:
        futures = [pool.submit(cell_of, sizes, n, noise) for n, noise in order]
        yield from (future.result() for future in futures)


# ---- one panel -------------------------------------------------------------------------------------------------------


def cell_of(sizes: Sizes, n: int, noise: float) -> Cell:
    """Tunes every method on one problem, then runs the winners on seeds not used for tuning, in equal bytes."""
    began, k = time.perf_counter(), kept(sizes.d, n)
    problem = problem_of(sizes, n, noise)
    parsed: Any = parse(problem)
    field = Field.of(parsed)
    every = max(4, sizes.rounds // EVALUATIONS)
    block = f"topk_permk(k={k})"
    sparse = {
        "TopK": f"direct(topk(k={k}))",
        "TopK EF14": f"ef14(topk(k={k}))",
        "TopK EF21": f"ef21(topk(k={k}))",
        "n TopK∘PermK": f"direct(topk_permk(k={k}, scale={float(n)}))",
        "TopK∘PermK EF0": f"ef0({block})",
        "TopK∘PermK EF1": f"ef1({block})",
        "TopK∘PermK EF2": f"ef2({block})",
        "TopK∘PermK EF21": f"ef21({block})",
    }
    limits: dict[str, Any] = {"rounds": sizes.rounds, "every": every}
    rows, runs, count = _tuned(sizes, field, sparse, limits)
    budget = max(float(numbers(one.trace, "uplink").max()) for one in runs.values())
    dense = {MARINA: "marina(permk)", DESCENT: "direct(identity)"}
    message = 8.0 * sizes.d / n * 2.0  # bytes of a round of MARINA, about
    limits = {"budget": budget, "every": max(1, int(budget / message) // EVALUATIONS)}
    more, others, added = _tuned(sizes, field, dense, limits)
    c = field.setting.constants
    table = pd.DataFrame([{"n": n, "noise": noise, "k": k, **row} for row in (*rows, *more)])
    table["step × L"] = table["step"] * float(c.L)
    spent = (time.perf_counter() - began) / 60.0
    return Cell(n, noise, k, budget, table, {**runs, **others}, count + added, spent, _nonconvex(field))


def _theorem(mechanism: str, field: Field) -> float | None:
    """The theorem's step, None without one."""
    method: Any = parse(f"gd({mechanism})")
    try:
        return float(method.settled(field.setting).step)
    except NoTheorem:
        return None


def _started(mechanism: str, field: Field, theory: float | None) -> str:
    """The method with the step that tuning begins around: about 1 / L, as a power of two of the theorem's.

    EF1 and EF2 move along 1 / n of the gradient in expectation, and begin around n / L.
    """
    about = 1.0 / float(field.setting.constants.L)
    if theory is not None:
        return f"gd({mechanism}, step='{2.0 ** round(math.log2(about / theory)):g}x')"
    times = field.setting.n if mechanism.startswith(("ef1(", "ef2(")) else 1
    return f"gd({mechanism}, step={times * about!r})"


def _tuned(
    sizes: Sizes, field: Field, mechanisms: dict[str, str], limits: dict[str, Any]
) -> tuple[list[dict[str, Any]], dict[str, Runs], int]:
    """Rows for the table of steps, curves of the winners by label, and how many curves there were."""
    theory = {label: _theorem(mechanism, field) for label, mechanism in mechanisms.items()}
    specs = {label: _started(mechanism, field, theory[label]) for label, mechanism in mechanisms.items()}
    found = tune(
        field.problem, specs, multipliers="2^-3..2^2", seeds=[0], test_seeds=[1], criterion=MeanLogGradient(),
        widen=sizes.widen, **limits,
    )  # fmt: skip
    rows, runs, seeds = [], {}, list(range(1, 1 + sizes.seeds))
    for choice in found.choices:
        runs[choice.method] = run(
            field.problem, [(choice.method, choice.spec or specs[choice.method])], seeds=seeds, **limits
        )
        step = math.nan if choice.step is None else choice.step
        row = {"method": choice.method, "step": step, "step / theorem": step / (theory[choice.method] or math.nan)}
        row |= {"score": choice.score, "on another seed": choice.test, "tried": choice.tried}
        rows.append(row | {"at an edge": choice.edge})
    return rows, runs, len(found.curves)


def _nonconvex(field: Field) -> int:
    """How many A_i = nu_i T + c I have a negative eigenvalue: the least is at an end of T's spectrum, a sine's."""
    oracles: Any = field.oracles
    places, d = torch.arange(1, field.setting.d + 1, dtype=torch.float64), field.setting.d
    least = torch.full((field.setting.n,), torch.inf, dtype=torch.float64)
    for number in (1, d):
        v = torch.sin(math.pi * number / (d + 1) * places)
        least = torch.minimum(least, (oracles.products(v, v) * v).sum(dim=1) / (v @ v))
    return int((least < 0.0).sum())
