"""SVRP: stochastic variance-reduced proximal point, and its acceleration. One worker acts per iteration."""

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
from laconic.core.rows import square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._anchored import Anchor, refuse_cohort, renewed, share, unset
from laconic.methods._inner import minimise_rows

ACCURACY = 1e-3  # of a client's prox where theory asks for no better one
_SOURCE = Source("Khaled, Jin", 2022, "Faster federated optimization under second-order similarity", "2209.02257")
Probability = Annotated[float | None, Interval(0.0, 1.0, open="low")]
Positive = Annotated[float | None, Interval(0.0, open="low")]
Accuracy = Annotated[float | None, Interval(0.0, 0.5, open="both")]


@dataclass
class State:
    """The model and its anchor."""

    x: Server  # (*shape)
    anchor: Anchor


@dataclass
class OuterState:
    """The inner model, where this stage began, the point that it is pulled to, and the steps that are done."""

    x: Server  # (*shape)
    before: Server  # (*shape)
    centre: Server  # (*shape)
    anchor: Anchor
    done: int


@dataclass(frozen=True)
class Client:
    """How a worker of the cohort solves its subproblem f_i(u) + <s, u> + (pull / 2) ||u - x||^2.

    By accelerated gradient descent from x, until ||gradient|| <= accuracy pull ||u - x||, which vanishes at x*.
    """

    pull: float
    smooth: float
    accuracy: float

    def solve(self, x: Tensor, slope: Tensor, rows: np.ndarray, oracles: Oracles, link: Link) -> Tensor:
        """u (rows, *shape); x is (*shape), the slopes s are (rows, *shape)."""

        def subproblem(u: Tensor, which: np.ndarray) -> Tensor:
            return oracles.gradients(u, rows[which]) + slope[torch.from_numpy(which)] + self.pull * (u - x)

        start, relative = x.expand(slope.shape), self.accuracy * self.pull
        return minimise_rows(subproblem, start, self.smooth + self.pull, self.pull, relative, remark=link.remark)


async def _stepped(
    x: Tensor, slope: Tensor, anchor: Anchor, cohort: int, client: Client, oracles: Oracles, link: Link
) -> Tensor:
    """The mean over a random cohort of the minima of f_i(u) + <slope - grad f_i(w), u> + (pull / 2) ||u - x||^2."""
    who = link.sample(cohort)
    told = await link.broadcast(torch.stack([x, slope]), to=who)
    slopes = told[1] - anchor.own[torch.from_numpy(who.rows)]
    sent = await link.uplink(None, client.solve(told[0], slopes, who.rows, oracles, link), who)
    x = torch.zeros_like(x)
    sent.mean.add_to(x, scale=link.n / cohort)
    return x


def _accuracy(contraction: float) -> float:
    """Of the prox: so fine that it takes less than a tenth of what a step gains, step * mu."""
    return min(ACCURACY, 0.01 * contraction)


def _rate(contraction: float, p: float) -> float:
    """By what SVRP shrinks its Lyapunov function, at step * mu."""
    capped = min(contraction, 1.0)
    return 1.0 - min(0.9 * capped / (1.0 + capped), p / 2.0)


def _similarity(delta: float, setting: Setting) -> float:
    return max(delta, 1e-9 * float(setting.constants.L))


@dataclass(frozen=True)
class SVRP(Method):
    """A random worker i takes x and grad f(w), and returns x+ = prox_{step f_i}(x - step (grad f(w) - grad f_i(w)));
    with probability p, w becomes x+ and all workers send their gradients there.

    Guarantee for mu-strongly convex f_i with mean-square similarity delta: with step = mu / (2 delta^2),
    s = min(step mu, 1), ||x - x*||^2 + (s / p) ||w - x*||^2 contracts in expectation by
    1 - min(0.9 s / (1 + s), p / 2). With p = 1 / n that is n + delta^2 / mu^2 iterations; no smoothness enters but by
    the inner solver. Derived again here with its Lyapunov function (recalled of the paper is step mu / (1 + 2 step mu)
    in the place of the first term); the 0.9 is for inexact proxes. The theory is pessimistic, ten times the step often
    works. The prox is solved by accelerated gradient descent; the gradient calls are counted. With a cohort the results
    are averaged, and the bound stays.

    Parameters
    ----------
    step : None is mu / (2 delta^2).
    probability : p; None is cohort / n.
    smooth : smoothness of the f_i, for the inner solver; None is L_max.
    cohort : how many workers act in an iteration.
    accuracy : of the prox, ||gradient|| <= accuracy ||x+ - x|| / step; None is min(1e-3, step mu / 100).

    >>> str(SVRP(step="10x"))
    "svrp(step='10x')"
    """

    step: Stepsize = None
    probability: Probability = None
    smooth: Positive = None
    cohort: Annotated[int, Count(1)] = 1
    accuracy: Accuracy = None

    name = "svrp"
    example = "svrp"
    source = dataclasses.replace(_SOURCE, where="Theorem 2")

    def settled(self, setting: Setting) -> SVRP:
        refuse_cohort(self, self.cohort, setting)
        c = setting.constants
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        accuracy = self.accuracy
        if accuracy is None:
            mu = float(c.mu_workers) if c.mu_workers is not None else 0.0
            accuracy = _accuracy(step * mu) if mu > 0.0 else ACCURACY
        smooth = self.smooth if self.smooth is not None else float(c.L_max)
        return SVRP(step, self.probability or share(self.cohort, setting), smooth, self.cohort, accuracy)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        mu, delta = known(mu_workers=c.mu_workers, delta_mean=c.delta_mean)
        if mu <= 0.0:
            raise NoTheorem("the theorem of svrp needs strongly convex f_i; give an explicit step")
        largest = mu / (2.0 * _similarity(delta, setting) ** 2)
        step = explicit(self.step) or largest
        p = self.probability or share(self.cohort, setting)

        def lyapunov(snapshot: Snapshot) -> Terms:
            x, w = snapshot.solution.x, snapshot.state.anchor.point
            return Terms(square(snapshot.x - x) + min(step * mu, 1.0) / p * square(w - x))

        promise = Guarantee(
            largest,
            self.source,
            _rate(step * mu, p),
            lyapunov,
            0.0,
            0.5 * float(c.L),
            ("f_i strongly convex", "similarity"),
            sure=False,
            leans_on=estimates(delta_mean=c.delta_mean, mu_workers=c.mu_workers),
        )
        if self.accuracy is not None and self.accuracy > _accuracy(step * mu) * (1.0 + 1e-12):
            return dataclasses.replace(promise, rate=None, lyapunov=None, gap_factor=None)
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        own = oracles.gradients(x)
        sent = await link.uplink(None, own)
        return State(x, Anchor(x, own, sent.mean.dense()))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        client = Client(1.0 / number(self.step), number(self.smooth), number(self.accuracy))
        x = await _stepped(state.x, state.anchor.gradient, state.anchor, self.cohort, client, oracles, link)
        renew = link.coin(number(self.probability))
        return State(x, await renewed(x, oracles, link) if renew else state.anchor)

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class CatalyzedSVRP(Method):
    """Stages of T iterations of SVRP on f + (weight / 2) ||. - y||^2, each from where the last one ended, x_t; between
    them y = x_t + b (x_t - x_(t-1)), b = (1 - sqrt(q)) / (1 + sqrt(q)), q = mu / (mu + weight).

    A stage begins with everyone's gradient at its first point. An iteration is one of SVRP; the server adds the pull to
    y to what it sends, so that workers act as in SVRP.

    Guarantee for mu-strongly convex f_i with mean-square similarity delta: weight = max(delta / sqrt(n) - mu, 0),
    step = (mu + weight) / (2 delta^2), of the order n + n^(3/4) sqrt(delta / mu) iterations up to squared logarithms.
    It is plain SVRP where delta <= sqrt(n) mu. Recalled, and without a rate: T was chosen here, so that a stage shrinks
    SVRP's Lyapunov function by q / 4; from n to 8 n is much the same.

    Parameters
    ----------
    step : of the prox; None is (mu + weight) / (2 delta^2).
    weight : of the pull to y; None is the theorem's.
    length : T; None is log(4 / q) / -log(rate of svrp on a stage's problem).
    probability : p; None is cohort / n.
    mu : strong convexity of the f_i; None is the problem's.
    smooth, cohort, accuracy : as of `svrp`.

    >>> str(CatalyzedSVRP(length=40))
    'catalyzed_svrp(length=40)'
    """

    step: Stepsize = None
    weight: Annotated[float | None, Interval(0.0)] = None
    length: Annotated[int | None, Count(1)] = None
    probability: Probability = None
    mu: Positive = None
    smooth: Positive = None
    cohort: Annotated[int, Count(1)] = 1
    accuracy: Accuracy = None

    name = "catalyzed_svrp"
    example = "catalyzed_svrp"
    source = dataclasses.replace(_SOURCE, where="Algorithm 3, recalled")

    def settled(self, setting: Setting) -> CatalyzedSVRP:
        refuse_cohort(self, self.cohort, setting)
        mu, weight = self._convexity(setting), self.weight
        if weight is None:
            (delta,) = known(delta_mean=setting.constants.delta_mean)
            weight = max(delta / math.sqrt(setting.n) - mu, 0.0)
        p = self.probability or share(self.cohort, setting)
        smooth = self.smooth if self.smooth is not None else float(setting.constants.L_max)
        method = dataclasses.replace(self, weight=weight, probability=p, mu=mu, smooth=smooth)
        step = resolve(self.step, lambda: method.guarantee(setting).step)
        contraction = step * (mu + weight)
        length = math.ceil(math.log(4.0 * (mu + weight) / mu) / -math.log(_rate(contraction, p)))
        accuracy = self.accuracy or _accuracy(contraction)
        return dataclasses.replace(method, step=step, length=self.length or length, accuracy=accuracy)

    def _convexity(self, setting: Setting) -> float:
        if self.mu is not None:
            return self.mu
        least = setting.constants.mu_workers
        if least is None or float(least) <= 0.0:
            raise NoTheorem(f"the theorem of {self} needs strongly convex f_i; give explicit step, weight and mu")
        return float(least)

    def guarantee(self, setting: Setting) -> Guarantee:
        c, mu = setting.constants, self._convexity(setting)
        (delta,) = known(delta_mean=c.delta_mean)
        if c.mu_workers is None or mu > float(c.mu_workers) * (1.0 + 1e-12):
            raise NoTheorem(f"the theorem of {self} needs f_i that are {mu:.6g}-strongly convex; give an explicit step")
        weight = self.weight if self.weight is not None else max(delta / math.sqrt(setting.n) - mu, 0.0)
        return Guarantee(
            (mu + weight) / (2.0 * _similarity(delta, setting) ** 2),
            self.source,
            assumes=("f_i strongly convex", "similarity", "constants recalled, not read in the paper"),
            sure=False,
            leans_on=estimates(delta_mean=c.delta_mean, mu_workers=c.mu_workers),
        )

    async def init(self, oracles: Oracles, link: Link) -> OuterState:
        x = oracles.start()
        assert self.length is not None
        return OuterState(x, x, x, unset(x, oracles), self.length)  # a stage is over, and the next one begins

    async def iterate(self, state: OuterState, oracles: Oracles, link: Link) -> OuterState:
        x, before, centre, anchor, done = state.x, state.before, state.centre, state.anchor, state.done
        weight, mu = number(self.weight), number(self.mu)
        if done == self.length:
            root = math.sqrt(mu / (mu + weight))
            centre, before, done = x + (1.0 - root) / (1.0 + root) * (x - before), x, 0
            anchor = await renewed(x, oracles, link)
        client = Client(1.0 / number(self.step) + weight, number(self.smooth), number(self.accuracy))
        slope = anchor.gradient + weight * (x - centre)
        x = await _stepped(x, slope, anchor, self.cohort, client, oracles, link)
        if link.coin(number(self.probability)) and done + 1 != self.length:
            anchor = await renewed(x, oracles, link)
        return OuterState(x, before, centre, anchor, done + 1)

    def point(self, state: OuterState) -> Tensor:
        return state.x
