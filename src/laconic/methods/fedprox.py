"""FedProx: the server's model becomes the mean of what sampled clients make of it by proximal steps on their own."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.link import Cohort, Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.methods._inner import minimise_rows
from laconic.methods._local import Solver, averaged, cohort_of, distance


@dataclass
class State:
    """The model."""

    x: Server  # (*shape)


@dataclass(frozen=True)
class FedProx(Method):
    """x goes to a random cohort; y_i ~ argmin_y f_i(y) + (weight / 2) ||y - x||^2; x <- mean of the y_i.

    The local problems are solved by accelerated gradient descent until the gradient is at most
    accuracy / (1 + accuracy) weight ||y_i - x||, which implies the paper's test: at most `accuracy` times ||grad
    f_i(x)||. The gradients are counted.

    In the limit x is not x*: on quadratics it is (mean R_i H_i)^-1 mean R_i b_i with R_i = (H_i + weight I)^-1. A
    larger weight brings it nearer, and makes the method slower; with a very large one it is gradient descent with step
    1 / weight. With a cohort x does not settle at all: means over few of the y_i leave a noise floor. DANE removes the
    bias by a linear term.

    Guarantee for mu-strongly convex f_i and accuracy 0 (derived here): with q = weight / (weight + mu),
    a = sigma* / (weight + mu), b = min(1, L_max / weight) a and c = (n - cohort) / (cohort (n - 1)), E||x - x*||^2
    contracts by q down to ((1 - c) b^2 + c a^2) / (1 - q)^2. An accuracy g adds s L_max / (L_max + weight) to q and
    s a to a and b, s = g weight / (weight + mu); where q is 1 then, there is no theorem.

    Parameters
    ----------
    weight : of the proximal term; None is L_max.
    cohort : how many workers take part in a round; None is all.
    accuracy : of the local solves, relative.
    smooth : smoothness of the f_i, for the local solver; None is L_max.
    convex : strong convexity of the f_i, for the local solver; None is mu of the least convex one, which may be
        negative above -weight.

    >>> str(FedProx(weight=10.0))
    'fedprox(weight=10.0)'
    """

    weight: Annotated[float | None, Interval(0.0, open="low")] = None
    cohort: Annotated[int | None, Count(1)] = None
    accuracy: Annotated[float, Interval(0.0, 1.0, open="both")] = 1e-3
    smooth: Annotated[float | None, Interval(0.0, open="low")] = None
    convex: Annotated[float | None, Interval()] = None

    name = "fedprox"
    example = "fedprox"
    source = Source(
        "Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith",
        2018,
        "Federated optimization in heterogeneous networks",
        "1812.06127",
        "Algorithm 2; rate and plateau derived anew",
    )

    def settled(self, setting: Setting) -> FedProx:
        c, cohort = setting.constants, cohort_of(self, self.cohort, setting.n)
        smooth = float(c.L_max) if self.smooth is None else self.smooth
        weight = float(c.L_max) if self.weight is None else self.weight
        convex = self.convex
        if convex is None:
            convex = _least(setting)
        if convex + weight <= 0.0:
            raise NoTheorem(
                f"{self} : with weight {weight:.6g} the local problems are not convex (the least curvature of an f_i "
                f"is {convex:.6g}); give a weight above {-convex:.6g}"
            )
        return FedProx(weight, cohort, self.accuracy, smooth, convex)

    def guarantee(self, setting: Setting) -> Guarantee:
        method, c = self.settled(setting), setting.constants
        weight, smooth = number(method.weight), float(c.L_max)
        bare = Guarantee(
            1.0 / weight,
            self.source,
            plateau=math.inf,
            assumes=("in the limit not x*, but a floor that shrinks as weight grows",),
            sure=False,
            leans_on=estimates(L_max=c.L_max),
        )
        mu, sigma = c.mu_workers, c.sigma_star
        if mu is None or sigma is None or float(mu) <= 0.0 or number(method.convex) > float(mu) * (1.0 + 1e-12):
            return bare
        slack = self.accuracy * weight / (weight + float(mu))
        away = float(sigma) / (weight + float(mu))
        keep = weight / (weight + float(mu)) + slack * smooth / (smooth + weight)
        if keep >= 1.0:
            return bare
        solver = Solver(keep, (1.0 + slack) * away, (min(1.0, smooth / weight) + slack) * away)
        rate, plateau = averaged(solver, setting.n, method.cohort or setting.n, 1.0)
        assumes = ("f_i strongly convex and smooth", "in the limit a ball around x*, not x*")
        return dataclasses.replace(
            bare,
            rate=rate,
            lyapunov=distance,
            plateau=plateau,
            gap_factor=0.5 * float(c.L),
            assumes=assumes,
            leans_on=estimates(L_max=c.L_max, mu_workers=mu, sigma_star=sigma),
        )

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        who = link.sample(self.cohort or link.n)
        x = await link.broadcast(state.x, to=who)
        sent = await link.uplink(None, self._solved(x, who, oracles, link) - x, who)
        return State(state.x + link.n / (self.cohort or link.n) * sent.mean.dense())

    def _solved(self, x: Tensor, who: Cohort, oracles: Oracles, link: Link) -> Tensor:
        weight = number(self.weight)

        def subproblem(y: Tensor, rows: np.ndarray) -> Tensor:
            return oracles.gradients(y, who.rows[rows]) + weight * (y - x)

        relative = self.accuracy / (1.0 + self.accuracy) * weight
        smooth, convex = number(self.smooth) + weight, number(self.convex) + weight
        start = x.expand(len(who.rows), *x.shape)
        return minimise_rows(subproblem, start, smooth, convex, relative, remark=link.remark)

    def point(self, state: State) -> Tensor:
        return state.x


def _least(setting: Setting) -> float:
    """The least curvature of an f_i: its mu where that is known, 0 for convex f_i, minus L_max otherwise."""
    known_least = setting.constants.mu_workers
    if known_least is not None:
        return float(known_least)
    return 0.0 if setting.convex else -float(*known(L_max=setting.constants.L_max))
