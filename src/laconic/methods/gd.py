"""Gradient descent over a mechanism over an estimator."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from laconic.core.entry import Source, Stepsize
from laconic.core.estimator import Estimator
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server, Shared
from laconic.core.theory import Guarantee, Setting
from laconic.estimators.full import FullGradient
from laconic.mechanisms.direct import Direct


@dataclass
class State:
    """The server's model and estimate, and what mechanism and estimator keep."""

    x: Server  # (*shape)
    estimate: Server  # g at x, (*shape)
    memory: Any
    estimator: Any


@dataclass
class PublicState:
    """The same where every party can compute the estimate, and so the model."""

    x: Shared  # (*shape)
    estimate: Shared  # g at x, (*shape)
    memory: Any
    estimator: Any


@dataclass(frozen=True)
class GD(Method):
    """x <- x - step g, broadcast x, workers estimate their gradients there, and the mechanism makes the next g of them.

    The first g comes from the mechanism's start at x^0. Mechanisms whose estimate is public need no broadcast.

    Parameters
    ----------
    mechanism : how n vectors become one estimate; the default averages them, which is gradient descent.
    step : None is the theorem's, "4x" four times it.
    estimator : how workers estimate their gradients.

    >>> str(GD(step="4x"))
    "gd(step='4x')"
    """

    mechanism: Mechanism = field(default_factory=Direct)
    step: Stepsize = None
    estimator: Estimator = field(default_factory=FullGradient)

    name = "gd"
    example = "gd(ef21(topk(k=0.05)), step='4x')"
    source = Source("Cauchy", 1847, "Méthode générale pour la résolution des systèmes d'équations simultanées")

    def settled(self, setting: Setting) -> GD:
        mechanism = self.mechanism.settled(setting)
        step = resolve(self.step, lambda: mechanism.guarantee(setting, self.estimator, None).step)
        return dataclasses.replace(self, mechanism=mechanism, step=step)

    def guarantee(self, setting: Setting) -> Guarantee:
        step = explicit(self.step)
        return self.mechanism.guarantee(setting, self.estimator, step).at(step)

    async def init(self, oracles: Oracles, link: Link) -> State | PublicState:
        x = oracles.start()
        estimate = self.estimator.init(x, oracles, link.scope("estimator"))
        g, memory = await self.mechanism.init(self._scaled(estimate.v), link.scope("mechanism"), estimate.probe)
        state = PublicState if self.mechanism.public else State
        return state(x, g, memory, estimate.state)

    async def iterate(self, state: State | PublicState, oracles: Oracles, link: Link) -> State | PublicState:
        x = state.x - self._scaled_back(state.estimate)
        held = x if self.mechanism.public else await link.broadcast(x)
        estimate = self.estimator.estimate(held, state.estimator, oracles, link.scope("estimator"))
        g, memory = await self.mechanism.exchange(
            self._scaled(estimate.v), state.memory, link.scope("mechanism"), estimate.probe
        )
        return type(state)(x, g, memory, estimate.state)

    def _scaled(self, v: Tensor) -> Tensor:
        return v * number(self.step) if self.mechanism.takes_step else v

    def _scaled_back(self, estimate: Tensor) -> Tensor:
        return estimate if self.mechanism.takes_step else number(self.step) * estimate

    def point(self, state: State | PublicState) -> Tensor:
        return state.x
