"""SPAG: accelerated mirror descent with a gain that is searched for, one round for each trial."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting, estimates
from laconic.methods._similarity import Positive, agreed, averaged_gradient
from laconic.methods.references import Reference, ServerSimilarity

LARGEST = 2.0**60  # no larger gain is tried
BELOW = 1.0 - 1e-3  # of L_phi, what mu_phi is taken for at most: the weights need it below


@dataclass
class State:
    """Two sequences, and the weights that all parties know."""

    x: Server  # where f is small, (*shape)
    v: Server  # (*shape)
    ratio: float  # A / B
    gain: float  # G


@dataclass(frozen=True)
class Weights:
    """What one trial with a gain mixes with, B of before being 1."""

    total: float  # A'
    rest: float  # B'
    alpha: float
    beta: float
    eta: float


@dataclass(frozen=True)
class SPAG(Method):
    """y = ((1 - a) x + a (1 - b) v) / (1 - a b) goes down, gradients come up; v+ = argmin h <grad f(y), w> + (1 - b)
    D_phi(w, v) + b D_phi(w, y), x+ = (1 - a) x + a v+, accepted where D_phi(x+, y) <= a^2 G ((1 - b) D_phi(v+, v) + b
    D_phi(v+, y)); else the gain G is doubled and the round done again. a, b and h follow from A, B, G, smoothness and
    convexity; G starts at half of what passed before, at least 1. The verdict goes down as a number.

    Guarantee: A (f(x) - f*) + B D_phi(x*, v) never grows, and A and B grow by 1 / (1 - sqrt(mu_phi / (G L_phi))) per
    iteration in the limit: with phi of the server of the order sqrt(delta / mu) rounds where G = 1, as for quadratics
    always, and for others once the steps are small. Form and constants are recalled.

    Parameters
    ----------
    reference : phi.
    smoothness : L_phi; None is the problem's.
    convexity : mu_phi; None is the problem's.

    >>> str(SPAG(ServerSimilarity(similarity=0.5)))
    'spag(server(similarity=0.5))'
    """

    reference: Reference = dataclasses.field(default_factory=ServerSimilarity)
    smoothness: Positive = None
    convexity: Annotated[float | None, Interval(0.0)] = None

    name = "spag"
    example = "spag"
    source = Source(
        "Hendrikx, Xiao, Bubeck, Bach, Massoulie",
        2020,
        "Statistically preconditioned accelerated gradient method for distributed optimization",
        "2002.10726",
        "Algorithm 1, recalled",
    )

    def settled(self, setting: Setting) -> SPAG:
        phi = self.reference.settled(setting)
        smoothness = self.smoothness or phi.smoothness(setting)
        convexity = phi.convexity(setting) if self.convexity is None else self.convexity
        return SPAG(phi, smoothness, min(convexity, BELOW * smoothness))

    def guarantee(self, setting: Setting) -> Guarantee:
        c, phi = setting.constants, self.reference
        smoothness = self.smoothness or phi.smoothness(setting)
        assumes = ("f smooth and convex relative to phi", "rate in the limit only")
        if self.convexity is None:
            phi.convexity(setting)
        leans = estimates(mu=c.mu, delta_server=c.delta_server)
        return Guarantee(1.0 / smoothness, self.source, assumes=assumes, sure=False, leans_on=leans)

    def suspect(self, setting: Setting) -> str:
        return self.reference.suspect(setting)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x, 0.0, 1.0)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        gain = 0.5 * max(1.0, 0.5 * state.gain)
        while True:
            gain *= 2.0
            if gain > LARGEST:
                raise FloatingPointError("no gain of SPAG passes: f is not smooth relative to phi")
            its = self.weights(state.ratio, gain)
            a, b = its.alpha, its.beta
            y = ((1.0 - a) * state.x + a * (1.0 - b) * state.v) / (1.0 - a * b)
            _, _, gradient = await averaged_gradient(y, oracles, link)
            tried = link.at_server(
                lambda its=its, y=y, gradient=gradient, gain=gain: self._try(
                    state, its, gain, y, gradient, oracles, link
                ),
                like=y.new_empty(y.numel() + 1),
            )
            if await agreed(tried[-1:], link):
                v = tried[:-1].view(y.shape)
                return State((1.0 - a) * state.x + a * v, v, its.total / its.rest, gain)

    def weights(self, ratio: float, gain: float) -> Weights:
        """Of the positive root of a^2 L_phi G = (A + a) (B + a mu_phi), with A / B = ratio and B = 1."""
        mu = number(self.convexity)
        top, middle = number(self.smoothness) * gain - mu, ratio * mu + 1.0
        root = (middle + math.sqrt(middle * middle + 4.0 * top * ratio)) / (2.0 * top)
        total, rest = ratio + root, 1.0 + root * mu
        return Weights(total, rest, root / total, root * mu / rest, root / rest)

    def _try(
        self, state: State, its: Weights, gain: float, y: Tensor, gradient: Tensor, oracles: Oracles, link: Link
    ) -> Tensor:
        """v+ and then, as 1 or 0, whether it passes."""
        phi, a, b = self.reference, its.alpha, its.beta
        of_v, of_y = phi.image(state.v, oracles), phi.image(y, oracles)
        v = phi.back((1.0 - b) * of_v + b * of_y - its.eta * gradient, state.v, oracles, link)
        x = (1.0 - a) * state.x + a * v
        (moved, error), (left, _), (right, _) = (
            phi.divergence(x, y, of_y, oracles),
            phi.divergence(v, state.v, of_v, oracles),
            phi.divergence(v, y, of_y, oracles),
        )
        passes = moved <= a * a * gain * ((1.0 - b) * left + b * right) * (1.0 + 1e-12) + error
        return torch.cat([v.reshape(-1), v.new_tensor([float(passes)])])

    def point(self, state: State) -> Tensor:
        return state.x
