"""Newton's method with Hessians that are learned: near the solution, from zero, and from far away."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from laconic.core.keys import Keys
from laconic.core.problem import Block, Oracles
from laconic.core.spec import parse
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Verdict
from laconic.lab.run import Runs, run
from laconic.lab.trace import numbers
from laconic.problems._arrays import Arrays
from laconic.recipes._common import line, ruled, seeds_of, timed

D = 30  # of the problem here
ROUNDING = 1e-13  # distances below are not looked at
GONE = 1e-6  # share of the first distance that is to be left
AWAY = 100.0  # times the radius of the theorem
FEDNL = f"fednl(topk(k={D}))"
METHODS = {
    "Newton": "newton",
    "Newton-star": "newton_star",
    "Newton-zero": "n0",
    "FedNL, Top-d": FEDNL,
}
FAR = {
    "Newton": "newton",
    "FedNL, projected": f"fednl_projected(topk(k={D}))",
    "FedNL, Top-d": FEDNL,
    "FedNL-LS": f"fednl_ls(topk(k={D}))",
    "FedNL-CR": f"fednl_cr(topk(k={D}))",
}


@dataclass(frozen=True, eq=False)
class Elsewhere(Arrays):
    """A problem with another x^0."""

    start: Tensor | None = None

    @staticmethod
    def of(problem: Any, start: Tensor) -> Elsewhere:
        """A linear model with that x^0."""
        return Elsewhere(problem.dealt(), problem.model(), problem.constants(), problem.solution(), start)

    def oracles(self, block: Block, data_dir: Path | None = None) -> Oracles:
        """Those of the arrays, from elsewhere."""
        oracles, start = super().oracles(block, data_dir), self.start
        assert start is not None
        oracles.start = lambda: start.clone()
        return oracles


def near(weights: Sequence[float], rounds: int, most: int, minutes: dict[str, float]) -> Outcome:
    """All claims about rounds. `weights` are those of the ridge, the first of the easiest problem.

    First-order methods take at most `most` rounds, and are left out where that is too few.
    """
    with timed(minutes, "rates of second-order methods"):
        rates, panels = _rates(_problem(weights[0]), rounds)
    with timed(minutes, "condition numbers"):
        conditions, panel, table = _conditions(weights, most)
    with timed(minutes, "second-order methods from far away"):
        globally, far = _from_far(_problem(weights[0]), rounds)
    figure = Grid(
        f"Logistic regression on breast_cancer, 10 workers. Above: from x⁰ = 0 with λ = {weights[0]:g}, the distance "
        "to x*, and what a round leaves of it: a constant share with a frozen Hessian, ever less with a learned one. "
        "Below, left: rounds that take one to a millionth of the distance at which they start near x*, over L/μ. "
        "Right: from (2, …, 2), where Newton's method cycles.",
        [panels, [panel, far]],
    )
    return Outcome([*rates, *conditions, *globally], {"newton": figure}, {"conditions": table})


def _problem(weight: float) -> Any:
    return parse(f"logistic(data='breast_cancer', l2={weight!r}, workers=10, split='shuffled')")


def distances(runs: Runs, label: str) -> np.ndarray:
    """||x_k - x*|| of every iteration, as far as rounding does not decide."""
    all_of_them = np.sqrt(numbers(seeds_of(runs, label)[0], "distance2"))
    below = np.flatnonzero(all_of_them < ROUNDING)
    return all_of_them[: below[0]] if len(below) else all_of_them


# ---- rates -----------------------------------------------------------------------------------------------------------


def _rates(problem: Any, rounds: int) -> tuple[list[Verdict], list[Panel]]:
    runs = run(problem, list(METHODS.items()), iterations=2 * rounds)
    far = {label: distances(runs, label) for label in METHODS}
    left = {label: values[1:] / values[:-1] for label, values in far.items()}
    c = problem.constants()
    bound = float(c.hessian_lipschitz) / (2.0 * float(c.mu))
    newton, star = far["Newton"], far["Newton-star"]
    worst = float((newton[1:] / newton[:-1] ** 2).max()) / bound
    orders = {label: _order(values) for label, values in (("Newton", newton), ("Newton-star", star))}
    learned, frozen = left["FedNL, Top-d"], left["Newton-zero"]
    last, first, settled = float(learned[-1]), float(learned[0]), float(frozen[-1])
    halves = float(np.median(frozen[len(frozen) // 2 :]))
    verdicts = [
        Verdict(
            "newton-step",
            "Newton's step from averages of all ∇f_i and ∇²f_i, x − (mean ∇²f_i)⁻¹ mean ∇f_i (formula of the slide), "
            "converges quadratically",
            ruled(worst <= 1.0 and orders["Newton"] > 1.7),
            orders["Newton"],
            f"the order of the last steps is {orders['Newton']:.2f}, and no step leaves more than {worst:.1g} times "
            f"the bound L_*/(2μ) ‖x − x*‖²; a round costs {D * (D + 1) // 2 + D} numbers per worker",
        ),
        Verdict(
            "fednl-superlinear",
            "FedNL converges superlinearly: ‖x_(k+1) − x*‖ / ‖x_k − x*‖ goes to 0, at the messages of Top-d",
            ruled(last < 0.05 * first and last < 0.1),
            last,
            f"what a round leaves of the distance falls from {first:.2f} to {last:.1e} in {len(learned)} rounds, when "
            f"rounding takes over; Newton's method with the Hessian of the start settles at {settled:.2f}",
        ),
        Verdict(
            "frozen-hessian",
            "a Hessian that is not learned gives a linear rate only (Newton-zero), that of x* a quadratic one at the "
            "price of gradient descent (Newton-star): what FedNL learns is worth having",
            ruled(abs(settled / halves - 1.0) < 0.2 and settled > 0.3 and orders["Newton-star"] > 1.7),
            settled,
            f"Newton-zero leaves {settled:.2f} of the distance in its last round ({halves:.2f} in the median of its "
            f"second half), and is {far['Newton-zero'][-1]:.0e} away after {2 * rounds}; the order of Newton-star is "
            f"{orders['Newton-star']:.2f}",
        ),
    ]
    x = {label: np.arange(len(values), dtype=float) for label, values in far.items()}
    panels = [
        Panel("from x⁰ = 0", "rounds", "‖x − x*‖", [Series(name, x[name], far[name]) for name in METHODS]),
        Panel(
            "what a round leaves", "rounds", "‖x⁺ − x*‖ / ‖x − x*‖",
            [Series(name, x[name][1:], left[name]) for name in METHODS],
        ),
    ]  # fmt: skip
    return verdicts, panels


def _order(far: np.ndarray) -> float:
    """log of the last shrinking over log of the one before: 2 where it is quadratic."""
    shrunk = np.log(far[1:] / far[:-1])
    return float(shrunk[-1] / shrunk[-2])


# ---- condition numbers -----------------------------------------------------------------------------------------------


def _conditions(weights: Sequence[float], most: int) -> tuple[list[Verdict], Panel, pd.DataFrame]:
    rows = []
    for weight in weights:
        problem = _problem(weight)
        c, solution = problem.constants(), problem.solution()
        radius = float(c.mu) / (3.0 * math.sqrt(2.0) * float(c.hessian_lipschitz))
        away = Keys(0, 0, "recipe/away", np.arange(1), 1).normal(D)[0].to(solution.x.dtype)
        away = away / torch.linalg.vector_norm(away)
        row: dict[str, Any] = {"λ": weight, "L/μ": float(c.L) / float(c.mu), "radius": radius}
        close = Elsewhere.of(problem, solution.x + AWAY * radius * away)
        for label, spec in (("newton", "newton"), ("n0", "n0"), ("fednl", FEDNL)):
            row[label] = _rounds(run(close, [(label, spec)], iterations=20), label)
        for label, needed in (("nesterov", 20.0 * math.sqrt(row["L/μ"])), ("gd", 16.0 * row["L/μ"])):
            if needed > most:
                row[label] = math.nan
                continue
            row[label] = _rounds(run(close, label, iterations=round(needed), every=max(1, round(needed) // 100)), label)
        inside = Elsewhere.of(problem, solution.x + radius * away)
        kept = distances(run(inside, [("fednl", FEDNL)], iterations=12), "fednl")
        row["2^k ‖x_k − x*‖² / ‖x_0 − x*‖²"] = float(max(2.0**k * (d / kept[0]) ** 2 for k, d in enumerate(kept)))
        cold = run(problem, [("fednl", FEDNL)], iterations=400, until=1e-10)
        row["fednl from 0"] = cold.results[0]["iterations"] if cold.results[0]["status"] == "reached" else math.nan
        rows.append(row)
    table = pd.DataFrame(rows)
    kappa = table["L/μ"].to_numpy()
    bound = max(row["2^k ‖x_k − x*‖² / ‖x_0 − x*‖²"] for row in rows)
    learned, momentum, plain = (table[name].to_numpy(dtype=float) for name in ("fednl", "nesterov", "gd"))
    spread, slower = float(learned.max() / learned[0]), float(momentum[-1] / momentum[0])
    cold = table["fednl from 0"].to_numpy(dtype=float)
    grows = float(np.nanmax(cold) / np.nanmin(cold))
    verdicts = [
        Verdict(
            "fednl-halves",
            "FedNL near x*: ‖x_k − x*‖² ≤ 2^(−k) ‖x_0 − x*‖², whatever the condition number",
            ruled(bound <= 1.0 + 1e-9),
            bound,
            f"within μ / (3 √2 L_*) of x*, which the theorem asks for, the largest 2^k ‖x_k − x*‖² / ‖x_0 − x*‖² is "
            f"{bound:.2f} for L/μ from {kappa[0]:.0f} to {kappa[-1]:.0f}",
        ),
        Verdict(
            "condition-number",
            "FedNL's local rate does not depend on the condition number, other than that of first-order methods",
            ruled(spread <= 1.25 and slower > 2.0 * spread),
            spread,
            f"to a millionth of a distance {AWAY:.0f} times that radius it takes {learned.min():.0f} to "
            f"{learned.max():.0f} rounds for all L/μ from {kappa[0]:.0f} to {kappa[-1]:.0f}; Nesterov's method takes "
            f"{momentum[0]:.0f} to {momentum[-1]:.0f}, gradient descent {plain[0]:.0f} and more",
        ),
        Verdict(
            "condition-from-zero",
            "(how far does that carry?) rounds of FedNL do not depend on the condition number from any start",
            ruled(grows <= 1.25),
            grows,
            f"the neighbourhood shrinks with μ: from x⁰ = 0 to a gap of 1e−10 it takes "
            f"{', '.join('over 400' if math.isnan(k) else f'{k:.0f}' for k in cold)} rounds at these L/μ",
        ),
    ]
    lines = [Series(label, kappa, table[name].to_numpy(dtype=float)) for label, name in (
        ("Newton", "newton"), ("Newton-zero", "n0"), ("FedNL, Top-d", "fednl"), ("Nesterov", "nesterov"),
        ("gradient descent", "gd"),
    )]  # fmt: skip
    lines.append(Series("FedNL, Top-d, from 0 to gap 1e−10", kappa, cold))
    return verdicts, Panel("near x*, condition number", "L/μ", "rounds", lines, "xy"), table


def _rounds(runs: Runs, label: str) -> float:
    """Until the distance is a millionth of the first one; NaN where it never is."""
    rows = seeds_of(runs, label)[0]
    far = np.sqrt(numbers(rows, "distance2"))
    there = np.flatnonzero(far <= GONE * far[0])
    return float(numbers(rows, "iteration")[there[0]]) if len(there) else math.nan


# ---- from far away ---------------------------------------------------------------------------------------------------


def _from_far(problem: Any, rounds: int) -> tuple[list[Verdict], Panel]:
    start = torch.full((D,), 2.0, dtype=torch.float64)
    runs = run(Elsewhere.of(problem, start), list(FAR.items()), iterations=2 * rounds)
    ends = {label: math.sqrt(numbers(seeds_of(runs, label)[0], "distance2")[-1]) for label in FAR}
    grows = {label: float(np.diff(_settling(runs, label)).max()) for label in ("FedNL-LS", "FedNL-CR")}
    searched = seeds_of(runs, "FedNL-LS")[0]
    trials = int(numbers(searched, "rounds")[-1]) - 2 * int(numbers(searched, "iteration")[-1]) - 1
    lost = min(ends["Newton"], ends["FedNL, projected"])
    verdicts = [
        Verdict(
            claim,
            f"{words} makes FedNL converge from any start ({label})",
            ruled(ends[label] < 1e-6 < 1e-2 < lost and grows[label] <= 1e-9),
            ends[label],
            f"from (2, …, 2) it comes to {ends[label]:.0e} of x* in {2 * rounds} iterations and f never grows{more}; "
            f"Newton's method is {ends['Newton']:.1f} away then, and projected FedNL {ends['FedNL, projected']:.1f}",
        )
        for claim, label, words, more in (
            ("line-search", "FedNL-LS", "a line search", f" ({trials} further trials in all)"),
            ("cubic", "FedNL-CR", "a cubic regulariser", ""),
        )
    ]
    lines = [line(runs, label, "iteration", "distance2", label) for label in FAR]
    lines = [Series(one.label, one.x, np.sqrt(one.y)) for one in lines]
    return verdicts, Panel("from (2, …, 2)", "iterations", "‖x − x*‖", lines)


def _settling(runs: Runs, label: str) -> np.ndarray:
    """f of every iteration, over the first one."""
    values = numbers(seeds_of(runs, label)[0], "f")
    return values / values[0]
