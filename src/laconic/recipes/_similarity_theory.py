"""The lecture's claims about how alike workers are, and about mirror descent with the server's function."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np
import pandas as pd

from laconic.core.method import Method
from laconic.core.problem import Block, Problem
from laconic.core.spec import parse
from laconic.core.theory import Setting
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Ruling, Verdict
from laconic.lab.run import run
from laconic.recipes._common import ruled
from laconic.recipes._similarity_data import (
    DELTA,
    Lecture,
    Sample,
    Slope,
    column,
    constants_of,
    course,
    problem_of,
    rotated,
    slope,
)
from laconic.recipes._similarity_errata import constant, forms
from laconic.runtime.local import Local

RIDGE = 0.03  # weight of ||x||^2 / 2 in the problems of mirror descent
LOSS = 1.5  # the factor c of a relative shift
FEWEST, MOST = 16, 256  # rows of a worker


# ---- delta and the local sample --------------------------------------------------------------------------------------


def similarity(recipe: Lecture) -> Outcome:
    """delta over N, the relative shift over N, and their slopes."""
    rows = []
    sizes = [int(n) for n in np.round(np.geomspace(FEWEST, MOST, recipe.doublings))]
    for seed in range(recipe.seeds + 2):
        for n in sizes:
            sample = Sample.draw(recipe.workers, n, 6 * recipe.d, 0.5, seed)
            few = Sample.draw(recipe.workers, n, recipe.d, 0.5, seed)
            ridge = constants_of(sample.ridge(1e-3))
            logistic = constants_of(few.logistic(1e-3))
            rows.append(
                {
                    "seed": seed,
                    "N": n,
                    "ridge: L": ridge["L"],
                    "ridge: δ": ridge["delta"],
                    "ridge: shift s": relative_shift(sample.hessians),
                    "logistic: L": logistic["L"],
                    "logistic: δ": logistic["delta"],
                }
            )
    table = pd.DataFrame(rows)
    names = ("ridge: δ", "logistic: δ", "ridge: shift s")
    ridge, logistic, shift = (slope(column(table, "N"), column(table, name)) for name in names)
    halves = all(abs(one.value + 0.5) < 0.12 for one in (ridge, logistic))
    means = cast(pd.DataFrame, table.groupby("N", as_index=False).mean())
    drop = max(float(column(means, name)[-1] / column(means, name)[0]) for name in names[:2])
    shifted = abs(shift.value + 1.0) < 0.25 and ridge.low > -0.8
    return Outcome(
        [
            Verdict(
                "delta-root",
                "on independent data δ = max_m ‖∇²f_m − ∇²f‖ ~ L/√N, N being the size of the local sample",
                ruled(halves),
                ridge.value,
                f"slopes of log δ over log N: ridge {ridge}, logistic {logistic}; −1/2 is claimed",
            ),
            Verdict(
                "delta-quadratic",
                "for quadratics δ ~ L/N",
                Ruling.CORRECTED if shifted else ruled(abs(ridge.value + 1.0) < 0.12),
                ridge.value,
                f"not for the norm, whose slope on ridge is {ridge}; what falls like 1/N is the relative shift s with "
                f"H ≼ {LOSS} (H_m + s I) and H_m ≼ {LOSS} (H + s I): slope {shift}",
            ),
            Verdict(
                "larger-samples",
                "in any case: the larger the local sample, the smaller δ",
                ruled(drop < 0.7),
                drop,
                f"from N = {FEWEST} to {MOST} δ falls to at most {drop:.2f} of what it was",
            ),
        ],
        {"similarity": _similarity_figure(means, ridge, shift)},
        {"similarity": cast(pd.DataFrame, means.drop(columns="seed"))},
    )


def relative_shift(hessians: np.ndarray, c: float = LOSS) -> float:
    """The least s >= 0 with H <= c (H_m + s I) and H_m <= c (H + s I) for every m."""
    mean = hessians.mean(0)
    apart = [np.linalg.eigvalsh(low / c - high)[-1] for one in hessians for low, high in ((one, mean), (mean, one))]
    return max(0.0, float(max(apart)))


def _similarity_figure(means: pd.DataFrame, ridge: Slope, shift: Slope) -> Grid:
    n = column(means, "N")
    norms = [Series(name, n, column(means, name)) for name in ("ridge: δ", "logistic: δ")]
    norms.append(Series("like 1/√N", n, norms[0].y[0] * np.sqrt(n[0] / n), dashed=True))
    shifts = [Series("ridge: shift s", n, column(means, "ridge: shift s"))]
    shifts += [Series("like 1/N", n, shifts[0].y[0] * n[0] / n, dashed=True)]
    rows = "rows of a worker N"
    return Grid(
        f"How alike workers with independent rows are: the norm falls like 1/√N on quadratics too (slope "
        f"{ridge.value:.2f}); the relative shift falls like 1/N (slope {shift.value:.2f}).",
        [[Panel("norm of the difference", rows, "δ", norms, "xy"), Panel("relative shift", rows, "s", shifts, "xy")]],
    )


# ---- mirror descent --------------------------------------------------------------------------------------------------


def mirror_descent(recipe: Lecture) -> Outcome:
    """The two theorems, what they need and what they are good for."""
    n = recipe.workers
    sample = Sample.draw(n, recipe.rows, recipe.d, 1.5, 0)
    problems: dict[str, str | Problem] = {
        "ridge": sample.ridge(RIDGE),
        "logistic": sample.logistic(RIDGE),
        "rotated": _bent(recipe),
    }
    rows = [_contraction(name, problem, recipe.accuracy) for name, problem in problems.items()]
    table = pd.DataFrame(rows)
    verdicts = [
        _euclidean(problems["rotated"]),
        _general(problems["ridge"], sample.hessians, recipe.accuracy),
        *_similar(table),
        constant(),
        _count(problems["logistic"], recipe.accuracy),
        *forms(),
    ]
    return Outcome(verdicts, {}, {"mirror descent": table})


def _bent(recipe: Lecture) -> str:
    """Quadratics whose f_1 is not convex: f is as flat as that takes."""
    mu = DELTA / 8.0
    while np.linalg.eigvalsh(_hessian_of_first(rotated(recipe.d, recipe.workers, mu)))[0] > -0.1 * DELTA * mu:
        mu /= 2.0
    return rotated(recipe.d, recipe.workers, mu)


def _iterates(problem: str | Problem, spec: str) -> Iterator[np.ndarray]:
    """The points of a method, from x^0 on."""
    problem = problem_of(problem)
    runtime = Local(problem.n)
    (link,) = runtime.links
    oracles = problem.host(link.block)
    method = parse(spec)
    assert isinstance(method, Method)
    method, step = method.settled(Setting.of(problem, oracles)), 0
    link.begin(step)
    (state,) = runtime.drive(method.init(oracles, link))
    while True:
        yield method.point(state).numpy().copy()
        step += 1
        link.begin(step)
        (state,) = runtime.drive(method.iterate(state, oracles, link))


def _ratios(problem: str | Problem, spec: str, weight: float, accuracy: float) -> np.ndarray:
    """V(x*, x_k) / V(x*, x_0) of phi = f_1 + (weight / 2) ||.||^2, until it is at most `accuracy`."""
    problem = problem_of(problem)
    first, solution = problem.oracles(Block(0, 1, problem.n)), problem.solution()
    assert solution is not None
    found: list[float] = []
    for point in _iterates(problem, spec):
        x = solution.x.new_tensor(point)
        way = solution.x - x
        straight = float(first.values(solution.x) - first.values(x)) - float(first.gradients(x)[0] @ way)
        found.append(straight + 0.5 * weight * float(way @ way))
        if found[-1] <= accuracy * found[0]:
            break
    return np.array(found) / found[0]


def _contraction(name: str, problem: str | Problem, accuracy: float) -> dict[str, object]:
    c = constants_of(problem)
    mu, delta = c["mu"], c["delta_server"]
    bound = 1.0 - mu / (mu + 2.0 * delta)
    ratios = _ratios(problem, "mirror_descent(server(accuracy=1e-4))", delta, accuracy)
    descent = course(problem, "gd", accuracy, every=5).trace["rounds"].iloc[-1]
    own = np.linalg.eigvalsh(_hessian_of_first(problem))
    return {
        "problem": name,
        "delta_server/μ": delta / mu,
        "L/μ": c["L"] / mu,
        "least curvature of f_1": float(own[0]),
        "worst V ratio": float((ratios[1:] / ratios[:-1]).max()),
        "1 − μ/(μ+2δ)": bound,
        "rounds": len(ratios) - 1,
        "(1+δ/μ) ln(V₀/ε)": (1.0 + delta / mu) * math.log(1.0 / accuracy),
        "rounds of gd": int(descent),
    }


def _hessian_of_first(problem: str | Problem) -> np.ndarray:
    """Of f_1 at x^0, by products."""
    problem = problem_of(problem)
    first = problem.oracles(Block(0, 1, problem.n))
    basis = np.eye(first.d)
    return np.stack([first.products(first.start(), first.start().new_tensor(e))[0].numpy() for e in basis])


def _euclidean(problem: str | Problem) -> Verdict:
    smooth = constants_of(problem)["L"]
    methods = [("mirror", f"mirror_descent(euclidean, smoothness={smooth!r})"), ("gd", f"gd(step={1.0 / smooth!r})")]
    trace = run(problem, methods, iterations=30).trace
    one, other = (column(pd.DataFrame(trace[trace["method"] == label]), "gap") for label, _ in methods)
    apart = float(np.abs(one / other - 1.0).max())
    return Verdict(
        "euclidean",
        "question: which method is mirror descent with φ = ‖x‖²/2? (gradient descent)",
        ruled(apart < 1e-9),
        apart,
        f"its gaps and those of gradient descent with the step 1/L differ by {apart:.0e} over 30 steps",
    )


def _general(problem: str | Problem, hessians: np.ndarray, accuracy: float) -> Verdict:
    """With the best constants there are, by generalised eigenvalues."""
    c = constants_of(problem)
    delta, l2 = c["delta_server"], RIDGE * np.eye(hessians.shape[1])
    whole, phi = hessians.mean(0) + l2, hessians[0] + l2 + delta * np.eye(hessians.shape[1])
    root = np.linalg.inv(np.linalg.cholesky(phi))
    low, high = np.linalg.eigvalsh(root @ whole @ root.T)[[0, -1]]
    spec = f"mirror_descent(server(accuracy=1e-4), smoothness={float(high)!r})"
    ratios = _ratios(problem, spec, delta, accuracy)
    worst, bound = float((ratios[1:] / ratios[:-1]).max()), 1.0 - float(low / high)
    return Verdict(
        "relative-theorem",
        "with step 1/L_φ, V(x*, w_K) ≤ (1 − μ_φ/L_φ)^K V(x*, w_0), where μ_φ ∇²φ ≼ ∇²f ≼ L_φ ∇²φ",
        ruled(worst <= bound * (1.0 + 1e-9)),
        worst / bound,
        f"on ridge with the tightest constants (μ_φ = {low:.3g}, L_φ = {high:.3g}) the worst step shrinks V by "
        f"{worst:.4f}; the bound is {bound:.4f}",
    )


def _similar(table: pd.DataFrame) -> list[Verdict]:
    least = float(column(table, "least curvature of f_1").min())
    shares = column(table, "worst V ratio") / column(table, "1 − μ/(μ+2δ)")
    odd_worst = float(shares[column(table, "least curvature of f_1") < 0.0].max(initial=-math.inf))
    worst = float(shares.max())
    share = float((column(table, "rounds") / column(table, "(1+δ/μ) ln(V₀/ε)")).max())
    faster = column(table, "rounds of gd") / column(table, "rounds")
    claimed = column(table, "L/μ") / (1.0 + column(table, "delta_server/μ"))
    where = int(np.argmax(claimed))
    return [
        Verdict(
            "similarity-theorem",
            "with φ = f_1 + (δ/2)‖w‖² and step 1, V(x*, w_K) ≤ (1 − μ/(μ + 2δ))^K V(x*, w_0)",
            ruled(worst <= 1.0 + 1e-6),
            worst,
            f"the worst step of three problems shrinks V by {worst:.4f} times the bound (at most 1 is claimed)",
        ),
        Verdict(
            "convex-first",
            "f_1 (and each f_i) must be convex",
            Ruling.CORRECTED if 0.0 < odd_worst <= 1.0 + 1e-6 else ruled(odd_worst > 1.0),
            least,
            f"f alone must be: with an f_1 whose least curvature is {least:.3f} every step keeps the bound "
            f"({odd_worst:.3f} of it), for ∇²f_1 + δ I ≽ ∇²f",
        ),
        Verdict(
            "mirror-rounds",
            "so K = ([1 + δ/μ] log(V(x*, w_0)/ε)) communications do (an O is missing)",
            ruled(share <= 1.0),
            share,
            f"the rounds are at most {share:.2f} times [1 + δ/μ] ln(V(x*, w_0)/ε); the theorem gives [1 + 2δ/μ]",
        ),
        Verdict(
            "better-than-descent",
            "that is better than the L/μ of gradient descent",
            ruled(bool(faster[where] > 1.0)),
            float(faster[where]),
            f"where L/μ is {claimed[where]:.1f} times 1 + δ/μ ({table['problem'].tolist()[where]}) gradient descent "
            f"takes {faster[where]:.1f} times the rounds",
        ),
    ]


def _count(problem: str | Problem, accuracy: float) -> Verdict:
    end = course(problem, "mirror_descent", accuracy).trace.iloc[-1]
    rounds, steps, gradients = float(end["rounds"]), float(end["iteration"]), float(end["gradients"])
    return Verdict(
        "one-round",
        "K iterations are K communications; the argmin needs the server alone",
        ruled(rounds == steps == gradients and float(end["server_gradients"]) > 0.0),
        rounds / steps,
        f"{steps:.0f} iterations: {rounds:.0f} rounds, {gradients:.0f} gradients of each worker, and "
        f"{end['server_gradients']:.0f} of f_1 at the server",
    )
