"""GradSkip: how often it communicates, and how many gradients each worker computes in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from laconic.core.keys import Keys
from laconic.core.problem import Problem
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Verdict
from laconic.lab.run import run
from laconic.lab.trace import numbers
from laconic.problems.custom import Custom
from laconic.recipes._common import cost, line, ruled, seeds_of, timed
from laconic.runtime.local import Local

D = 10
TARGET = 1e-8  # of the gap
CLOSE = 0.1  # to the formula
RUNS = 4  # with coins of their own, over which rounds are shared out


def skips(kappas: Sequence[float], rounds: int, seeds: int, minutes: dict[str, float]) -> Outcome:
    """All claims about GradSkip, on ridge regressions whose workers have these condition numbers."""
    problem = _uneven(kappas)
    with timed(minutes, "GradSkip and ProxSkip to a target"):
        claims, panel = _race(problem, kappas, seeds)
    with timed(minutes, "gradients of each worker per round"):
        count, table, counted = _counts(problem, kappas, rounds)
    figure = Grid(
        f"Ridge regressions of {len(kappas)} workers with L_i/μ = {', '.join(f'{k:g}' for k in kappas)}. Left: rounds "
        "to a gap: GradSkip keeps those of ProxSkip. Middle: passes over a worker's data, the mean of all. Right: "
        "gradients of a worker per round, counted, and expected by the formula κ_i (1 + √κ_max) / (κ_i + √κ_max).",
        [[*panel, counted]],
    )
    return Outcome([*claims, count], {"gradskip": figure}, {"gradskip": table})


def _uneven(kappas: Sequence[float]) -> Problem:
    """f_i with eigenvalues from 1 to kappa_i along the same axes, and a solution of its own."""
    n = len(kappas)
    rows, targets = [], []
    axes, _ = np.linalg.qr(Keys(0, 0, "recipe/axes", np.arange(D), D).normal(D).numpy())
    own = Keys(0, 0, "recipe/solutions", np.arange(n), n).normal(D).numpy()
    for kappa, solution in zip(kappas, own, strict=True):
        rows.append(np.sqrt(D * (np.geomspace(1.0, kappa, D) - 1.0))[:, None] * axes)
        targets.append(rows[-1] @ solution)
    return Custom.from_arrays(rows, targets, loss="ridge", l2=1.0)


# ---- to a target -----------------------------------------------------------------------------------------------------


def _race(problem: Any, kappas: Sequence[float], seeds: int) -> tuple[list[Verdict], list[Panel]]:
    worst, names = max(kappas), {"gradskip": "GradSkip", "proxskip": "ProxSkip"}
    most = round(60.0 * worst)
    runs = run(problem, [(name, spec) for spec, name in names.items()], iterations=most, until=TARGET,
               seeds=seeds, every=max(1, most // 400))  # fmt: skip
    plain = run(problem, [("gradient descent", "gd"), ("Nesterov", "nesterov")], iterations=most, until=TARGET)
    rounds = {name: cost(runs, name, TARGET, "rounds") for name in names.values()}
    work = {name: cost(runs, name, TARGET, "gradients") for name in names.values()}
    gd, nesterov = (cost(plain, name, TARGET, "rounds") for name in ("gradient descent", "Nesterov"))
    same, saved = rounds["GradSkip"] / rounds["ProxSkip"], work["ProxSkip"] / work["GradSkip"]
    promised = math.sqrt(worst) * len(kappas) / sum(expected(kappas))
    rate = 1.0 - 1.0 / worst
    ends = []
    for rows in seeds_of(runs, "GradSkip"):
        k, values = numbers(rows, "iteration"), numbers(rows, "lyapunov")
        ends.append((math.log(values[-1]) - math.log(values[0])) / (k[-1] * math.log(rate)))
    verdicts = [
        Verdict(
            "gradskip-rate",
            "GradSkip converges linearly, E Ψ_t ≤ (1 − min{γμ, 1 − q_max (1 − p²)})^t Ψ_0, with its message "
            "x̂_i − (γ/p) ĥ_i (formula of the slide)",
            ruled(min(ends) >= 1.0),
            min(ends),
            f"with theory's parameters the bound falls by 1/κ_max = {1.0 / worst:.1e} an iteration; log Ψ falls at "
            f"least {min(ends):.2f} times as fast, to a gap of {TARGET:g}, over {seeds} seed{'s' * (seeds > 1)}",
        ),
        Verdict(
            "gradskip-rounds",
            "GradSkip communicates as seldom as ProxSkip",
            ruled(abs(same - 1.0) < 0.25),
            same,
            f"{rounds['GradSkip']:.0f} rounds to a gap of {TARGET:g}, ProxSkip {rounds['ProxSkip']:.0f} (√κ_max = "
            f"{math.sqrt(worst):.0f}), gradient descent {gd:.0f} and Nesterov's method {nesterov:.0f} (κ of f = "
            f"{float(problem.constants().L) / float(problem.constants().mu):.0f})",
        ),
        Verdict(
            "gradskip-work",
            "GradSkip has a better computational complexity: workers with easy functions compute fewer gradients",
            ruled(saved > 1.25),
            saved,
            f"ProxSkip's workers compute {saved:.1f} times as many gradients to the same gap ({work['ProxSkip']:.0f} "
            f"and {work['GradSkip']:.0f} passes over the data); the formulas give {promised:.1f}",
        ),
    ]
    drawn = [(runs, name) for name in names.values()] + [(plain, name) for name in ("gradient descent", "Nesterov")]
    panels = [
        Panel(column, x, "f(x) − f*", [line(one, name, column, "gap") for one, name in drawn], "xy")
        for column, x in (("rounds", "communication rounds"), ("gradients", "passes over a worker's data"))
    ]
    return verdicts, panels


# ---- counts ----------------------------------------------------------------------------------------------------------


def expected(kappas: Sequence[float]) -> list[float]:
    """Gradients of each worker per round, by the paper's formula."""
    root = math.sqrt(max(kappas))
    return [kappa * (1.0 + root) / (kappa + root) for kappa in kappas]


def _counts(problem: Any, kappas: Sequence[float], rounds: int) -> tuple[Verdict, pd.DataFrame, Panel]:
    """Oracle calls by worker over so many rounds of GradSkip with theory's parameters."""
    calls = np.zeros(problem.n)
    for seed in range(RUNS):
        runtime = Local(problem.n, seed=seed)
        link = runtime.links[0]
        oracles = problem.host(link.block)
        method = parse("gradskip").settled(Setting.of(problem, oracles))  # type: ignore[attr-defined]
        link.begin(0)
        (state,) = runtime.drive(method.init(oracles, link))
        oracles.calls.by_worker = np.zeros(problem.n, dtype=np.int64)
        step = 0
        while runtime.ledger.rounds < rounds // RUNS:
            step += 1
            link.begin(step)
            (state,) = runtime.drive(method.iterate(state, oracles, link))
        calls += oracles.calls.by_worker / oracles.terms()
    counted = calls / (rounds // RUNS * RUNS)
    formula = np.array(expected(kappas))
    off = np.abs(counted / formula - 1.0)
    table = pd.DataFrame({"L_i/μ": kappas, "counted": counted, "formula": formula, "off": off})
    verdict = Verdict(
        "gradskip-gradients",
        "a worker computes κ_i (1 + √κ_max) / (κ_i + √κ_max) gradients per round on average",
        ruled(float(off.max()) < CLOSE),
        float(off.max()),
        f"counted over {rounds} rounds in {RUNS} runs: {', '.join(f'{one:.1f}' for one in counted)}, by the formula "
        f"{', '.join(f'{one:.1f}' for one in formula)}: at most {100.0 * off.max():.1f}% off, all by the same chance",
    )
    order = np.argsort(kappas)
    x = np.array(kappas)[order]
    lines = [
        Series("counted", x, counted[order]),
        Series("formula", x, formula[order], dashed=True),
        Series("every iteration", x, np.full(len(x), math.sqrt(max(kappas))), dashed=True),
    ]
    return verdict, table, Panel("of each worker, per round", "L_i/μ", "gradients per round", lines, "x")
