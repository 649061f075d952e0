"""Gradient sliding (Accelerated ExtraGradient): few rounds when the workers' functions resemble the server's."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._inner import minimise

ACCURACY = 1.0 / 3.0  # ||grad A(w)|| <= ACCURACY * similarity * ||x_g - w||; the theorem's criterion follows from 0.44


@dataclass
class State:
    """The server's two sequences."""

    x: Server  # (*shape)
    x_f: Server  # where f is small, (*shape)


@dataclass(frozen=True)
class Sliding(Method):
    """f = p + q with q = f_1, the server's own copy of worker 0's function, and p = f - f_1, L_p-smooth.

    x_g = tau x + (1 - tau) x_f; round one: grad p(x_g); the server alone solves
    x_f+ = argmin <grad p(x_g), w - x_g> + ||w - x_g||^2 / (2 theta) + f_1(w) to a relative accuracy; round two:
    grad f(x_f+); x+ = x + eta alpha (x_f+ - x) - eta grad f(x_f+).

    Guarantee (f mu-strongly convex, f_1 convex, p possibly not): with tau = min(1, sqrt(mu / L_p) / 2),
    theta = 1 / (2 L_p), eta = min(1 / (2 mu), 1 / (2 sqrt(mu L_p))), alpha = mu,
    ||x - x*||^2 + (2 eta / tau) (f(x_f) - f*) contracts by 1 - min(1, sqrt(mu / L_p)) / 2 per iteration of two rounds.
    Over-estimating L_p only slows the method; under-estimating it by four makes it diverge. The inner solver is
    accelerated gradient descent with a computable test that implies the theorem's.

    Parameters
    ----------
    similarity : L_p; None is the problem's delta of f - f_1.
    mu : strong convexity of f; None is the problem's.
    smooth : smoothness of f_1, for the inner solver; None is the problem's L_1.

    >>> str(Sliding(similarity=0.5))
    'sliding(similarity=0.5)'
    """

    similarity: Annotated[float | None, Interval(0.0, open="low")] = None
    mu: Annotated[float | None, Interval(0.0, open="low")] = None
    smooth: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "sliding"
    aliases = ("aeg", "accelerated_extragradient")
    example = "sliding"
    source = Source(
        "Kovalev, Beznosikov, Borodich, Gasnikov, Scutari",
        2022,
        "Optimal gradient sliding and its application to distributed optimization under similarity",
        "2205.15136",
        "Algorithm 1, Theorem 1",
    )

    def settled(self, setting: Setting) -> Sliding:
        if None not in (self.similarity, self.mu, self.smooth):
            return self
        _needs_convex(setting)
        c = setting.constants
        similarity, mu = known(delta_server=c.delta_server, mu=c.mu)
        similarity = max(similarity, 1e-9 * float(c.L))
        return Sliding(self.similarity or similarity, self.mu or mu, self.smooth or c.L_workers[0])

    def guarantee(self, setting: Setting) -> Guarantee:
        _needs_convex(setting)
        method, c = self.settled(setting), setting.constants
        similarity, mu = number(method.similarity), number(method.mu)
        delta, convexity = known(delta_server=c.delta_server, mu=c.mu)
        tau, _, eta = method._parameters()

        def lyapunov(snapshot: Snapshot) -> Terms:
            return Terms(square(snapshot.state.x - snapshot.solution.x) + 2.0 * eta / tau * snapshot.gap)

        promise = Guarantee(
            eta,
            self.source,
            1.0 - 0.5 * min(1.0, math.sqrt(mu / similarity)),
            lyapunov,
            0.0,
            tau / (2.0 * eta),
            ("f strongly convex", "f_1 convex", "f - f_1 smooth"),
            sure=False,
            leans_on=estimates(delta_server=c.delta_server, mu=c.mu),
        )
        if similarity < delta * (1.0 - 1e-12) or mu > convexity * (1.0 + 1e-12):
            return dataclasses.replace(promise, rate=None, lyapunov=None, gap_factor=None)
        return promise

    def _parameters(self) -> tuple[float, float, float]:
        similarity, mu = number(self.similarity), number(self.mu)
        tau = min(1.0, 0.5 * math.sqrt(mu / similarity))
        return tau, 1.0 / (2.0 * similarity), min(1.0 / (2.0 * mu), 1.0 / (2.0 * math.sqrt(mu * similarity)))

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        tau, theta, eta = self._parameters()
        x_g = tau * state.x + (1.0 - tau) * state.x_f
        gradient = await self._gradient(x_g, oracles, link)
        x_f = link.at_server(lambda: self._prox(x_g, gradient, theta, oracles.server), like=x_g)
        gradient = await self._gradient(x_f, oracles, link)
        x = state.x + eta * number(self.mu) * (x_f - state.x) - eta * gradient
        return State(x, x_f)

    async def _gradient(self, x: Tensor, oracles: Oracles, link: Link) -> Tensor:
        sent = await link.uplink(None, oracles.gradients(await link.broadcast(x)))
        return sent.mean.dense()

    def _prox(self, x_g: Tensor, gradient: Tensor, theta: float, server: Oracles) -> Tensor:
        slope = gradient - server.gradients(x_g)[0]  # grad p(x_g)
        smooth = number(self.smooth) + 1.0 / theta

        def subproblem(w: Tensor) -> Tensor:
            return slope + (w - x_g) / theta + server.gradients(w[0])

        return minimise(subproblem, x_g[None], smooth, 1.0 / theta, ACCURACY * number(self.similarity))[0]

    def point(self, state: State) -> Tensor:
        return state.x_f


def _needs_convex(setting: Setting) -> None:
    least = setting.constants.mu_workers
    if not setting.convex and (least is None or float(least) < 0.0):
        raise NoTheorem("the theorem of sliding needs a convex f_1; give similarity, mu and smooth")
