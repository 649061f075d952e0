"""The lecture's claims about biased compressors: one node, three nodes, memories, and where EF21 starts."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from laconic.lab.figures import Grid, Panel
from laconic.lab.recipe import Outcome, Ruling, Verdict
from laconic.lab.run import run
from laconic.recipes._common import last, line, ruled, tail

GAP, DISTANCE, ROUNDS = "f(x) − f*", "‖x − x*‖²", "communication rounds"


class Lecture(Protocol):
    """What is asked of the recipe: its sizes and its problems."""

    @property
    def k(self) -> int: ...

    @property
    def condition(self) -> float: ...

    def problem(self, workers: int, noise: float = 0.1) -> str:
        """Quadratics with that many workers."""
        ...


def biased(recipe: Lecture) -> Outcome:
    """All claims about biased compressors."""
    one = _one_node(recipe)
    starts = _starts(recipe)
    diverging = _top1()
    floor = _error_feedback(recipe)
    parts = (one, starts, diverging, floor)
    return Outcome(
        [verdict for part in parts for verdict in part.verdicts],
        {name: grid for part in parts for name, grid in part.figures.items()},
        {},
    )


def _one_node(recipe: Lecture) -> Outcome:
    problem = recipe.problem(1)
    method = f"gd(direct(topk(k={recipe.k})))"
    runs = run(problem, [("TopK", method)], rounds=200)
    gap = runs.trace["gap"].to_numpy()
    gap = gap[gap > 1e-13 * gap[0]]
    rate = float(runs.document["methods"][0]["guarantee"]["rate"])
    worst = float((gap[1:] / gap[:-1]).max())
    return Outcome(
        [
            Verdict(
                "one-node",
                "one node, biased compressor, γ ≤ 1/L: f(w_K) − f* ≤ (1 − γμ/δ)^K (f(w_0) − f*)",
                ruled(worst <= rate * (1.0 + 1e-9)),
                worst / rate,
                f"TopK at γ = 1/L: the worst step shrinks the gap by {worst:.6f}, the bound is {rate:.6f}",
            )
        ],
        {},
        {},
    )


def _starts(recipe: Lecture) -> Outcome:
    problem = recipe.problem(10, noise=0.3)
    k, rounds = recipe.k, int(20 * recipe.condition)
    theory = run(problem, [f"gd(ef21(topk(k={k})))"], rounds=1).document["methods"][0]["step"]
    step = repr(16.0 * theory)
    methods = [
        ("g⁰ = C(∇f(x⁰))", f"gd(ef21(topk(k={k})), step={step})"),
        ("h⁰ = 0, the sketch", f"gd(ef_bv(topk(k={k}), rate=1.0, weight=1.0), step={step})"),
        ("g⁰ = ∇f(x⁰)", f"gd(ef21(topk(k={k}), start=identity), step={step})"),
    ]
    runs = run(problem, methods, rounds=rounds)
    lines = [line(runs, label, "uplink", "gap") for label, _ in methods]
    apart = float(np.abs(lines[0].y / lines[1].y - 1.0).max())
    return Outcome(
        [
            Verdict(
                "ef21-starts",
                "the sketch of EF21 (memory 0, step with the updated memory) and EF21 as published are two methods",
                Ruling.CORRECTED if apart < 1e-6 else Ruling.FAILS,
                apart,
                f"started from C(∇f(x⁰)) they are the same: the gaps differ by {apart:.1e} over {rounds} rounds",
            )
        ],
        {
            "starts": Grid(
                "EF21 from its three starts at 16 times the theorem's step: the full gradient costs d numbers once.",
                [[Panel("starts of EF21", "uplink per worker [B]", GAP, lines)]],
            )
        },
        {},
    )


def _top1() -> Outcome:
    steps, worst, lines = (1.0 / 36.0, 0.1, 0.5), 0.0, []
    for step in steps:
        runs = run("counterexample", [(f"η = {step:.3g}", f"gd(direct(topk(k=1)), step={step!r})")], rounds=60)
        root = np.sqrt(runs.trace["distance2"].to_numpy())
        worst = max(worst, float(np.abs(root[1:] / root[:-1] - (1.0 + 11.0 * step / 6.0)).max()))
        lines.append(line(runs, f"η = {step:.3g}", "rounds", "gap"))
    mended = run(
        "counterexample", ["gd(ef21(topk(k=1)), step='4x')", "gd(ef14(topk(k=1)), step=0.0277)"], rounds=1500, every=10
    )
    ends = [last(mended, one["method"], "gap") for one in mended.document["methods"]]
    return Outcome(
        [
            Verdict(
                "top1-diverges",
                "on three quadratics Top-1 moves away from x* by the factor 1 + 11η/6 at every step, for any η > 0",
                ruled(worst < 1e-9),
                worst,
                f"the factor is met to {worst:.1e} for η = 1/36, 0.1 and 0.5",
            ),
            Verdict(
                "memory-mends",
                "error feedback mends it",
                ruled(max(ends) < 1e-8),
                max(ends),
                f"EF21 and EF14 on the same problem end at a gap of at most {max(ends):.1e}",
            ),
        ],
        {
            "top1": Grid(
                "Top-1 on the three-worker counterexample: geometric divergence at any step.",
                [[Panel("Top-1 without memory", ROUNDS, GAP, lines)]],
            )
        },
        {},
    )


def _error_feedback(recipe: Lecture) -> Outcome:
    problem, k = recipe.problem(10, noise=0.3), recipe.k
    rounds = int(220 * recipe.condition)
    methods = [
        ("EF14, step 1/(4L)", f"gd(ef14(topk(k={k})), step=0.25)"),
        ("EF14, step 1/(16L)", f"gd(ef14(topk(k={k})), step=0.0625)"),
        ("EF21, 16 × theory", f"gd(ef21(topk(k={k})), step='16x')"),
        ("TopK, no memory", f"gd(direct(topk(k={k})), step=0.25)"),
    ]
    runs = run(problem, methods, rounds=rounds, every=max(1, rounds // 200))
    ends = {label: tail(runs, label, "distance2", 0.1) for label, _ in methods}
    ratio = ends["EF14, step 1/(4L)"] / ends["EF14, step 1/(16L)"]
    gone = ends["EF21, 16 × theory"] / ends["EF14, step 1/(4L)"]
    return Outcome(
        [
            Verdict(
                "ef21-no-floor",
                "error feedback leaves a plateau on unlike workers, which compressing differences (EF21) removes",
                ruled(gone < 1e-4 and ratio > 4.0),
                gone,
                f"EF21 ends {gone:.1e} times as far from x* as EF14, whose floor is {ratio:.0f} times lower at "
                "a quarter of the step",
            )
        ],
        {
            "error-feedback": Grid(
                "TopK on unlike workers: no memory stalls, EF14 stops at a floor in proportion to its step (squared in "
                "the squared distance), EF21 does not stop.",
                [
                    [
                        Panel(
                            "memories",
                            ROUNDS,
                            DISTANCE,
                            [line(runs, label, "rounds", "distance2") for label, _ in methods],
                        )
                    ]
                ],
            )
        },
        {},
    )
