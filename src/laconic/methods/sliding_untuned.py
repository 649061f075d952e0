"""Gradient sliding whose mixing weights grow by themselves: similarity and strong convexity are all it is told."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from laconic.core.entry import Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.methods._similarity import Accuracy, Near, Positive, averaged_gradient, doubt, similarity_of
from laconic.methods.sliding import inner_convexity, slid


@dataclass
class State:
    """The server's two sequences, and the ratio of the weights, which all parties know."""

    x: Server  # where f is small, (*shape)
    v: Server  # (*shape)
    ratio: float  # A / B


@dataclass(frozen=True)
class UntunedSliding(Method):
    """With l = similarity / (1 - accuracy) and a the root of l a^2 = (A + a) B: y = (A x + a v) / (A + a); round one:
    grad f(y); the server alone solves x+ = argmin <grad f(y) - grad f_1(y), w> + (l / 2) ||w - y||^2 + f_1(w) until its
    gradient is at most accuracy * l * ||w - y||; round two: g = grad f(x+); v+ = (mu a x+ + B v - a g) / (mu a + B);
    then A grows by a and B by mu a. Start: A = 0, B = 1.

    Guarantee (f mu-strongly convex, f - f_1 smooth with similarity in both directions, f_1 possibly not convex):
    A (f(x) - f*) + (B / 2) ||v - x*||^2 never grows, and in the limit A and B grow by 1 + sqrt(mu / l) or more per
    iteration of two rounds, so rounds are of the order sqrt(similarity / mu) (derived here: the stop makes <g, y - x+>
    at least ||g||^2 / (2 l)). Others' program of it has 2 l a^2 instead, which is slower by sqrt(2).

    Parameters
    ----------
    similarity : None is the problem's delta of f - f_1.
    mu : strong convexity of f; None is the problem's.
    smooth : smoothness of f_1, for the inner solver; None is the problem's L_1.
    convex : strong convexity of the server's problem, for the inner solver; None is l for a convex f_1, and else what
        the constants say.
    accuracy : of the inner solver.

    >>> str(UntunedSliding(similarity=0.5))
    'sliding_untuned(similarity=0.5)'
    """

    similarity: Positive = None
    mu: Positive = None
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 0.1

    name = "sliding_untuned"
    example = "sliding_untuned"
    source = Source(
        "Kovalev, Beznosikov, Borodich, Gasnikov, Scutari",
        2022,
        "Optimal gradient sliding and its application to distributed optimization under similarity",
        "2205.15136",
        "as programmed by Jiang, Rodomanov, Stich",
    )

    def settled(self, setting: Setting) -> UntunedSliding:
        c = setting.constants
        similarity = similarity_of(self.similarity, c.delta_server, setting, "delta_server")
        mu = self.mu if self.mu is not None else known(mu=c.mu)[0]
        convex = self.convex or inner_convexity(similarity / (1.0 - self.accuracy), setting, self)
        return UntunedSliding(similarity, mu, self.smooth or c.L_workers[0], convex, self.accuracy)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        mu, delta = known(mu=c.mu, delta_server=c.delta_server)
        settled = self.settled(setting)
        if number(settled.similarity) < delta * (1.0 - 1e-12) or number(settled.mu) > mu * (1.0 + 1e-12):
            raise NoTheorem(f"the theorem of {self.name} needs similarity >= {delta:.6g} and mu <= {mu:.6g}")
        assumes = ("f strongly convex", "f - f_1 smooth, in both directions", "rate in the limit only")
        leans = estimates(mu=c.mu, delta_server=c.delta_server)
        return Guarantee(1.0, self.source, assumes=assumes, leans_on=leans)

    def suspect(self, setting: Setting) -> str:
        return doubt(self.similarity, "delta_server", setting.constants.delta_server)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x, 0.0)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        mu, ratio, weight = number(self.mu), state.ratio, self.weight()
        a = (1.0 + math.sqrt(1.0 + 4.0 * weight * ratio)) / (2.0 * weight)  # of B = 1
        y = (ratio * state.x + a * state.v) / (ratio + a)
        _, _, gradient = await averaged_gradient(y, oracles, link)
        x = slid(y, gradient, self.near(), oracles, link)
        _, _, gradient = await averaged_gradient(x, oracles, link)
        v = (mu * a * x + state.v - a * gradient) / (mu * a + 1.0)
        return State(x, v, (ratio + a) / (mu * a + 1.0))

    def weight(self) -> float:
        """l."""
        return number(self.similarity) / (1.0 - self.accuracy)

    def near(self) -> Near:
        """The server's problem; what its gradient may be is a share of l, or of less."""
        weight, convex = self.weight(), number(self.convex)
        return Near(weight, number(self.smooth), convex, self.accuracy * min(1.0, weight / convex))

    def point(self, state: State) -> Tensor:
        return state.x
