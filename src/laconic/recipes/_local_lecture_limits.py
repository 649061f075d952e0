"""Where local methods are fast and where they stop: rounds on logistic regression, limits in closed form on a ridge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from laconic.core.problem import Block, Problem
from laconic.core.rows import svec_to_matrix
from laconic.core.spec import parse
from laconic.lab.figures import Grid, Panel, Series
from laconic.lab.recipe import Outcome, Ruling, Verdict
from laconic.lab.run import run
from laconic.lab.trace import numbers
from laconic.recipes._common import cost, last, line, ruled, seeds_of

GAP, ROUNDS, AWAY = "f(x) − f*", "communication rounds", "‖x − x*‖ in the limit"
RIDGE = "ridge(data='diabetes', l2=0.5, workers=5, split='sorted', drop_last=True)"
STEPS = 5  # local steps on the ridge
CAREFUL = "local GD, H = 16, theory's step"  # 1 / (8 L_max (H - 1))


def exponent(x: np.ndarray, y: np.ndarray) -> float:
    """The slope of log y over log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def local_methods(data: str, l2: float, rounds: int, data_dir: Path | None) -> Outcome:
    """Curves and limits, in one figure."""
    fast, panel = curves(data, l2, rounds, data_dir)
    ends, panels = limits(max(100, rounds // 5))
    grid = Grid(
        "Left: local gradient descent is ahead at first and stops at a floor, the higher the more local steps it takes;"
        f" logistic(data={data!r}, l2={l2!r}), step 1/L_max but where the legend says otherwise. Then: where {STEPS} "
        f"local steps and FedProx end, in proportion to the step and to 1/weight; {RIDGE}.",
        [[panel, *panels]],
    )
    return Outcome([*fast.verdicts, *ends.verdicts], {"local": grid}, ends.tables)


# ---- rounds on logistic regression -----------------------------------------------------------------------------------


def curves(data: str, l2: float, rounds: int, data_dir: Path | None) -> tuple[Outcome, Panel]:
    """Local gradient descent beside gradient descent and Nesterov's method, the same step for all but the latter."""
    problem = f"logistic(data={data!r}, l2={l2!r}, workers=10)"
    first = run(problem, ["gd", "local_sgd(local_steps=16)"], iterations=1, data_dir=data_dir)
    step = 1.0 / float(first.document["problem"]["constants"]["L_max"]["value"])
    target = 0.1 * float(numbers(first.trace, "gap")[0])
    methods = [
        ("GD", f"gd(step={step!r})"),
        ("local GD, H = 4", f"local_sgd(local_steps=4, step={step!r})"),
        ("local GD, H = 16", f"local_sgd(local_steps=16, step={step!r})"),
        (CAREFUL, "local_sgd(local_steps=16)"),
        ("Nesterov", "nesterov"),
    ]
    runs = run(problem, methods, rounds=rounds, data_dir=data_dir)
    spent = {label: cost(runs, label, target, "rounds") for label, _ in methods}
    ends = {label: last(runs, label, "gap") for label, _ in methods}
    saved, careful = (spent["GD"] / spent[label] for label in ("local GD, H = 16", CAREFUL))
    worse = min(ends["local GD, H = 4"], ends["local GD, H = 16"]) / ends["GD"]
    shown = [_above(line(runs, label, "rounds", "gap")) for label, _ in methods]
    found = Outcome(
        [
            Verdict(
                "local-faster",
                "local methods are faster in terms of communications (slide with curves of a logistic regression)",
                Ruling.FAILS if saved <= 1.5 else ruled(True) if careful > 1.0 else Ruling.CORRECTED,
                saved,
                f"to a tenth of the first gap GD takes {spent['GD']:.0f} rounds and 16 local steps of the same "
                f"length {spent['local GD, H = 16']:.0f}, {saved:.1f} times fewer; with the theorem's step, "
                f"1/(120 L_max), they take {spent[CAREFUL]:.0f}",
            ),
            Verdict(
                "local-floor",
                "and their marginal accuracy is worse",
                ruled(worse > 10.0),
                worse,
                f"after {rounds} rounds the better of 4 and 16 local steps is left with {worse:.1e} times the gap of "
                f"GD ({ends['GD']:.1e})",
            ),
        ],
        {},
        {},
    )
    return found, Panel("logistic regression, 10 workers", ROUNDS, GAP, shown)


def _above(one: Series) -> Series:
    """A line as far as it is of interest."""
    kept = one.y > 1e-13
    return Series(one.label, one.x[kept], one.y[kept])


# ---- limits on a ridge -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quadratics:
    """f_i(x) = x' H_i x / 2 - b_i' x: the matrices (n, d, d) and the vectors (n, d)."""

    matrices: np.ndarray
    linear: np.ndarray

    @staticmethod
    def of(problem: Problem) -> Quadratics:
        """Those of a problem whose f_i are quadratics."""
        oracles = problem.oracles(Block.whole(problem.n))
        origin = torch.zeros(oracles.shape, dtype=torch.float64)
        packed = oracles.hessians(origin)
        matrices = np.stack([svec_to_matrix(one, oracles.d).numpy() for one in packed])
        return Quadratics(matrices, -oracles.gradients(origin).numpy())

    def solution(self) -> np.ndarray:
        """x*."""
        return np.linalg.solve(self.matrices.mean(0), self.linear.mean(0))

    def after_steps(self, step: float, steps: int) -> np.ndarray:
        """Where averages of `steps` local gradient steps rest."""
        eye = np.eye(self.linear.shape[1])
        moved = eye - np.linalg.matrix_power(eye - step * self.matrices, steps)
        ends = np.linalg.solve(self.matrices, self.linear[..., None])
        return np.linalg.solve(moved.mean(0), (moved @ ends).mean(0)[:, 0])

    def after_prox(self, weight: float) -> np.ndarray:
        """Where averages of proximal steps rest."""
        eye = np.eye(self.linear.shape[1])
        near = np.linalg.inv(self.matrices + weight * eye)
        return np.linalg.solve((near @ self.matrices).mean(0), (near @ self.linear[..., None]).mean(0)[:, 0])


def limits(rounds: int) -> tuple[Outcome, list[Panel]]:
    """Measured limits against closed forms, and how they depend on the step and the weight."""
    problem = parse(RIDGE)
    assert isinstance(problem, Problem)
    exact = Quadratics.of(problem)
    solution, smooth = exact.solution(), float(problem.constants().L_max)

    def away(point: np.ndarray) -> float:
        return float(np.linalg.norm(point - solution))

    fractions, weights = (1.0, 0.5, 0.25), (0.125 * smooth, 0.25 * smooth, 0.5 * smooth)
    rows = _measured(fractions, weights, smooth, rounds)
    closed = [away(exact.after_steps(one / smooth, STEPS)) for one in fractions]
    proximal = [away(exact.after_prox(one)) for one in weights]
    rows["closed form"] = [*closed, *proximal, closed[0], closed[0], closed[0]]
    rows["off by"] = np.abs(numbers(rows, "‖x − x*‖") / rows["closed form"] - 1.0)
    off = numbers(rows, "off by")
    small, large = 2.0 ** -np.arange(11.0), 2.0 ** np.arange(-3.0, 9.0)
    lines = (
        Series("local GD, closed form", small, np.array([away(exact.after_steps(s / smooth, STEPS)) for s in small])),
        Series("FedProx, closed form", 1.0 / large, np.array([away(exact.after_prox(w * smooth)) for w in large])),
    )
    falls = [exponent(one.x[-7:], one.y[-7:]) for one in lines]
    found = Outcome(
        [*_limit_verdicts(off, falls, closed, rounds), _post_local(smooth)],
        {},
        {"limits": rows},
    )
    return found, _limit_panels(lines, fractions, weights, smooth, rows)


def _measured(fractions: tuple[float, ...], weights: tuple[float, ...], smooth: float, rounds: int) -> pd.DataFrame:
    """Distances from x* after that many rounds."""
    first = fractions[0] / smooth
    methods = [
        (f"local GD, step {one:g}/L", f"local_sgd(local_steps={STEPS}, step={one / smooth!r})") for one in fractions
    ]
    methods += [
        ("FedAvg", f"fedavg(local_steps={STEPS}, step={first!r})"),
        ("DiLoCo, momentum 0.9", f"diloco_sgd(local_steps={STEPS}, step={first!r}, server_step=0.3, momentum=0.9)"),
        ("DiLoCo, momentum 0.5", f"diloco_sgd(local_steps={STEPS}, step={first!r}, server_step=0.7, momentum=0.5)"),
    ]
    near = [(f"FedProx, weight {one / smooth:g} L", f"fedprox(weight={one!r}, accuracy=1e-7)") for one in weights]
    walked = run(RIDGE, methods, rounds=rounds, every=rounds)
    solved = run(RIDGE, near, rounds=rounds // 2, every=rounds)
    ends = [(label, last(walked, label, "distance2")) for label, _ in methods]
    ends[3:3] = [(label, last(solved, label, "distance2")) for label, _ in near]
    return pd.DataFrame([{"method": label, "‖x − x*‖": math.sqrt(square)} for label, square in ends])


def _limit_verdicts(off: np.ndarray, falls: list[float], closed: list[float], rounds: int) -> list[Verdict]:
    local, proximal, outer = (float(off[part].max()) for part in (slice(0, 3), slice(3, 6), slice(6, None)))
    return [
        Verdict(
            "local-limit",
            "(why the accuracy is worse) the limit of local steps is not x*",
            ruled(local < 1e-5 and min(closed) > 1e-3),
            local,
            f"on a ridge {STEPS} local steps end {closed[0]:.3g}, {closed[1]:.3g} and {closed[2]:.3g} from x* at steps "
            f"1/L, 1/(2L) and 1/(4L): the closed form, to {local:.0e}",
        ),
        Verdict(
            "floor-and-step",
            "(what the step does) the distance of that limit from x* falls linearly with the step",
            ruled(abs(falls[0] - 1.0) < 0.1),
            falls[0],
            f"from 1/(16L) to 1/(1024L) it falls like the step to the power {falls[0]:.3f}",
        ),
        Verdict(
            "fedprox-limit",
            "(another local method) FedProx is biased too, the less the larger the weight of its proximal term",
            ruled(proximal < 1e-4 and abs(falls[1] - 1.0) < 0.1),
            falls[1],
            f"its limit is that of the closed form to {proximal:.0e}, and falls like 1/weight to the power "
            f"{falls[1]:.3f}",
        ),
        Verdict(
            "diloco-limit",
            "(another local method) momentum at the server, as in DiLoCo, changes how soon and not where it ends",
            ruled(outer < 1e-5),
            outer,
            f"with plain inner steps and two settings of momentum it is after {rounds} rounds where FedAvg's closed "
            f"form is, to {outer:.0e}; 'closed form' is the same for all three",
        ),
    ]


def _post_local(smooth: float) -> Verdict:
    """Until the switch post-local SGD is gradient descent, afterwards local descent."""
    switch, rounds, step = 20, 60, 0.5 / smooth
    early, late = "GD", "local GD"
    runs = run(
        RIDGE,
        [
            (early, f"gd(step={step!r})"),
            (late, f"local_sgd(local_steps={STEPS}, step={step!r})"),
            ("post-local", f"post_local_sgd(local_steps={STEPS}, step={step!r}, switch={switch})"),
        ],
        rounds=rounds,
    )
    mixed, gd, local = (numbers(seeds_of(runs, label)[0], "distance2") for label in ("post-local", early, late))
    before = float(np.abs(mixed[: switch + 1] / gd[: switch + 1] - 1.0).max())
    after = float(abs(mixed[-1] / local[-1] - 1.0))
    return Verdict(
        "post-local",
        "(another local method) post-local SGD is gradient descent until its switch, and has the floor afterwards",
        ruled(before < 1e-12 and after < 1e-2),
        after,
        f"until round {switch} the distances differ by {before:.0e}; at round {rounds} its squared distance is that of "
        f"local steps from the start to {after:.0e}",
    )


def _limit_panels(
    lines: tuple[Series, Series],
    fractions: tuple[float, ...],
    weights: tuple[float, ...],
    smooth: float,
    rows: pd.DataFrame,
) -> list[Panel]:
    measured = numbers(rows, "‖x − x*‖")
    dashed = [Series(one.label, one.x, one.y, dashed=True) for one in lines]
    local = Series("local GD, measured", np.array(fractions), measured[:3])
    proximal = Series("FedProx, measured", smooth / np.array(weights), measured[3:6])
    return [
        Panel("a ridge: limits of local steps", "step × L_max", AWAY, [local, dashed[0]], "xy"),
        Panel("a ridge: limits of FedProx", "L_max / weight", AWAY, [proximal, dashed[1]], "xy"),
    ]
