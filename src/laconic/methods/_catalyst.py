"""What accelerated forms of DANE and SONATA share: a few inner steps on f + (pull / 2) ||. - y||^2, then momentum."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass

from torch import Tensor

from laconic.core.link import Link
from laconic.core.method import Method
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.methods._similarity import Near, average_of_local


@dataclass
class State:
    """The server's points, and how many inner steps are done since y moved."""

    x: Server  # where the inner steps are, (*shape)
    before: Server  # where they were when y last moved, (*shape)
    centre: Server  # y, (*shape)
    done: int


@dataclass(frozen=True)
class Numbers:
    """The local problems, `attraction` among their weight; inner steps until y moves, and how far it then jumps."""

    near: Near
    attraction: float
    steps: int
    momentum: float


@dataclass(frozen=True)
class Catalyst(Method):
    """One iteration is one inner step: two rounds. After some of them y jumps ahead of x."""

    @abstractmethod
    def numbers(self) -> Numbers:
        """Of the settled method."""

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x, x, 0)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        its = self.numbers()
        pull = its.attraction * (state.x - state.centre)
        x = await average_of_local(state.x, its.near, oracles, link, pull=pull)
        if state.done + 1 < its.steps:
            return dataclasses.replace(state, x=x, done=state.done + 1)
        return State(x, x, x + its.momentum * (x - state.before), 0)

    def point(self, state: State) -> Tensor:
        return state.x


def quadratics_only(method: Method, setting: Setting) -> Guarantee:
    """A theorem about quadratics that names no rate per iteration. Raises NoTheorem for other functions."""
    c = setting.constants
    known(mu=c.mu, delta=c.delta)
    third = c.hessian_lipschitz
    if third is None or float(third) > 0.0:
        raise NoTheorem(f"the theorem of {method.name} is about quadratics; it is run without one")
    assumes = ("f_i quadratic", "f strongly convex", "f - f_i smooth, in both directions")
    return Guarantee(1.0, method.source, assumes=assumes, sure=False, leans_on=estimates(mu=c.mu, delta=c.delta))


def nesterovs(mu: float, attraction: float) -> float:
    """(1 - sqrt(q)) / (1 + sqrt(q)) with q = mu / (mu + attraction); 0 where nothing attracts."""
    root = math.sqrt(mu / (mu + attraction))
    return (1.0 - root) / (1.0 + root)
