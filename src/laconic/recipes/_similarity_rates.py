"""The lecture's four rates in client-server messages, over delta / mu and over the number of workers M."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from laconic.core.problem import Problem
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Verdict
from laconic.recipes._common import line, ruled
from laconic.recipes._similarity_data import (
    Lecture,
    Sample,
    Slope,
    column,
    constants_of,
    course,
    mean_cost,
    slope,
)

LEAST = 1.0  # delta_mean / mu
DECAY, ROWS, D = 1.5, 20, 8  # of the ridge problems, whose l2 makes delta_mean / mu what is asked for
SLACK = 0.3
TUNED = 4.0  # times the theorem's step, beside it


@dataclass(frozen=True)
class Rate:
    """A formula in messages, without the logarithm of 1 / eps, and the methods it is claimed for."""

    claim: str
    words: str
    formula: Callable[[float, float], float]  # of M and delta / mu
    methods: tuple[str, ...]
    delta: str


RATES = (
    Rate("messages-full", "M √(1+δ/μ)", lambda m, r: m * math.sqrt(1.0 + r), ("sliding",), "delta_server"),
    Rate("messages-svrp", "M + δ²/μ²", lambda m, r: m + r * r, ("svrp",), "delta_mean"),
    Rate("messages-svrs", "M + √M δ/μ", lambda m, r: m + math.sqrt(m) * r, ("svrs", "three_pillars_pp"), "delta_mean"),
    Rate(
        "messages-accelerated",
        "M + M^¾ √(δ/μ)",
        lambda m, r: m + m**0.75 * math.sqrt(r),
        ("acc_svrs", "catalyzed_svrp"),
        "delta_mean",
    ),
)
SLOW = "three_pillars_pp"  # left out of short runs


def entrants(recipe: Lecture) -> list[tuple[Rate, str]]:
    """Every method with its rate."""
    methods = [(rate, method) for rate in RATES for method in rate.methods]
    return [(rate, method) for rate, method in methods if method != SLOW or recipe.doublings > 3]


@functools.lru_cache(maxsize=32)
def alike(workers: int, ratio: float) -> Problem:
    """Ridge with independent rows, convex f_i and delta_mean / mu as asked for."""
    sample = Sample.draw(workers, ROWS, D, DECAY, 0)
    return sample.ridge(sample.l2_for(ratio))


def rates(recipe: Lecture) -> Outcome:
    """Messages and rounds of all methods on a line over delta / mu and a line over M."""
    values = max(2, recipe.doublings - 3)
    counts = sorted(m for m in (recipe.most // 4**k for k in range(values)) if m >= 4)
    ratios = [float(ratio) for ratio in np.geomspace(LEAST, recipe.ratio, values)]
    fixed, middle = counts[(len(counts) - 1) // 2], ratios[3 * values // 4]
    places = list(dict.fromkeys([(fixed, ratio) for ratio in ratios] + [(m, middle) for m in counts]))
    rows = [_row(recipe, m, ratio, rate, method) for m, ratio in places for rate, method in entrants(recipe)]
    table = pd.DataFrame(rows)
    verdicts = [_judged(table, rate, fixed, middle) for rate in RATES]
    verdicts += _who(table, counts[-1], middle)
    figures = {"messages": _figure(table, fixed, middle), "curves": _curves(recipe, fixed, middle)}
    return Outcome(verdicts, figures, {"messages": table})


def _row(recipe: Lecture, m: int, ratio: float, rate: Rate, method: str) -> dict[str, object]:
    problem = alike(m, ratio)
    c = constants_of(problem)
    mine = c[rate.delta] / c["mu"]
    every = 1 if method == "sliding" else max(1, m // 4)
    seeds = 1 if method == "sliding" else recipe.seeds
    cost = mean_cost(problem, method, recipe.accuracy, every, seeds)
    return {
        "method": method,
        "rate": rate.words,
        "M": m,
        "δ": rate.delta,
        "target δ/μ": ratio,
        "δ/μ": mine,
        "formula": rate.formula(m, mine) * math.log(1.0 / recipe.accuracy),
        "messages": cost.messages,
        "rounds": cost.rounds,
        "gradients": cost.gradients,
    }


def _of(table: pd.DataFrame, **where: object) -> pd.DataFrame:
    """The rows with these values; `ratio` is the one asked for."""
    for name, value in where.items():
        table = pd.DataFrame(table[table["target δ/μ" if name == "ratio" else name] == value])
    return table


def _judged(table: pd.DataFrame, rate: Rate, fixed: int, middle: float) -> Verdict:
    """The formula is an upper bound: over all points the messages must not grow faster than it does."""
    worst, parts = Slope(0.0, 0.0, 0.0), []
    present = [method for method in rate.methods if method in set(table["method"])]
    for method in present:
        mine = _of(table, method=method)
        fit = slope(column(mine, "formula"), column(mine, "messages"))
        worst = max(worst, fit, key=lambda one: one.value)
        by_ratio, by_count = _of(mine, M=fixed), _of(mine, ratio=middle)
        over_ratio = slope(column(by_ratio, "δ/μ"), column(by_ratio, "messages")).value
        over_count = slope(column(by_count, "M"), column(by_count, "messages")).value
        share = column(mine, "messages") / column(mine, "formula")
        parts.append(
            f"{method} {fit} (over δ/μ {over_ratio:.2f}, over M {over_count:.2f}; {share.min():.2g} to "
            f"{share.max():.2g} times the formula with ln 1/ε)"
        )
    return Verdict(
        rate.claim,
        f"{' and '.join(present)}: O([{rate.words}] log 1/ε) messages",
        ruled(worst.value <= 1.0 + SLACK),
        worst.value,
        f"slope of log messages over log formula, δ being {rate.delta}: " + "; ".join(parts),
    )


def _who(table: pd.DataFrame, most: int, middle: float) -> list[Verdict]:
    here = _of(table, M=most, ratio=middle)
    messages, rounds = (dict(zip(here["method"], column(here, name), strict=True)) for name in ("messages", "rounds"))
    few, quick = min(messages, key=messages.__getitem__), min(rounds, key=rounds.__getitem__)
    others = [count for method, count in rounds.items() if method != "sliding"]
    wins = []
    for m, ratio in dict.fromkeys(zip(table["M"], table["target δ/μ"], strict=True)):
        mine = _of(table, M=m, ratio=ratio)
        wins.append(f"{mine['method'].tolist()[int(column(mine, 'messages').argmin())]} (M = {m}, {ratio:g})")
    return [
        Verdict(
            "fewer-messages",
            "optimal in rounds, but variance reduction over the workers sends fewer messages",
            ruled(few != "sliding"),
            messages["sliding"] / messages[few],
            f"at M = {most}, δ/μ = {middle:g} {few} sends {messages[few]:.0f} messages and sliding "
            f"{messages['sliding']:.0f}; the fewest, by M and δ/μ: {', '.join(wins)}",
        ),
        Verdict(
            "fewest-rounds",
            "in rounds full participation stays best",
            ruled(quick == "sliding"),
            min(others) / rounds["sliding"],
            f"at the same place sliding takes {rounds['sliding']:.0f} rounds, those that sample {min(others):.0f} to "
            f"{max(others):.0f}",
        ),
    ]


def _figure(table: pd.DataFrame, fixed: int, middle: float) -> Grid:
    panels = []
    for title, name, where in (
        (f"M = {fixed}", "target δ/μ", {"M": fixed}),
        (f"δ/μ = {middle:g}", "M", {"ratio": middle}),
    ):
        lines = []
        for method in dict.fromkeys(table["method"]):
            mine = _of(table, method=method, **where).sort_values(name)
            lines.append(Series(method, column(mine, name), column(mine, "messages")))
        label = "δ/μ (delta_mean)" if name != "M" else "workers M"
        panels.append(Panel(title, label, "messages", lines, "xy"))
    return Grid(
        "Client-server messages, both directions, on ridge problems with independent rows; steps from theory.", [panels]
    )


def _curves(recipe: Lecture, fixed: int, ratio: float) -> Grid:
    problem = alike(fixed, ratio)
    sampling = ["svrp", "svrs", f"svrs(step='{TUNED:g}x')", "acc_svrs"]
    specs = ["gd", "mirror_descent", "dane_hb", "spag", "sliding", *sampling]
    lines: dict[str, list[Series]] = {"rounds": [], "messages": []}
    for spec in specs:
        every = max(1, fixed // 4) if spec in sampling else 1
        runs = course(problem, spec, recipe.accuracy, every, 0)
        for column_, found in lines.items():
            found.append(line(runs, spec, column_, "gap"))
    panels = [Panel(what, what, "f(x) − f*", found, "xy") for what, found in lines.items()]
    return Grid(
        f"One ridge problem, M = {fixed}, delta_mean/μ = {ratio:g}: who is first in rounds is not first in messages.",
        [panels],
    )
