"""DANE: every worker minimises its own function with a linear correction; and its inexact form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._similarity import (
    Accuracy,
    Near,
    Positive,
    average_of_local,
    local_near,
    modulus,
    shrinking,
    suspected,
)


@dataclass
class State:
    """The server's model."""

    x: Server  # (*shape)


@dataclass(frozen=True)
class DANE(Method):
    """x goes down, gradients come up, g = grad f(x) goes down; w_i = argmin f_i(w) - <grad f_i(x) - weight g, w> +
    (similarity / 2) ||w - x||^2 come up, and x+ = mean w_i. Two rounds per iteration.

    Guarantee (weight = 1) where f is mu-strongly convex and the Hessians of the f_i are within delta <= similarity of
    its own: f(x) - f* contracts by 1 - mu / (mu + similarity + delta) per iteration; the f_i need not be convex. This
    is derived here (each w_i is a step of mirror descent, and f is convex); the paper has similarity = max(0, 8
    delta^2 / mu - mu) and a factor 1 - mu^2 / (16 delta^2) for quadratics. With less than delta it may converge much
    faster, where workers have much data, and it may diverge: in one dimension already.

    Parameters
    ----------
    similarity : the paper's mu, called m elsewhere; None is the problem's delta. 0 is allowed.
    weight : the paper's eta.
    smooth : smoothness of the f_i, for the inner solver; None is L_max.
    convex : strong convexity of the local problems, for the inner solver; None is what the constants say.
    accuracy : the inner solver (accelerated gradient descent, its gradients counted) stops where its gradient is at
        most this times convex times the way it went; here next to exact.

    >>> str(DANE(similarity=0.5))
    'dane(similarity=0.5)'
    """

    similarity: Annotated[float | None, Interval(0.0)] = None
    weight: Annotated[float, Interval(0.0, 1.0, open="low")] = 1.0
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 1e-6

    name = "dane"
    example = "dane"
    source = Source(
        "Shamir, Srebro, Zhang",
        2014,
        "Communication-efficient distributed optimization using an approximate Newton-type method",
        "1312.7853",
    )

    def settled(self, setting: Setting) -> DANE:
        near = local_near(self, setting)
        return dataclasses.replace(self, similarity=near.weight, smooth=near.smooth, convex=near.convex)

    def guarantee(self, setting: Setting) -> Guarantee:
        if self.weight != 1.0:
            raise NoTheorem(f"the theorem of {self.name} needs weight=1.0; another one is tried, not known")
        return promise(self, setting, 1.0)

    def suspect(self, setting: Setting) -> str:
        return suspected(self, setting)

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        near = Near(number(self.similarity), number(self.smooth), number(self.convex), self.accuracy)
        return State(await average_of_local(state.x, near, oracles, link, weight=self.weight))

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class InexactDANE(DANE):
    """DANE whose workers stop early: ||w_i - w_i*|| <= gamma ||w_i* - x||, gamma = accuracy / (1 - accuracy).

    Guarantee as of `dane`, with mu / (mu + similarity + delta) times 1 - gamma^2 (derived here). The test is
    computable, for the local problems are strongly convex.

    Parameters
    ----------
    similarity, weight, smooth, convex : as of `dane`.
    accuracy : the inner solver stops where its gradient is at most this times convex times the way it went.

    >>> str(InexactDANE(accuracy=0.3))
    'inexact_dane(accuracy=0.3)'
    """

    accuracy: Accuracy = 0.1

    name = "inexact_dane"
    example = "inexact_dane"
    source = Source(
        "Reddi, Konecny, Richtarik, Poczos, Smola",
        2016,
        "AIDE: fast and communication efficient distributed optimization",
        "1608.06879",
    )


def promise(method: DANE | SONATA, setting: Setting, share: float) -> Guarantee:
    """The gap contracts; `share` of the way to the mean of the w_i is gone, and f is convex."""
    c, near = setting.constants, local_near(method, setting)
    mu, delta = known(mu=c.mu, delta=c.delta)
    factor = shrinking(near.weight, delta, mu, near.accuracy)

    def gap(snapshot: Snapshot) -> Terms:
        return Terms(snapshot.gap)

    found = Guarantee(
        1.0,
        type(method).source,
        1.0 - share * (1.0 - factor),
        gap,
        0.0,
        1.0,
        ("f strongly convex", "f - f_i smooth, in both directions"),
        leans_on=estimates(mu=c.mu, delta=c.delta),
    )
    convex = modulus(near.weight, c.delta, setting)
    if convex is not None and near.convex <= convex * (1.0 + 1e-12) and near.weight >= delta * (1.0 - 1e-12):
        return found
    return dataclasses.replace(found, rate=None, lyapunov=None, gap_factor=None)


@dataclass(frozen=True)
class SONATA(Method):
    """SONATA-F on a star: x and g = grad f(x) go down, v_i = argmin f_i(w) + <g - grad f_i(x), w> + (similarity / 2)
    ||w - x||^2 come up, and x+ = x + relaxation (mean v_i - x). Two rounds per iteration; the same as DANE with weight
    1 where relaxation is 1. On a network without a server g would be tracked by gossip.

    Guarantee where f is mu-strongly convex and the Hessians of the f_i are within delta <= similarity of its own: f(x)
    - f* contracts by 1 - relaxation (1 - lost) mu / (mu + similarity + delta) per iteration, lost = (accuracy / (1 -
    accuracy))^2; derived here, f need not be quadratic.

    Parameters
    ----------
    similarity : the paper's beta; None is the problem's delta.
    relaxation : the paper's gamma.
    smooth, convex, accuracy : of the inner solver, as of `dane`.

    >>> str(SONATA(relaxation=0.5))
    'sonata(relaxation=0.5)'
    """

    similarity: Annotated[float | None, Interval(0.0)] = None
    relaxation: Annotated[float, Interval(0.0, 1.0, open="low")] = 1.0
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 0.1

    name = "sonata"
    aliases = ("sonata_f",)
    example = "sonata"
    source = Source(
        "Sun, Daneshmand, Scutari",
        2019,
        "Distributed optimization based on gradient-tracking revisited: enhancing convergence rate via surrogation",
        "1905.02637",
    )

    def settled(self, setting: Setting) -> SONATA:
        near = local_near(self, setting)
        return dataclasses.replace(self, similarity=near.weight, smooth=near.smooth, convex=near.convex)

    def guarantee(self, setting: Setting) -> Guarantee:
        return promise(self, setting, self.relaxation)

    def suspect(self, setting: Setting) -> str:
        return suspected(self, setting)

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        near = Near(number(self.similarity), number(self.smooth), number(self.convex), self.accuracy)
        mean = await average_of_local(state.x, near, oracles, link)
        return State(state.x + self.relaxation * (mean - state.x))

    def point(self, state: State) -> Tensor:
        return state.x
