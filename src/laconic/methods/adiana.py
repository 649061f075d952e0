"""ADIANA: acceleration with unbiased compression of differences to learned shifts."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import Compressor, informed
from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.mechanisms.diana import Noise, noise_of

SECOND = 0.5  # theta_2, the weight of the anchor w


@dataclass
class State:
    """What ADIANA keeps."""

    y: Server  # the model, (*shape)
    z: Server  # (*shape)
    anchor: Shared  # w, an old y that everyone holds, (*shape)
    at_anchor: Worker  # grad f_i(w), (local, *shape)
    shift: Worker  # h_i, (local, *shape)
    mean: Server  # h = mean h_i, (*shape)


@dataclass(frozen=True)
class ADIANA(Method):
    """x = t1 z + w / 2 + (1/2 - t1) y goes down; worker i sends Q(grad f_i(x) - h_i) and Q'(grad f_i(w) - h_i) at once;

    g = h + mean of the first, h_i <- h_i + a times the second; y+ = x - step g, z+ = b z + (1 - b) x + (c / step)
    (y+ - x), and w+ = y with probability p (one coin for all), in which case y goes down as well. Start: y = z = w =
    x^0, h = 0.
    t1 = min(1/4, sqrt(step mu / p)), c = step / (2 (t1 + step mu)), b = 1 - c mu.

    Guarantee for independent unbiased compressors, f mu-strongly convex, f_i convex: a = 1 / (1 + omega), p = min(1,
    max(1, sqrt(n / (32 omega)) - 1) / (2 (1 + omega))), step <= min(1 / (2 L), n / (64 omega L_max (2 p (1 + omega) +
    1)^2)); iterations of the order omega + sqrt(kappa) + sqrt((omega / n + sqrt(omega / n)) omega kappa). All constants
    are recalled of the paper, where one L bounds all f_i; they were only tried. With a compressor that knows smoothness
    matrices (ADIANA+) the expected smoothness stands for omega L_max, and omega in their norm for the others.

    A worker computes grad f_i(x) in every iteration, and grad f_i(w) where w is new.

    Parameters
    ----------
    compressor : unbiased, independent over workers.
    step : eta; None is the theorem's.
    rate : a of the shifts; None is 1 / (1 + omega).
    probability : p of a new anchor; None is the theorem's.
    mu : strong convexity, of which t1, b and c are made; None is the problem's.

    >>> from laconic.compressors.natural import Natural
    >>> str(ADIANA(Natural()))
    'adiana(natural)'
    """

    compressor: Compressor
    step: Stepsize = None
    rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    mu: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "adiana"
    example = "adiana(natural)"
    source = Source(
        "Li, Kovalev, Qian, Richtarik",
        2020,
        "Acceleration for compressed gradient descent in distributed and federated optimization",
        "2002.11364",
        "Algorithm 2, constants recalled",
    )

    def settled(self, setting: Setting) -> ADIANA:
        method = dataclasses.replace(self, compressor=informed(self.compressor, setting))
        rate, p, mu = method.rate, method.probability, method.mu
        if rate is None:
            rate = 1.0 / (1.0 + method._noise(setting).own)
        if p is None:
            p = _balanced(method._noise(setting), setting.n)
        if mu is None:
            (mu,) = known(mu=setting.constants.mu)
        method = dataclasses.replace(method, rate=rate, probability=p, mu=mu)
        return dataclasses.replace(method, step=resolve(self.step, lambda: method.guarantee(setting).step))

    def _noise(self, setting: Setting) -> Noise:
        return noise_of(self, self.compressor, setting)

    def guarantee(self, setting: Setting) -> Guarantee:
        noise, c = self._noise(setting), setting.constants
        if not setting.convex:
            raise NoTheorem(f"the theorem of {self} needs convex f_i; give explicit step and mu")
        smooth, mu = known(L=c.L, mu=c.mu)
        a = 1.0 / (1.0 + noise.own)
        if self.rate is not None and self.rate > a + 1e-12:
            raise NoTheorem(
                f"the theorem of {self} needs rate <= 1 / (1 + omega) = {a:.6g}; give an explicit step with another"
            )
        if self.mu is not None and self.mu > mu * (1.0 + 1e-12):
            raise NoTheorem(f"the theorem of {self} needs mu <= {mu:.6g}, that of f; give an explicit step")
        p = _balanced(noise, setting.n) if self.probability is None else self.probability
        largest = 0.5 / smooth
        if noise.level > 0.0:
            largest = min(largest, setting.n / (64.0 * noise.level * (2.0 * p * (1.0 + noise.own) + 1.0) ** 2))
        promise = Guarantee(
            largest,
            self.source,
            assumes=("f strongly convex", "f_i convex and smooth", "constants recalled, not read in the paper"),
            sure=False,
            leans_on=estimates(L=c.L, L_max=c.L_max, mu=c.mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        at_start = oracles.gradients(x)
        return State(x, x, x, at_start, at_start.new_zeros(at_start.shape), x.new_zeros(x.shape))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, p, mu, a = number(self.step), number(self.probability), number(self.mu), number(self.rate)
        first, pull, keep = weights(step, mu, p)
        x = first * state.z + SECOND * state.anchor + (1.0 - SECOND - first) * state.y
        renewed = link.coin(p)
        if renewed:
            held, anchor = await together(link.broadcast(x), link.broadcast(state.y))
        else:
            held, anchor = await link.broadcast(x), state.anchor
        here, there = await together(
            link.uplink(self.compressor, oracles.gradients(held), minus=state.shift),
            link.uplink(self.compressor, state.at_anchor, minus=state.shift),
        )
        y = x - step * (state.mean + here.mean.dense())
        z = keep * state.z + (1.0 - keep) * x + (pull / step) * (y - x)
        there.own.add_to(state.shift, scale=a)
        there.mean.add_to(state.mean, scale=a)
        at_anchor = oracles.gradients(anchor) if renewed else state.at_anchor
        return State(y, z, anchor, at_anchor, state.shift, state.mean)

    def point(self, state: State) -> Tensor:
        return state.y


def weights(step: float, mu: float, p: float) -> tuple[float, float, float]:
    """theta_1 of z, gamma of the pull that z feels, and beta of what it keeps."""
    first = min(0.25, math.sqrt(step * mu / p))
    pull = step / (2.0 * (first + step * mu))
    return first, pull, 1.0 - pull * mu


def _balanced(noise: Noise, n: int) -> float:
    """p; 1 without noise."""
    if noise.own == 0.0:
        return 1.0
    return min(1.0, max(1.0, math.sqrt(n / (32.0 * noise.own)) - 1.0) / (2.0 * (1.0 + noise.own)))
