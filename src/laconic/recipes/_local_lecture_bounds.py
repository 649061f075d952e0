"""The lower bound on rounds, who reaches it, and when local steps pay: a chain cut in two, and workers more or less
alike."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from laconic.core.problem import Problem
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Verdict
from laconic.lab.run import Runs, run
from laconic.lab.trace import numbers
from laconic.lab.tune import tune
from laconic.problems.custom import Custom
from laconic.recipes._common import cost, line, ruled, seeds_of
from laconic.recipes._local_lecture_limits import Quadratics, exponent

GAP, ROUNDS = "f(x) − f*", "communication rounds"
NOBODY = "no method is below"
CHAIN = [
    ("GD", "gd"),
    ("Nesterov", "nesterov"),
    ("ProxSkip", "proxskip"),
    ("local GD, H = 10", "local_sgd(local_steps=10, step=1.0)"),
    ("SCAFFOLD, H = 10", "scaffold(local_steps=10, step=0.1)"),
    ("FedProx", "fedprox(weight=1.0, accuracy=0.01)"),
]


# ---- the chain -------------------------------------------------------------------------------------------------------


def chain(d: int, condition: float) -> Problem:
    """Nesterov's quadratic, (1 - mu) / 4 tridiag(-1, 2, -1) + mu I, whose odd links one worker has, and the even ones
    the other: from x^0 = 0 neither gets from one coordinate to the next but one without hearing of the other.

    L_i = 1, and mu = 1 / condition is the ridge of both.
    """
    mu = 1.0 / condition
    links = np.eye(d) - np.eye(d, k=-1)
    owned = [links[worker::2] * math.sqrt(0.5 * (1.0 - mu) * len(links[worker::2])) for worker in (0, 1)]
    targets = [np.zeros(len(one)) for one in owned]
    targets[0][0] = math.sqrt(0.5 * (1.0 - mu) * len(owned[0]))
    return Custom.from_arrays(owned, targets, loss="ridge", l2=mu)


def least_gaps(problem: Problem) -> np.ndarray:
    """The least f(x) - f* over x of which the first k coordinates alone are not 0, for k = 0, 1, ..., d.

    After k rounds no method is further, whatever its workers do on their own, as long as it stays in the span of what
    it has seen. f* - f at the best such x is half the sum of y_j^2, j <= k, where L y = b and L L' is the Hessian.
    """
    exact = Quadratics.of(problem)
    y = np.linalg.solve(np.linalg.cholesky(exact.matrices.mean(0)), exact.linear.mean(0))
    return 0.5 * np.concatenate([np.cumsum((y**2)[::-1])[::-1], [0.0]])


def lower_bound(condition: float, accuracy: float, seeds: int) -> Outcome:
    """Rounds over L / mu of methods that reach x*, and of nobody; and no gap below the least possible one."""
    conditions = 4.0 ** np.arange(2, math.floor(math.log(condition, 4) + 1e-9) + 1)
    shown = conditions[len(conditions) // 4]  # where the other methods run as well, which do not get there
    rows, worst, panel = [], math.inf, Panel("", "", "", [])
    for kappa in conditions:
        problem = chain(math.ceil(0.5 * math.sqrt(kappa) * math.log(1.0 / accuracy)) + 20, float(kappa))
        least = least_gaps(problem)
        methods = CHAIN if kappa == shown else CHAIN[:3]
        every = max(1, int(kappa) // 200)
        runs = run(problem, methods, rounds=int(10 * kappa), until=accuracy * least[0], every=every, seeds=seeds)
        worst = min(worst, _above(runs, least))
        row = {"L/μ": float(kappa), NOBODY: float(np.argmax(least <= accuracy * least[0]))}
        row |= {label: cost(runs, label, accuracy * least[0], "rounds") for label, _ in CHAIN[:3]}
        row["ProxSkip, gradients"] = cost(runs, "ProxSkip", accuracy * least[0], "gradients")
        if len(methods) > 3:
            row |= {label: cost(runs, label, accuracy * least[0], "rounds") for label, _ in CHAIN[3:]}
            panel = _chain_panel(runs, least, float(kappa), methods)
        rows.append(row)
    table = pd.DataFrame(rows)
    slopes = {name: exponent(numbers(table, "L/μ"), numbers(table, name)) for name in table.columns[1:6]}
    return Outcome(
        _bound_verdicts(table, slopes, worst),
        {"lower-bound": _bound_figure(table, panel, accuracy)},
        {"lower-bound": table},
    )


def _above(runs: Runs, least: np.ndarray) -> float:
    """The smallest ratio of a gap to the least possible one after as many rounds."""
    rounds = np.minimum(numbers(runs.trace, "rounds").astype(int), len(least) - 1)
    seen = (numbers(runs.trace, "iteration") > 0) & (least[rounds] > 1e-12 * least[0])  # beyond, gaps are rounding
    return float((numbers(runs.trace, "gap")[seen] / least[rounds[seen]]).min())


def _chain_panel(runs: Runs, least: np.ndarray, kappa: float, methods: list[tuple[str, str]]) -> Panel:
    lines = [line(runs, label, "rounds", "gap") for label, _ in methods]
    kept = least > 1e-2 * min(one.y.min() for one in lines)
    bound = Series(NOBODY, np.arange(len(least), dtype=float)[kept], least[kept], dashed=True)
    return Panel(f"a chain cut in two, L/μ = {kappa:.0f}", ROUNDS, GAP, [*lines, bound])


def _bound_verdicts(table: pd.DataFrame, slopes: dict[str, float], worst: float) -> list[Verdict]:
    ends = f"L/μ = {table['L/μ'].iloc[0]:.0f} to {table['L/μ'].iloc[-1]:.0f}"
    over = float((numbers(table, "Nesterov") / numbers(table, NOBODY)).max())
    scaffold = float(np.nanmin(numbers(table, "SCAFFOLD, H = 10") / numbers(table, "GD")))
    local = bool(np.isfinite(numbers(table, "local GD, H = 10")).any())
    return [
        Verdict(
            "lower-bound",
            "no method, local steps or not, takes fewer than Ω(√(L/μ) log 1/ε) rounds",
            ruled(abs(slopes[NOBODY] - 0.5) < 0.1 and worst >= 1.0 - 1e-9),
            slopes[NOBODY],
            f"on a chain cut in two the least number of rounds grows like (L/μ)^{slopes[NOBODY]:.2f} over {ends}, and "
            f"the gaps of {len(CHAIN)} methods are at least {worst:.3f} times the least possible one",
        ),
        Verdict(
            "nesterov-optimal",
            "Nesterov's method with one local step between communications reaches it",
            ruled(abs(slopes["Nesterov"] - 0.5) < 0.1 and abs(slopes["GD"] - 1.0) < 0.15 and over < 10.0),
            slopes["Nesterov"],
            f"its rounds grow like (L/μ)^{slopes['Nesterov']:.2f} and are at most {over:.1f} times the least possible "
            f"(GD: (L/μ)^{slopes['GD']:.2f})",
        ),
        Verdict(
            "proxskip-rounds",
            "(what the slides leave out) is one local step needed for it?",
            ruled(abs(slopes["ProxSkip"] - 0.5) < 0.15 and abs(slopes["ProxSkip, gradients"] - 1.0) < 0.15),
            slopes["ProxSkip"],
            f"ProxSkip takes about √(L/μ) local steps a round and rounds that grow like "
            f"(L/μ)^{slopes['ProxSkip']:.2f}, but gradients like (L/μ)^{slopes['ProxSkip, gradients']:.2f}",
        ),
        Verdict(
            "scaffold-rounds",
            "(what the slides leave out) correcting the drift removes the floor and saves no rounds against GD",
            ruled(0.8 < scaffold < math.inf and not local),
            scaffold,
            f"SCAFFOLD with 10 local steps of 1/(10L) takes {scaffold:.2f} times the rounds of GD with 1/L; plain "
            f"local steps {'reach' if local else 'do not reach'} that accuracy",
        ),
    ]


def _bound_figure(table: pd.DataFrame, panel: Panel, accuracy: float) -> Grid:
    x = numbers(table, "L/μ")
    lines = [Series(name, x, numbers(table, name)) for name in ("GD", "Nesterov", "ProxSkip")]
    bound = Series(NOBODY, x, numbers(table, NOBODY), dashed=True)
    return Grid(
        "Nesterov's worst quadratic, its links dealt to two workers in turn. The bound is the least gap of any method "
        f"that has heard of so many coordinates. Right: rounds to {accuracy:g} of the first gap.",
        [[panel, Panel("rounds over L/μ", "L/μ", "rounds", [*lines, bound], "xy")]],
    )


# ---- stochastic gradients, and workers that are alike ----------------------------------------------------------------


def stochastic(lengths: tuple[int, ...], seeds: int, jobs: int) -> Outcome:
    """Tuned local SGD against tuned minibatch SGD, plain and accelerated, with as many rounds and gradients."""
    steps, rows = 8, []
    methods = [
        ("local", f"local_sgd(local_steps={steps}, step=0.08, estimator=sgd(batch=1))"),
        ("minibatch", f"gd(step=0.32, estimator=sgd(batch={steps}))"),
        ("accelerated", f"nesterov(step=0.32, momentum=0.7, estimator=sgd(batch={steps}))"),
    ]
    for split in ("sorted", "shuffled"):
        for rounds in lengths:
            problem = f"logistic(data='breast_cancer', l2=0.01, workers=10, split={split!r})"
            every = max(1, rounds // 20)
            tuned = tune(
                problem, methods, rounds=rounds, multipliers="2^-2..2^3", seeds=seeds, widen=2, jobs=jobs, every=every
            )
            found = {name: 10.0**score for name, score in tuned.test.items()}
            best = min(found["minibatch"], found["accelerated"])
            rows.append({"split": split, "rounds": rounds} | found | {"local / best other": found["local"] / best})
    table = pd.DataFrame(rows)
    ratio = numbers(table, "local / best other")
    return Outcome(
        [
            Verdict(
                "stochastic-no-better",
                "local methods are for stochastic problems, but even there there is generally no improvement",
                ruled(ratio.max() > 0.95),
                float(ratio.max()),
                f"with {steps} gradients a round, all tuned, local SGD has {ratio.min():.2f} to {ratio.max():.2f} "
                f"times the mean gap of minibatch SGD, accelerated or not, in {len(ratio)} settings of a logistic "
                f"regression: clearly lower in {int((ratio < 0.95).sum())} of them",
            )
        ],
        {},
        {"stochastic": table},
    )


def alike(accuracy: float) -> Outcome:
    """Rounds of local steps beside Nesterov's, over how unlike the workers are."""
    noises, rows = (0.0, 0.01, 0.1, 0.3), []
    for noise in noises:
        problem = f"quadratic(d=60, workers=5, noise={noise!r}, mu=0.01)"
        target = accuracy * float(numbers(run(problem, ["gd"], iterations=1).trace, "gap")[0])
        methods = [("Nesterov", "nesterov"), ("local GD, H = 50", "local_sgd(local_steps=50, step=0.5)")]
        runs = run(problem, methods, rounds=60, until=target)
        row = {"noise": noise} | {label: cost(runs, label, target, "rounds") for label, _ in methods}
        rows.append(row | {"least gap of local GD": float(numbers(seeds_of(runs, "local GD, H = 50")[0], "gap").min())})
    table = pd.DataFrame(rows)
    first, last = table.iloc[0], table.iloc[-1]
    share = float(first["local GD, H = 50"] / first["Nesterov"])
    return Outcome(
        [
            Verdict(
                "where-local-wins",
                "there are settings in which local methods shoot out: workers whose data are alike",
                ruled(share < 0.5 and last["local GD, H = 50"] > last["Nesterov"]),
                share,
                f"on equal workers 50 local steps take {first['local GD, H = 50']:.0f} rounds to {accuracy:g} of the "
                f"first gap, Nesterov's method {first['Nesterov']:.0f}; on unlike ones (noise {last['noise']:g}) "
                f"{_said(last['local GD, H = 50'])}, and {last['Nesterov']:.0f}",
            )
        ],
        {},
        {"alike": table},
    )


def _said(rounds: float) -> str:
    return f"{rounds:.0f}" if math.isfinite(rounds) else "they do not get there"
