"""SVRS and AccSVRS: one worker acts per iteration, and the server minimises with its own copy of f_1."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import dot, square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting, Snapshot, Terms, estimates, known
from laconic.methods._anchored import Anchor, estimate, refuse_cohort, renewed, share, unset
from laconic.methods._similarity import Near, Positive
from laconic.methods.sliding import convex_workers, inner_convexity, slid

_SOURCE = Source(
    "Lin, Han, Ye, Zhang",
    2023,
    "Stochastic distributed optimization under average second-order similarity: algorithms and analysis",
    "2304.07504",
)
Probability = Annotated[float | None, Interval(0.0, 1.0, open="low")]
Accuracy = Annotated[float | None, Interval(0.0, 0.5, open="both")]


@dataclass
class State:
    """The model and its anchor."""

    x: Server  # (*shape)
    anchor: Anchor


@dataclass
class OuterState:
    """The inner model, whose anchor is the outer x, and the two outer sequences."""

    x: Server  # (*shape)
    y: Server  # the model: where the last inner epoch ended, (*shape)
    z: Server  # (*shape)
    anchor: Anchor


def _care(setting: Setting) -> float:
    """2 where f_1 may not be convex: its prox is then half as strongly convex as its weight says."""
    return 1.0 if convex_workers(setting) else 2.0


def _largest(p: float, cohort: int, setting: Setting) -> float:
    """min(sqrt(p / (10 v)) / delta, 1 / (2 delta_1)), v the variance of a cohort's mean in units of one worker's."""
    c, n = setting.constants, setting.n
    _, delta, server = known(mu=c.mu, delta_mean=c.delta_mean, delta_server=c.delta_server)
    tiny = 1e-9 * float(c.L)
    largest = 0.5 / max(server, tiny)
    if cohort == n or p == 1.0:
        return largest
    variance = (n - cohort) / (cohort * (n - 1))
    return min(math.sqrt(0.1 * p / variance) / (_care(setting) * max(delta, tiny)), largest)


def _prox(x: Tensor, g: Tensor, method: SVRS | AccSVRS, oracles: Oracles, link: Link) -> Tensor:
    """argmin <g - grad f_1(x), u> + ||u - x||^2 / (2 step) + f_1(u), by the server alone."""
    weight, convex = 1.0 / number(method.step), number(method.convex)
    accuracy = number(method.accuracy) * weight / convex
    return slid(x, g, Near(weight, number(method.smooth), convex, accuracy), oracles, link)


@dataclass(frozen=True)
class SVRS(Method):
    """With probability p w becomes x, everyone's gradient is asked for there, and g = grad f(x); otherwise
    g = grad f_i(x) - grad f_i(w) + grad f(w) with a random worker i. Then the server alone makes
    x <- argmin_u <g - grad f_1(x), u> + ||u - x||^2 / (2 step) + f_1(u).

    So an epoch between two anchors has a random, geometrically distributed length, on which the theory rests; its first
    step, at w itself, takes nobody's difference. With p = 1 this is mirror descent with f_1 + ||.||^2 / (2 step).

    Guarantee for f mu-strongly convex, convex f_i, mean-square similarity delta and delta_1 of f_1 to f:
    step <= min(sqrt(p / 10) / delta, 1 / (2 delta_1)), and with D_1 the Bregman distance of f_1 + ||.||^2 / (2 step)
    and c = 1 - 2.5 accuracy^2, c (D_1(x*, x) + D_1(w, x)) + 2 (f(x) - f*) + 2 (1 - p) / p (f(w) - f*) contracts in
    expectation by 1 - min(0.9 m, p / 2), m = mu / (mu + delta_1 + 1 / step). With p = 1 / n that is n + sqrt(n) delta /
    mu iterations. Derived here for the form without loops, in which the bounds of a mirror step against x* and against
    w are added; the paper's constants were not read. A cohort's smaller variance admits a larger step. The f_i need not
    be convex: where they are not all known to be, twice delta stands for delta and 5 for 2.5.

    Parameters
    ----------
    step : theta; None is the largest.
    probability : p; None is cohort / n.
    cohort : how many workers take part where not all do.
    smooth : smoothness of f_1, for the inner solver; None is the problem's L_1.
    accuracy : of the inner solver, ||gradient|| <= accuracy ||u - x|| / step; None is 0.15 sqrt(min(m, p)), half of
        that where f_1 may not be convex, or 1e-3 where m is not known.
    convex : strong convexity of the server's problem, for the inner solver; None is 1 / step for a convex f_1, and else
        what the constants say.

    >>> str(SVRS(step=0.5))
    'svrs(step=0.5)'
    """

    step: Stepsize = None
    probability: Probability = None
    cohort: Annotated[int, Count(1)] = 1
    smooth: Positive = None
    accuracy: Accuracy = None
    convex: Positive = None

    name = "svrs"
    example = "svrs"
    source = dataclasses.replace(_SOURCE, where="Algorithm 1 without loops, constants derived")

    def settled(self, setting: Setting) -> SVRS:
        refuse_cohort(self, self.cohort, setting)
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        method = dataclasses.replace(
            self,
            step=step,
            convex=self.convex or inner_convexity(1.0 / step, setting, self),
            probability=self.probability or share(self.cohort, setting),
            smooth=self.smooth or setting.constants.L_workers[0],
        )
        return dataclasses.replace(method, accuracy=self.accuracy or method._accuracy(setting))

    def _accuracy(self, setting: Setting) -> float:
        c = setting.constants
        if c.mu is None or c.delta_server is None:
            return 1e-3
        inner = _modulus(float(c.mu), float(c.delta_server), number(self.step))
        return _enough(inner, number(self.probability), setting)

    def guarantee(self, setting: Setting) -> Guarantee:
        c, p = setting.constants, self.probability or share(self.cohort, setting)
        largest = _largest(p, self.cohort, setting)
        mu, server = known(mu=c.mu, delta_server=c.delta_server)
        step = explicit(self.step) or largest
        inner = _modulus(mu, server, step)
        enough = _enough(inner, p, setting)
        slack = 1.0 - 2.5 * _care(setting) * (self.accuracy or enough) ** 2

        def lyapunov(snapshot: Snapshot) -> Terms:
            x, w, solution = snapshot.x, snapshot.state.anchor.point, snapshot.solution
            distances = square(solution.x - x) + square(w - x)
            workers = _of_first(x, (solution.x, w), snapshot.oracles) * slack
            workers = workers + 2.0 * (1.0 - p) / p * (snapshot.oracles.values(w) - solution.value)
            return Terms(slack * distances / (2.0 * step) + 2.0 * snapshot.gap, workers)

        promise = Guarantee(
            largest,
            self.source,
            1.0 - min(0.9 * inner, p / 2.0),
            lyapunov,
            0.0,
            0.5,
            ("f strongly convex", "similarity", "constants derived, not read in the paper"),
            sure=False,
            leans_on=estimates(delta_mean=c.delta_mean, delta_server=c.delta_server, mu=c.mu),
        )
        if self.accuracy is not None and self.accuracy > enough * (1.0 + 1e-12):
            return dataclasses.replace(promise, rate=None, lyapunov=None, gap_factor=None)
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, unset(x, oracles))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        anchor = state.anchor
        if link.coin(number(self.probability)) or link.step == 1:
            anchor = await renewed(state.x, oracles, link)
            g = anchor.gradient
        else:
            g = await estimate(state.x, anchor, self.cohort, oracles, link)
        return State(_prox(state.x, g, self, oracles, link), anchor)

    def point(self, state: State) -> Tensor:
        return state.x


def _modulus(mu: float, server: float, step: float) -> float:
    """How strongly convex f is relative to f_1 + ||.||^2 / (2 step)."""
    return mu / (mu + server + 1.0 / step)


def _enough(inner: float, p: float, setting: Setting) -> float:
    """An accuracy of the prox that takes less than a tenth of what a step gains."""
    return 0.15 / _care(setting) * math.sqrt(min(inner, p))


def _of_first(x: Tensor, points: tuple[Tensor, ...], oracles: Oracles) -> Tensor:
    """n times the Bregman distances of f_1 from x to some points, in the row of worker 0; zero for the others."""
    found = torch.zeros(oracles.block.size, dtype=x.dtype)
    if oracles.block.size and oracles.block.low == 0:
        row = np.zeros(1, dtype=np.int64)
        slope, value = oracles.gradients(x, row), oracles.values(x, row)
        for point in points:
            found[:1] += oracles.values(point, row) - value - dot(slope, (point - x)[None])
    return oracles.block.n * found


@dataclass(frozen=True)
class AccSVRS(Method):
    """An outer accelerated method over epochs of SVRS: from x = tau z + (1 - tau) y an epoch of a random, geometrically
    distributed length of mean 1 / p leads to y+; everyone's gradient is asked for there, and with
    G = p ((grad f_1 - grad f)(x) - (grad f_1 - grad f)(y+) + (x - y+) / step), z+ = (z / alpha + mu y+ - G) /
    (1 / alpha + mu). tau = min(sqrt(mu step / (3 p)), 1), alpha = step / (3 p tau).

    An iteration is one step of an epoch; a shared coin ends the epoch before it. Then it has two rounds of everyone, at
    y+ and at the next x. The model is the last y.

    Guarantee for f strongly convex, convex f_i, mean-square similarity delta and delta_1 of f_1 to f:
    step <= min(sqrt(p / 10) / delta, 1 / (2 delta_1)), and over an epoch the expectation of f(y) - f* +
    (tau / 2) (1 / alpha + mu) ||z - x*||^2 shrinks by max(1 - tau, 1 / (1 + alpha mu)). It says nothing of single
    iterations; with p = 1 / n they are of the order n + n^(3/4) sqrt(delta / mu). Derived here, for mu a little below
    the strong convexity of f, of which the rest pays for inexact proxes; the paper's constants were not read, and those
    of a method of this shape (Bylinkin, Beznosikov, 2024, arXiv:2412.16414) are several times as careful. The f_i need
    not be convex: where they are not all known to be, twice delta stands for delta.

    Parameters
    ----------
    step : theta; None is the one above.
    probability : p; None is cohort / n.
    cohort : how many workers take part where not all do.
    mu : that of tau, alpha and z; None is 0.9 times the strong convexity of f.
    smooth : smoothness of f_1, for the inner solver; None is the problem's L_1.
    accuracy : of the inner solver, ||gradient|| <= accuracy ||u - x|| / step; None is sqrt(step r / 3), but at most
        1/4, where mu is r below the strong convexity of f, and otherwise 1e-3.
    convex : as of `svrs`.

    >>> str(AccSVRS(step=0.5))
    'acc_svrs(step=0.5)'
    """

    step: Stepsize = None
    probability: Probability = None
    cohort: Annotated[int, Count(1)] = 1
    mu: Positive = None
    smooth: Positive = None
    accuracy: Accuracy = None
    convex: Positive = None

    name = "acc_svrs"
    example = "acc_svrs"
    source = dataclasses.replace(_SOURCE, where="Algorithm 2, constants derived")

    def settled(self, setting: Setting) -> AccSVRS:
        refuse_cohort(self, self.cohort, setting)
        step, mu = resolve(self.step, lambda: self.guarantee(setting).step), self.mu
        if mu is None:
            mu = 0.9 * known(mu=setting.constants.mu)[0]
        rest = float(setting.constants.mu or 0.0) - mu
        return dataclasses.replace(
            self,
            step=step,
            convex=self.convex or inner_convexity(1.0 / step, setting, self),
            probability=self.probability or share(self.cohort, setting),
            mu=mu,
            smooth=self.smooth or setting.constants.L_workers[0],
            accuracy=self.accuracy or (min(math.sqrt(step * rest / 3.0), 0.25) if rest > 0.0 else 1e-3),
        )

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        return Guarantee(
            _largest(self.probability or share(self.cohort, setting), self.cohort, setting),
            self.source,
            assumes=("f strongly convex", "similarity", "constants derived, not read in the paper"),
            sure=False,
            leans_on=estimates(delta_mean=c.delta_mean, delta_server=c.delta_server, mu=c.mu),
        )

    def weights(self) -> tuple[float, float]:
        """tau of z, and alpha, the step of z."""
        step, p = number(self.step), number(self.probability)
        tau = min(math.sqrt(number(self.mu) * step / (3.0 * p)), 1.0)
        return tau, step / (3.0 * p * tau)

    async def init(self, oracles: Oracles, link: Link) -> OuterState:
        x = oracles.start()
        return OuterState(x, x, x, unset(x, oracles))

    async def iterate(self, state: OuterState, oracles: Oracles, link: Link) -> OuterState:
        x, y, z, anchor = state.x, state.y, state.z, state.anchor
        ends = link.coin(number(self.probability))
        if ends and link.step > 1:
            x, y, z = await self._outer(state, oracles, link)
        if ends or link.step == 1:
            anchor = await renewed(x, oracles, link)
            g = anchor.gradient
        else:
            g = await estimate(x, anchor, self.cohort, oracles, link)
        return OuterState(_prox(x, g, self, oracles, link), y, z, anchor)

    async def _outer(self, state: OuterState, oracles: Oracles, link: Link) -> tuple[Tensor, Tensor, Tensor]:
        """The next outer x, y and z, once an epoch has led from the anchor to state.x."""
        (tau, alpha), mu, p = self.weights(), number(self.mu), number(self.probability)
        y, before = state.x, state.anchor
        there = (await renewed(y, oracles, link)).gradient

        def own() -> Tensor:
            return (oracles.server.gradients(before.point) - oracles.server.gradients(y))[0]

        moved = link.at_server(own, like=y) - (before.gradient - there)
        slope = p * (moved + (before.point - y) / number(self.step))
        z = (state.z / alpha + mu * y - slope) / (1.0 / alpha + mu)
        return tau * z + (1.0 - tau) * y, y, z

    def point(self, state: OuterState) -> Tensor:
        return state.y
