"""Gradient sliding for operators: few rounds when the workers' operators resemble the server's."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.methods._inner_operator import zero
from laconic.methods._variational import alike, distance, gap_factor, operator_at, strongly_monotone

ACCURACY = 1.0 / 6.0  # the server's u has ||B(u)|| <= ACCURACY ||z - u|| / prox_step


@dataclass
class State:
    """The server's point."""

    z: Server  # (*shape)


@dataclass(frozen=True)
class ExtragradientSliding(Method):
    """F = P + F_1 with F_1 the server's own copy of worker 0's operator, and P = F - F_1 delta-Lipschitz.

    Round one: F(z); the server alone solves B(u) = P(z) + F_1(u) + (u - z) / theta = 0 to a relative accuracy; round
    two: F(u); z+ = z + eta pull (u - z) - eta F(u).

    Guarantee for F mu-strongly monotone, with eta = theta <= 1 / (2 delta) and pull = 0, which is Tseng's
    forward-backward-forward splitting: with ||B(u)|| <= ||z - u|| / (6 theta), ||z - z*||^2 contracts by
    1 - 2 eta mu / (1 + t), t = max(1, 2 eta mu / s), s = 1 - (theta delta + 1/6)^2, per iteration of two rounds: about
    1 - mu / (2 delta). It follows from
    ||z+ - z*||^2 <= ||z - z*||^2 - s ||z - u||^2 - 2 eta mu ||u - z*||^2. L is in no rate: it counts inner steps alone,
    of the order of L / delta per iteration, which are counted as the server's work.

    The paper's own constants, as recalled, are theta = 1 / (2 delta), eta = min(1 / (4 mu), 1 / (4 delta)) and
    pull = 2 mu; they can be given and have no theorem here.

    Parameters
    ----------
    step : eta; None is 1 / (2 delta), delta being that of F - F_1.
    prox_step : theta; None is eta.
    pull : alpha, of z towards u.
    smooth : Lipschitz constant of F_1, for the inner solver; None is the problem's L_1.

    >>> str(ExtragradientSliding(step=0.5, prox_step=1.0, pull=0.2))
    'extragradient_sliding(step=0.5, prox_step=1.0, pull=0.2)'
    """

    step: Stepsize = None
    prox_step: Annotated[float | None, Interval(0.0, open="low")] = None
    pull: Annotated[float, Interval(0.0)] = 0.0
    smooth: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "extragradient_sliding"
    aliases = ("egs",)
    example = "extragradient_sliding"
    source = Source(
        "Kovalev, Beznosikov, Borodich, Gasnikov, Scutari",
        2022,
        "Optimal gradient sliding and its application to distributed optimization under similarity",
        "2205.15136",
        "Algorithm 3 with the constants of Tseng's splitting, derived",
    )

    def settled(self, setting: Setting) -> ExtragradientSliding:
        step = resolve(self.step, lambda: dataclasses.replace(self, step=None).guarantee(setting).step)
        prox_step = self.prox_step if self.prox_step is not None else step
        smooth = self.smooth if self.smooth is not None else setting.operator.L_workers[0]
        return dataclasses.replace(self, step=step, prox_step=prox_step, smooth=smooth)

    def guarantee(self, setting: Setting) -> Guarantee:
        c, _, mu = strongly_monotone(setting)
        (delta,) = known(delta_server=c.delta_server)
        largest = 0.5 / alike(delta, c)
        step = explicit(self.step) or largest
        if self.pull > 0.0 or (self.prox_step is not None and self.prox_step != step):
            raise NoTheorem(f"the theorem of {self} needs prox_step = step and pull = 0; give an explicit step")
        left = 1.0 - (step * delta + ACCURACY) ** 2
        rate = None if left <= 0.0 else 1.0 - 2.0 * step * mu / (1.0 + max(1.0, 2.0 * step * mu / left))
        promise = Guarantee(
            largest,
            self.source,
            rate,
            distance,
            0.0,
            gap_factor(setting),
            ("F strongly monotone", "F - F_1 Lipschitz"),
            leans_on=estimates(delta_server=c.delta_server, mu=c.mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        z, eta = state.z, number(self.step)
        operator = await operator_at(z, oracles, link)
        u = link.at_server(lambda: self._solve(z, operator, oracles.server, link), like=z)
        return State(z + eta * self.pull * (u - z) - eta * await operator_at(u, oracles, link))

    def _solve(self, z: Tensor, operator: Tensor, server: Oracles, link: Link) -> Tensor:
        theta = number(self.prox_step)
        rest = operator - server.gradients(z)[0]  # P(z)

        def subproblem(u: Tensor) -> Tensor:
            return rest + server.gradients(u)[0] + (u - z) / theta

        return zero(subproblem, z, number(self.smooth) + 1.0 / theta, 1.0 / theta, ACCURACY / theta, link.remark)

    def point(self, state: State) -> Tensor:
        return state.z
