"""Gradient sliding (Accelerated ExtraGradient): few rounds when the workers' functions resemble the server's."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor

from laconic.core.entry import Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._similarity import Near, Positive, averaged_gradient, convexity_of, doubt, similarity_of

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
    convex : strong convexity of the server's problem, for the inner solver; None is 1 / theta for a convex f_1, and
        else what the constants say.

    >>> str(Sliding(similarity=0.5))
    'sliding(similarity=0.5)'
    """

    similarity: Positive = None
    mu: Positive = None
    smooth: Positive = None
    convex: Positive = None

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
        c = setting.constants
        similarity = similarity_of(self.similarity, c.delta_server, setting, "delta_server")
        mu = self.mu if self.mu is not None else known(mu=c.mu)[0]
        convex = self.convex or inner_convexity(2.0 * similarity, setting, self)
        return Sliding(similarity, mu, self.smooth or c.L_workers[0], convex)

    def suspect(self, setting: Setting) -> str:
        return doubt(self.similarity, "delta_server", setting.constants.delta_server)

    def guarantee(self, setting: Setting) -> Guarantee:
        if not convex_workers(setting):
            raise NoTheorem("the theorem of sliding needs a convex f_1; it is run without one")
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
        _, _, gradient = await averaged_gradient(x_g, oracles, link)
        near = Near(1.0 / theta, number(self.smooth), number(self.convex), _accuracy(self))
        x_f = slid(x_g, gradient, near, oracles, link)
        _, _, gradient = await averaged_gradient(x_f, oracles, link)
        x = state.x + eta * number(self.mu) * (x_f - state.x) - eta * gradient
        return State(x, x_f)

    def point(self, state: State) -> Tensor:
        return state.x_f


def slid(x: Tensor, gradient: Tensor, near: Near, oracles: Oracles, link: Link) -> Tensor:
    """argmin <gradient - grad f_1(x), w> + (near.weight / 2) ||w - x||^2 + f_1(w), by the server alone."""

    def prox() -> Tensor:
        server = oracles.server
        slope = gradient - server.gradients(x)[0]
        return near.solve(lambda w, rows: server.gradients(w[0]), slope[None], x[None], x[None], link)[0]

    return link.at_server(prox, like=x)


def convex_workers(setting: Setting) -> bool:
    """Whether all f_i are known to be convex."""
    least = setting.constants.mu_workers
    return setting.convex or (least is not None and float(least) >= 0.0)


def inner_convexity(weight: float, setting: Setting, method: Method) -> float:
    """How convex the server's problem is: its weight, where f_1 is convex. Raises ValueError where it is not at all."""
    if convex_workers(setting):
        return weight
    return convexity_of(None, weight, setting.constants.delta_server, setting, method)


def _accuracy(method: Sliding) -> float:
    """As a share of `convex`."""
    return ACCURACY * number(method.similarity) / number(method.convex)
