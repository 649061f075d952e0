"""ACN: cubic-regularised Newton steps under similarity, accelerated by an estimating sequence, with restarts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting, estimates, known
from laconic.methods._cubic import attempted, cubic_steps
from laconic.methods._similarity import averaged_gradient, doubt, similarity_of

SECOND = THIRD = 1.0  # factors of the quadratic and cubic parts of the estimating sequence; 1/2 to 2 were tried
PER_ROOT = 4.0  # iterations between restarts are this times sqrt(similarity / mu)


@dataclass
class State:
    """The model, the estimating sequence's centre, gradients and minimiser, and iterations since the last restart."""

    x: Server  # (*shape)
    centre: Server  # x of the last restart, (*shape)
    gradients: Server  # sum a_j grad f(x_j), (*shape)
    y: Server  # the estimating sequence's minimiser, (*shape)
    k: int


@dataclass(frozen=True)
class ACN(Method):
    """v = (1 - a / A) x + (a / A) y with A = (k + 1)(k + 2)(k + 3) / 6 and a = A - A_old. Round one: g = grad f(v), and
    the server takes x+ = v + argmin <g, s> + s'(hess f_1(v) + similarity I) s / 2 + (hessian_lipschitz / 6) ||s||^3.
    Round two: G <- G + a grad f(x+), and y+ = argmin <G, w> + (k2 / 2) ||w - x_0||^2 + (k3 / 6) ||w - x_0||^3 with
    k2 = similarity a^2 / A and k3 = hessian_lipschitz a^3 / A^2. Every `restart` iterations x becomes x_0 and G = 0.

    Guarantee for convex f, ||hess f_1 - hess f|| <= similarity and a Lipschitz Hessian of f: f(x_k) - f* is of the
    order delta R^2 / k^2 + M R^3 / k^3; with restarts every 4 sqrt(delta / mu) iterations linear for mu-strongly convex
    f, about sqrt(delta / mu) iterations for each digit. Structure as recalled; k2 and k3 are ours, for the paper's
    constants were not read, and no rate is promised. The quadratic part has to grow like k, or the acceleration is
    lost.

    Parameters
    ----------
    similarity : tau; None is the problem's delta of f_1.
    hessian_lipschitz : M; None is the problem's.
    restart : iterations between restarts; None is 4 sqrt(similarity / mu), or none at all where f is not known to be
        strongly convex.

    >>> str(ACN(restart=20))
    'acn(restart=20)'
    """

    similarity: Annotated[float | None, Interval(0.0, open="low")] = None
    hessian_lipschitz: Annotated[float | None, Interval(0.0)] = None
    restart: Annotated[int | None, Count(1)] = None

    name = "acn"
    example = "acn"
    source = Source(
        "Agafonov, Dvurechensky, Scutari, Gasnikov, Kamzolov, Lukashevich, Daneshmand",
        2021,
        "An accelerated second-order method for distributed stochastic optimization",
        "2103.14392",
        "structure recalled, constants tried",
    )

    def settled(self, setting: Setting) -> ACN:
        c, bend, restart = setting.constants, self.hessian_lipschitz, self.restart
        similarity = similarity_of(self.similarity, c.delta_server, setting, "delta_server")
        if bend is None:
            (bend,) = known(hessian_lipschitz=c.hessian_lipschitz)
        if restart is None and c.mu is not None and float(c.mu) > 0.0:
            restart = max(1, math.ceil(PER_ROOT * math.sqrt(similarity / float(c.mu))))
        return ACN(similarity, bend, restart)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        known(delta_server=c.delta_server, hessian_lipschitz=c.hessian_lipschitz)
        return Guarantee(
            1.0,
            self.source,
            assumes=("f convex", "f_1 similar to f", "Lipschitz Hessian of f", "constants of our own"),
            sure=False,
            leans_on=estimates(delta_server=c.delta_server, hessian_lipschitz=c.hessian_lipschitz, mu=c.mu),
        )

    def suspect(self, setting: Setting) -> str:
        return doubt(self.similarity, "delta_server", setting.constants.delta_server)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x, torch.zeros_like(x), x, 0)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        k, similarity, bend = state.k, number(self.similarity), number(self.hessian_lipschitz)
        total = (k + 1) * (k + 2) * (k + 3) / 6.0
        a = total - k * (k + 1) * (k + 2) / 6.0
        v = (1.0 - a / total) * state.x + (a / total) * state.y
        _, _, g = await averaged_gradient(v, oracles, link)

        def move() -> Tensor:
            return cubic_steps(oracles.server.hessians(v), g, similarity, bend)[0]

        x = v + link.at_server(lambda: attempted(move, v, link), like=v)
        _, _, g = await averaged_gradient(x, oracles, link)
        gradients = state.gradients + a * g
        second, third = SECOND * similarity * a**2 / total, THIRD * bend * a**3 / total**2
        y = state.centre - _reach(gradients, second, third)
        if self.restart is not None and k + 1 >= self.restart:
            return State(x, x, torch.zeros_like(x), x, 0)
        return dataclasses.replace(state, x=x, gradients=gradients, y=y, k=k + 1)

    def point(self, state: State) -> Tensor:
        return state.x


def _reach(g: Tensor, second: float, third: float) -> Tensor:
    """r g / ||g|| with second r + (third / 2) r^2 = ||g||: minus the minimiser of the model of that slope."""
    size = math.sqrt(square(g))
    return g * (2.0 / (second + math.sqrt(second**2 + 2.0 * third * size)))
