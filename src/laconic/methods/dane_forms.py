"""DANE with a line search and DANE with heavy-ball momentum: forms in which the server's function alone is used."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import inner
from laconic.core.state import Server, Shared
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates
from laconic.methods._similarity import Positive, agreed, averaged_gradient
from laconic.methods.mirror_descent import ahead
from laconic.methods.references import Reference, ServerSimilarity

SLOPE = 1e-4  # the share of the linear decrease that Armijo's rule asks for
SHORTEST = 2.0**-40  # no shorter step is tried

_YUAN_LI = Source(
    "Yuan, Li",
    2019,
    "On convergence of distributed approximate Newton methods: globalization, sharper bounds and beyond",
    "1908.02246",
)


@dataclass
class Searched:
    """The server's model with f and its gradient there, and the model as the workers hold it."""

    x: Server  # (*shape)
    value: Server  # f(x), (1,)
    gradient: Server  # grad f(x), (*shape)
    held: Shared  # (*shape)


@dataclass(frozen=True)
class DANELS(Method):
    """w is the step of mirror descent from x (see `mirror_descent`), p = w - x, and x+ = x + t p with the first t of 1,
    1/2, 1/4, ... for which f(x + t p) <= f(x) + 1e-4 t <grad f(x), p>.

    The trial t = 1 goes down as a vector and brings gradients and values up at once, so an iteration without further
    trials is one round; each further trial is a round of one number per worker, and after them gradients are a round.
    The server's decisions travel too, as a number each.

    Guarantee: none per iteration. Where t = 1 passes the step is that of `mirror_descent`, with its contraction of f(x)
    - f*; else f still decreases, from anywhere.

    Parameters
    ----------
    reference : phi.
    smoothness : L_phi; None is the problem's.

    >>> str(DANELS(ServerSimilarity(similarity=0.5)))
    'dane_ls(server(similarity=0.5))'
    """

    reference: Reference = dataclasses.field(default_factory=ServerSimilarity)
    smoothness: Positive = None

    name = "dane_ls"
    example = "dane_ls"
    source = _YUAN_LI

    def settled(self, setting: Setting) -> DANELS:
        phi = self.reference.settled(setting)
        return DANELS(phi, self.smoothness or phi.smoothness(setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        promise = self.reference.promise(setting, self.smoothness or self.reference.smoothness(setting))
        assumes = (*promise.assumes, "the full step passes the line search")
        return dataclasses.replace(promise, source=self.source, assumes=assumes, rate=None, lyapunov=None)

    def suspect(self, setting: Setting) -> str:
        return self.reference.suspect(setting)

    async def init(self, oracles: Oracles, link: Link) -> Searched:
        x = oracles.start()
        held, value, gradient = await _looked(x, oracles, link)
        return Searched(x, value, gradient, held)

    async def iterate(self, state: Searched, oracles: Oracles, link: Link) -> Searched:
        x = state.x
        w = ahead(x, state.gradient, self.reference, number(self.smoothness), oracles, link)
        held, value, gradient = await _looked(w, oracles, link)
        t, slope = 1.0, inner(state.gradient, w - x)
        while not await agreed(_passes(state.value, value, slope, t), link):
            t *= 0.5
            if t < SHORTEST:
                raise FloatingPointError("no step along the direction of DANE-LS decreases f: phi is not one for it")
            sent = await link.uplink(None, oracles.values(state.held + t * (held - state.held))[:, None])
            value = sent.mean.dense()
        if t == 1.0:
            return Searched(w, value, gradient, held)
        held = state.held + t * (held - state.held)
        sent = await link.uplink(None, oracles.gradients(held))
        return Searched(x + t * (w - x), value, sent.mean.dense(), held)

    def point(self, state: Searched) -> Tensor:
        return state.x


async def _looked(x: Tensor, oracles: Oracles, link: Link) -> tuple[Tensor, Tensor, Tensor]:
    """One round: x as the workers hold it, f(x) (1,) and grad f(x)."""
    held = await link.broadcast(x)
    values, gradients = await together(
        link.uplink(None, oracles.values(held)[:, None]), link.uplink(None, oracles.gradients(held))
    )
    return held, values.mean.dense(), gradients.mean.dense()


def _passes(before: Tensor, after: Tensor, slope: float, t: float) -> Tensor:
    """Armijo's test, with the rounding of f allowed for; 1 or 0, of shape (1,)."""
    rounding = 4.0 * torch.finfo(before.dtype).eps * (before.abs() + after.abs())
    return (after <= before + SLOPE * t * slope + rounding).to(before.dtype)


@dataclass
class Moving:
    """The server's last two models."""

    x: Server  # (*shape)
    before: Server  # (*shape)


@dataclass(frozen=True)
class DANEHB(Method):
    """x+ = the step of mirror descent from x (see `mirror_descent`) + momentum (x - x of before).

    Guarantee for quadratics: none per iteration; with momentum = (1 - sqrt(mu_phi / L_phi))^2 the error's components
    oscillate with the modulus sqrt(momentum), so it shrinks by 1 - sqrt(mu_phi / L_phi) per round in the limit (derived
    here): of the order sqrt(delta / mu) rounds with phi of the server. Other functions: near the solution only.

    Parameters
    ----------
    reference : phi.
    smoothness : L_phi; None is the problem's.
    momentum : None is that of the guarantee.

    >>> str(DANEHB(momentum=0.5))
    'dane_hb(momentum=0.5)'
    """

    reference: Reference = dataclasses.field(default_factory=ServerSimilarity)
    smoothness: Positive = None
    momentum: Annotated[float | None, Interval(0.0, 1.0, open="high")] = None

    name = "dane_hb"
    example = "dane_hb"
    source = _YUAN_LI

    def settled(self, setting: Setting) -> DANEHB:
        phi, momentum = self.reference.settled(setting), self.momentum
        smoothness = self.smoothness or phi.smoothness(setting)
        if momentum is None:
            momentum = (1.0 - math.sqrt(min(1.0, phi.convexity(setting) / smoothness))) ** 2
        return DANEHB(phi, smoothness, momentum)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        self.reference.convexity(setting)
        third = c.hessian_lipschitz
        if third is None or float(third) > 0.0:
            raise NoTheorem(f"the theorem of {self.name} is about quadratics; it is run without one")
        assumes = ("f quadratic and strongly convex", "phi quadratic")
        return Guarantee(1.0, self.source, assumes=assumes, leans_on=estimates(mu=c.mu, delta_server=c.delta_server))

    def suspect(self, setting: Setting) -> str:
        return self.reference.suspect(setting)

    async def init(self, oracles: Oracles, link: Link) -> Moving:
        x = oracles.start()
        return Moving(x, x)

    async def iterate(self, state: Moving, oracles: Oracles, link: Link) -> Moving:
        x = state.x
        _, _, gradient = await averaged_gradient(x, oracles, link)
        w = ahead(x, gradient, self.reference, number(self.smoothness), oracles, link)
        return Moving(w + number(self.momentum) * (x - state.before), x)

    def point(self, state: Moving) -> Tensor:
        return state.x
