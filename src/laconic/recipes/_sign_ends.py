"""Where sign methods end: at medians, when workers differ; and what error feedback makes of signs."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import numpy as np
import pandas as pd

from laconic.core.keys import Keys
from laconic.core.problem import Problem
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Verdict
from laconic.lab.run import Runs, run
from laconic.lab.trace import numbers
from laconic.problems.custom import Custom
from laconic.recipes._common import line, ruled, seeds_of, tail

DISTANCE, ROUNDS = "‖x − x*‖²", "communication rounds"
Timer = Callable[[str], AbstractContextManager[None]]
_CORRECTION = "the authors' correction of 2026 (arXiv 1905.12938v6) restricts the theorem to workers with one objective"


class Sizes(Protocol):
    """What is asked of the recipe: its sizes and its regressions."""

    @property
    def d(self) -> int: ...

    @property
    def workers(self) -> int: ...

    @property
    def step(self) -> float: ...

    @property
    def rounds(self) -> int: ...

    @property
    def iterations(self) -> int: ...

    @property
    def condition(self) -> float: ...

    @property
    def levels(self) -> int: ...

    @property
    def target(self) -> float: ...

    @property
    def seeds(self) -> int: ...

    def regression(self, spread: float) -> Problem:
        """Least squares in which worker i's rows fit a solution of its own."""
        ...


def ends(recipe: Sizes, timer: Timer) -> Outcome:
    """All claims about sign methods."""
    with timer("majority vote on a line"):
        median, on_a_line = _median()
    with timer("SSDM in the plane"):
        plane, in_the_plane, table = _ssdm(recipe)
    with timer("sign methods on regressions"):
        regressions, panels, heights = _regressions(recipe)
    ends_at = Grid(
        "Where signs alone end when workers differ. Left: majority vote on three parabolas goes to the median of their "
        "minimisers, 1, not to their mean, 2. Right: the average of ‖∇f‖ over K iterations of SSDM, with steps "
        "K^(−3/4): it falls where all workers have one objective; with three it stays above ‖∇f‖ at the geometric "
        "median of their minimisers, to which it goes.",
        [[on_a_line, in_the_plane]],
    )
    memories = Grid(
        f"Sign methods on regressions, {recipe.workers} workers, at a step γ and a quarter of it. Alike (all rows fit "
        "one solution), bare signs stop at a distance in proportion to γ. Unlike, majority vote and the scaled sign "
        "without a memory stop at one that γ does not change, EF-signSGD at one in proportion to γ, and EF21 nowhere; "
        "SSDM's bias, which three workers in the plane show, is small here beside its noise.",
        [panels],
    )
    verdicts = [median, *plane, *regressions]
    return Outcome(verdicts, {"ends": ends_at, "signs": memories}, {"SSDM": table, "signs": heights})


def normals(name: str, rows: int, columns: int) -> np.ndarray:
    """Standard normal numbers of that name, (rows, columns), the same ones always."""
    return Keys(0, 0, f"recipe/{name}", np.arange(rows), rows).normal(columns).numpy()


# ---- exact examples --------------------------------------------------------------------------------------------------


def _parabolas(centres: list[list[float]]) -> Problem:
    """f_i(x) = ||x - c_i||^2 / (2 d): half the mean of d squares."""
    d = len(centres[0])
    return Custom.from_arrays([np.eye(d)] * len(centres), [np.array(c) for c in centres], loss="ridge", l2=0.0)


def _median() -> tuple[Verdict, Panel]:
    """On a line: votes are the signs of x - c_i, whatever the curvatures."""
    centres, rounds, lines, apart = [0.0, 1.0, 5.0], 160, [], {}
    mean, middle = float(np.mean(centres)), float(np.median(centres))
    problem = _parabolas([[c] for c in centres])
    for step in (0.125, 0.03125):
        runs = run(problem, [("majority vote", f"gd(majority_vote, step={step!r})")], rounds=rounds)
        rows = seeds_of(runs, "majority vote")[0]
        x = mean - np.sqrt(numbers(rows, "distance2"))  # it comes from the left, and stays there
        apart[step] = float(np.abs(x[-8:] - middle).max())
        lines.append(Series(f"majority vote, step {step:g}", numbers(rows, "rounds"), x))
    at = np.array([0.0, float(rounds)])
    lines += [
        Series("median of the minimisers", at, np.full(2, middle), dashed=True),
        Series("x*, their mean", at, np.full(2, mean), dashed=True),
    ]
    stuck = all(far <= step * (1.0 + 1e-9) for step, far in apart.items())
    verdict = Verdict(
        "majority-vote-median",
        "(question of the slides, of any compressor: do we have convergence?) majority vote of signs goes to x*",
        ruled(not stuck),
        abs(middle - mean),
        f"f_i = (x − c_i)²/2 with c = (0, 1, 5): it ends within a step of the median, {middle:g} (steps 1/8 and 1/32: "
        f"at most {apart[0.125]:.3f} and {apart[0.03125]:.3f} away), and x* = {mean:g} is the mean",
    )
    return verdict, Panel("majority vote, one dimension", ROUNDS, "x", lines, "")


def _geometric_median(points: np.ndarray) -> np.ndarray:
    """The minimiser of the sum of distances to the points, by Weiszfeld's iteration."""
    x = points.mean(axis=0)
    for _ in range(5000):
        weights = 1.0 / np.linalg.norm(points - x, axis=1)
        x = weights @ points / weights.sum()
    return x


def _ssdm(recipe: Sizes) -> tuple[list[Verdict], Panel, pd.DataFrame]:
    """The mean of ||grad f|| over K iterations, and where it ends, for one objective and for three."""
    corners = [[0.5, 0.5], [1.5, 0.5], [0.5, 0.75]]
    points = np.array(corners)
    mean, middle = points.mean(axis=0), _geometric_median(points)
    away = float(np.linalg.norm(mean - middle))
    problems = {"one objective": _parabolas([mean.tolist()] * 3), "three objectives": _parabolas(corners)}
    lengths = [recipe.iterations // 4**power for power in range(4) if recipe.iterations // 4**power >= 64][::-1]
    rows = [
        {"workers have": label, "K": k, **_of_length(problem, k, recipe.seeds)}
        for label, problem in problems.items()
        for k in lengths
    ]
    table = pd.DataFrame(rows)
    norms = {label: table.loc[table["workers have"] == label, "mean ‖∇f‖"].to_numpy(dtype=float) for label in problems}
    one, three = norms.values()
    slope = -float(np.polyfit(np.log(lengths), np.log(one), 1)[0])
    found = float(table["distance at the end"].iloc[-1])
    off, floor = abs(found / away - 1.0), away / 2.0
    verdicts = [
        Verdict(
            "ssdm-one-objective",
            "SSDM (the paper of the slide on signs): (1/K) Σ E‖∇f(x_k)‖ = O(K^(−1/4)) with steps K^(−3/4) and momentum "
            "1 − K^(−1/2), for workers with one objective",
            ruled(slope > 0.22),
            slope,
            f"from K = {lengths[0]} to {lengths[-1]} the mean falls from {one[0]:.2f} to {one[-1]:.2f}, as K to the "
            f"power −{slope:.2f} (exact gradients: the signs are all that is random)",
        ),
        Verdict(
            "ssdm-three-objectives",
            "SSDM converges also where data are partitioned and workers differ (as published in 2021)",
            ruled(not (off < 0.1 and bool((three > 0.95 * floor).all()))),
            found,
            f"f_i = ‖x − c_i‖²/4: it ends {found:.3f} from x*, and the geometric median of the c_i, where the mean of "
            f"∇f_i / ‖∇f_i‖ is 0, is {away:.3f} from x*; the mean of ‖∇f‖ stays above {floor:.2f} at every "
            f"K; {_CORRECTION}",
        ),
    ]
    k = np.array(lengths, dtype=float)
    lines = [Series(f"SSDM, {label}", k, values) for label, values in norms.items()]
    lines += [
        Series("‖∇f‖ at the geometric median", k, np.full(len(k), floor), dashed=True),
        Series("K^(−1/4), scaled", k, one[0] * (k / k[0]) ** -0.25, dashed=True),
    ]
    return verdicts, Panel("SSDM, three workers in the plane", "iterations K", "mean ‖∇f‖ over K", lines, "xy"), table


def _of_length(problem: Problem, k: int, seeds: int) -> dict[str, float]:
    spec = f"gd(ssdm(momentum={1.0 - k**-0.5!r}), step={k**-0.75!r})"
    runs = run(problem, [("SSDM", spec)], iterations=k, seeds=seeds, every=max(1, k // 256))
    norms = [np.sqrt(numbers(rows, "grad_norm2")).mean() for rows in seeds_of(runs, "SSDM")]
    return {"mean ‖∇f‖": float(np.mean(norms)), "distance at the end": math.sqrt(tail(runs, "SSDM", "distance2", 0.25))}


# ---- regressions -----------------------------------------------------------------------------------------------------


def _specs(signs: float, memories: float) -> list[tuple[str, str]]:
    """Every method at one step for bare signs, whose moves do not shrink, and one for the others."""
    return [
        ("majority vote", f"gd(majority_vote, step={signs!r})"),
        ("SSDM", f"gd(ssdm, step={signs!r})"),
        ("scaled sign, no memory", f"gd(direct(scaled_sign), step={memories!r})"),
        ("EF-signSGD", f"gd(ef14(scaled_sign), step={memories!r})"),
        ("EF21, scaled sign", f"gd(ef21(scaled_sign), step={memories!r})"),
    ]


def _regressions(recipe: Sizes) -> tuple[list[Verdict], list[Panel], pd.DataFrame]:
    signs, memories, rounds = recipe.step, 4.0 * recipe.step, recipe.rounds
    found: dict[str, dict[str, float]] = {}
    panels, rows = [], []
    for title, spread in (("alike", 0.0), ("unlike", 2.0)):
        problem = recipe.regression(spread)
        both = {share: _at(problem, share * signs, share * memories, rounds, recipe.seeds) for share in (1.0, 0.25)}
        labels = [label for label, _ in _specs(signs, memories)]
        for label in labels:
            far, near = (math.sqrt(tail(both[share][label], label, "distance2", 0.2)) for share in (1.0, 0.25))
            found.setdefault(title, {})[label] = far / near
            found[title][f"{label}, γ"] = far
            rows.append({"workers": title, "method": label, "at γ": far, "at γ/4": near, "ratio": far / near})
        for share, name in ((1.0, "γ"), (0.25, "γ/4")):
            lines = [line(both[share][label], label, "rounds", "distance2") for label in labels]
            panels.append(Panel(f"{title} workers, step {name}", ROUNDS, DISTANCE, lines))
    alike, unlike = found["alike"], found["unlike"]
    bare = [alike["majority vote"], alike["SSDM"]]
    stays = unlike["majority vote"]
    exact = unlike["EF21, scaled sign, γ"] / unlike["EF-signSGD, γ"]
    verdicts = [
        Verdict(
            "signs-alike",
            "signs alone, without scale (majority vote, SSDM), converge up to the step where all workers fit one x*",
            ruled(min(bare) > 2.0),
            min(bare),
            f"a quarter of the step divides the distance at which they stop by {bare[0]:.1f} (majority vote) and "
            f"{bare[1]:.1f} (SSDM)",
        ),
        Verdict(
            "signs-unlike",
            "(the same question) with unlike workers a small step brings majority vote as near to x* as one likes",
            ruled(stays > 2.0),
            stays,
            f"a quarter of the step divides its distance from x* by {stays:.2f} only: it stays "
            f"{unlike['majority vote, γ']:.2f} away; the scaled sign without a memory by "
            f"{unlike['scaled sign, no memory']:.2f}, at {unlike['scaled sign, no memory, γ']:.2f}",
        ),
        Verdict(
            "error-feedback-signs",
            "error feedback mends sign compression (EF-signSGD), up to a distance in proportion to the step",
            ruled(unlike["EF-signSGD"] > 2.5 and unlike["EF-signSGD, γ"] < 0.5 * unlike["scaled sign, no memory, γ"]),
            unlike["EF-signSGD"],
            f"with a memory the scaled sign ends {unlike['EF-signSGD, γ']:.3f} from x* "
            f"({unlike['scaled sign, no memory, γ']:.2f} without), and a quarter of the step divides that by "
            f"{unlike['EF-signSGD']:.1f}",
        ),
        Verdict(
            "ef21-signs",
            "(what takes the rest away?) compressing differences to a memory, EF21, needs no small step",
            ruled(exact < 1e-3),
            exact,
            f"EF21 with the same message and step ends {exact:.0e} times as far from x* as EF-signSGD, still falling "
            "or at rounding errors",
        ),
    ]
    return verdicts, [panels[0], panels[2], panels[3]], pd.DataFrame(rows)


def _at(problem: Problem, signs: float, memories: float, rounds: int, seeds: int) -> dict[str, Runs]:
    """The runs of every method by its label; SSDM alone is random."""
    return {
        label: run(
            problem, [(label, spec)], rounds=rounds, seeds=seeds if label == "SSDM" else 1, every=max(4, rounds // 400)
        )
        for label, spec in _specs(signs, memories)
    }
