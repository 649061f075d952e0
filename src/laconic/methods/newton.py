"""Newton's method over workers, and with a Hessian that stays: that of the start, or that of the solution."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from torch import Tensor

from laconic.core.entry import Source
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting
from laconic.methods._hessian_learning import attempted, local, newton_step, paper


@dataclass
class State:
    """The model."""

    x: Server  # (*shape)


@dataclass
class FrozenState:
    """The model, and the Hessian of all steps as svec."""

    x: Server  # (*shape)
    hessian: Server  # (d (d + 1) / 2,)


@dataclass(frozen=True)
class Newton(Method):
    """x+ = x - (mean hess f_i(x))^{-1} mean grad f_i(x).

    Every worker sends its gradient and the upper triangle of its Hessian at full width in each round. No damping:
    far from a minimiser it may diverge; a Hessian that is not positive definite ends the run, saying so.

    Guarantee (local): ||x+ - x*|| <= L_* / (2 lambda) ||x - x*||^2, lambda the least eigenvalue of hess f(x) and L_*
    the Lipschitz constant of the Hessian.

    >>> str(Newton())
    'newton'
    """

    name = "newton"
    example = "newton"
    source = Source("Nesterov", 2004, "Introductory lectures on convex optimization", where="Theorem 1.2.5")

    def settled(self, setting: Setting) -> Newton:
        return self

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, self.source, "local: x^0 close to x*; then quadratic", sure=True)

    async def init(self, oracles: Oracles, link: Link) -> State:
        return State(oracles.start())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        x = await link.broadcast(state.x)
        gradient, hessian = await together(
            link.uplink(None, oracles.gradients(x)), link.uplink(None, oracles.hessians(x))
        )
        g, h = gradient.mean.dense(), hessian.mean.dense()
        return State(state.x - attempted(link, lambda: newton_step(h, 0.0, g), like=state.x))

    def point(self, state: State) -> Tensor:
        return state.x


@dataclass(frozen=True)
class N0(Method):
    """x+ = x - (mean hess f_i(x^0))^{-1} mean grad f_i(x): Newton's method with the Hessian of the start.

    Hessians are sent once, at full width and counted; then a round is that of gradient descent. This is
    `fednl_projected` with a compressor that sends nothing.

    Guarantee (local, derived): ||x+ - x*|| <= (L_* / lambda) (||x^0 - x*|| + ||x - x*|| / 2) ||x - x*||, lambda the
    least eigenvalue of hess f(x^0): linear from ||x^0 - x*|| <= lambda / (3 L_*) on, with at least a factor 1/2.

    >>> str(N0())
    'n0'
    """

    name = "n0"
    aliases = ("newton_zero",)
    example = "n0"
    source = paper("Newton-zero; the bound derived anew")

    def settled(self, setting: Setting) -> N0:
        return self

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, self.source, "local: ||x^0 - x*|| <= lambda / (3 L_*); then linear", sure=True)

    async def init(self, oracles: Oracles, link: Link) -> FrozenState:
        x = oracles.start()
        sent = await link.uplink(None, oracles.hessians(x))
        return FrozenState(x, sent.mean.dense())

    async def iterate(self, state: FrozenState, oracles: Oracles, link: Link) -> FrozenState:
        return await frozen_step(state, oracles, link)

    def point(self, state: FrozenState) -> Tensor:
        return state.x


@dataclass(frozen=True)
class NewtonStar(Method):
    """x+ = x - (mean hess f_i(x*))^{-1} mean grad f_i(x): Newton's method with the Hessian of the solution.

    No method in earnest: it is told x* by the problem, and is what Hessian learning strives for. The server sends x* to
    the workers, who send their Hessians there, once, at full width and counted; that x* is known costs nothing.

    Guarantee (local, derived): ||x+ - x*|| <= L_* / (2 lambda) ||x - x*||^2, lambda the least eigenvalue of hess f(x*):
    quadratic at the price of gradient descent.

    >>> str(NewtonStar())
    'newton_star'
    """

    minimiser: Tensor | None = field(default=None, init=False, compare=False, repr=False)

    name = "newton_star"
    example = "newton_star"
    source = paper("Newton-star; the bound derived anew")

    def settled(self, setting: Setting) -> NewtonStar:
        known = setting.solution() if setting.solution is not None else None
        if known is None:
            raise ValueError("newton_star is told the solution, and this problem knows none; use n0 or fednl")
        told = dataclasses.replace(self)
        object.__setattr__(told, "minimiser", known.x)
        return told

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, self.source, "local: x^0 close to x*; then quadratic", sure=True)

    async def init(self, oracles: Oracles, link: Link) -> FrozenState:
        if self.minimiser is None:
            raise ValueError("newton_star does not know the solution yet; run the method that settled(setting) gives")
        x = await link.broadcast(self.minimiser.to(oracles.dtype))
        sent = await link.uplink(None, oracles.hessians(x))
        return FrozenState(oracles.start(), sent.mean.dense())

    async def iterate(self, state: FrozenState, oracles: Oracles, link: Link) -> FrozenState:
        return await frozen_step(state, oracles, link)

    def point(self, state: FrozenState) -> Tensor:
        return state.x


async def frozen_step(state: FrozenState, oracles: Oracles, link: Link) -> FrozenState:
    """A Newton step with the Hessian of the state."""
    x = await link.broadcast(state.x)
    g = (await link.uplink(None, oracles.gradients(x))).mean.dense()
    step = attempted(link, lambda: newton_step(state.hessian, 0.0, g), like=state.x)
    return FrozenState(state.x - step, state.hessian)
