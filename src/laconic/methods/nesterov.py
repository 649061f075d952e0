"""Nesterov's accelerated gradient method, over a mechanism."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Tensor

from laconic.core.compressor import as_unbiased
from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.estimator import Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import square
from laconic.core.state import Server
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.mechanisms.direct import Direct


@dataclass
class State:
    """The server's two last models and the point ahead of them."""

    x: Server  # (*shape)
    y: Server  # x + momentum (x - x_before), (*shape)
    estimate: Server  # g at y, (*shape)
    memory: Any


@dataclass(frozen=True)
class Nesterov(Method):
    """x+ = y - step g(y), y+ = x+ + b (x+ - x), with b = (1 - sqrt(q)) / (1 + sqrt(q)), q = step mu.

    Guarantee without compression, f mu-strongly convex: step <= 1 / L, and
    f(x_k) - f* <= (1 - sqrt(mu / L))^k (f(x_0) - f* + (mu / 2) ||x_0 - x*||^2). The Lyapunov function is
    f(x) - f* + (mu / 2) ||z - x*||^2 with z = y + (y - x) / sqrt(q). With a mechanism there is no theorem.

    Parameters
    ----------
    mechanism : how n gradients become one.
    step : None is 1 / L.
    momentum : b; None is the theorem's.

    >>> str(Nesterov())
    'nesterov'
    """

    mechanism: Mechanism = field(default_factory=Direct)
    step: Stepsize = None
    momentum: Annotated[float | None, Interval(0.0, 1.0, open="high")] = None

    name = "nesterov"
    aliases = ("agd",)
    example = "nesterov"
    source = Source(
        "Nesterov", 2004, "Introductory lectures on convex optimization", where="Scheme 2.2.9, Theorem 2.2.3"
    )

    def settled(self, setting: Setting) -> Nesterov:
        mechanism = self.mechanism.settled(setting)
        method = dataclasses.replace(self, mechanism=mechanism)
        step = resolve(self.step, lambda: method.guarantee(setting).step)
        momentum = self.momentum
        if momentum is None:
            (mu,) = known(mu=setting.constants.mu)
            root = math.sqrt(step * mu)
            momentum = (1.0 - root) / (1.0 + root)
        return dataclasses.replace(method, step=step, momentum=momentum)

    def guarantee(self, setting: Setting) -> Guarantee:
        direct = self.mechanism.compressor if isinstance(self.mechanism, Direct) else None
        if direct is None or as_unbiased(direct.claim(setting.d, setting.n)) != 0.0:
            raise NoTheorem(
                f"no theorem covers {self}: acceleration needs exact gradients; give explicit step and momentum"
            )
        c = setting.constants
        smooth, mu = known(L=c.L, mu=c.mu)
        step = explicit(self.step) or 1.0 / smooth
        root = math.sqrt(step * mu)
        momentum = (1.0 - root) / (1.0 + root)
        if self.momentum is not None and abs(self.momentum - momentum) > 1e-12:
            raise NoTheorem(f"the theorem of {self} needs momentum={momentum:.6g}; give explicit step and momentum")

        def lyapunov(snapshot: Snapshot) -> Terms:
            state = snapshot.state
            z = state.y + (state.y - state.x) / root
            return Terms(snapshot.gap + 0.5 * mu * square(z - snapshot.solution.x))

        promise = Guarantee(
            1.0 / smooth,
            self.source,
            1.0 - root,
            lyapunov,
            0.0,
            1.0,
            ("f strongly convex and smooth",),
            leans_on=estimates(L=c.L, mu=c.mu),
        )
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        g, memory = await self.mechanism.init(oracles.gradients(x), link.scope("mechanism"), _probe(x, oracles))
        return State(x, x, g, memory)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        x = state.y - number(self.step) * state.estimate
        y = x + number(self.momentum) * (x - state.x)
        held = y if self.mechanism.public else await link.broadcast(y)
        g, memory = await self.mechanism.exchange(
            oracles.gradients(held), state.memory, link.scope("mechanism"), _probe(held, oracles)
        )
        return State(x, y, g, memory)

    def point(self, state: State) -> Tensor:
        return state.x


def _probe(x: Tensor, oracles: Oracles) -> Probe:
    return Probe(x, oracles.gradients, oracles.gradients)
