"""OLGA and EF-OLGA: gradient sliding under similarity, accelerated, with compressed differences inside its epochs."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated, Protocol

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, as_contractive, as_joint, informed
from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known
from laconic.methods._anchored import Anchor, renewed, unset
from laconic.methods._similarity import Near, Positive, averaged_gradient, convexity_of

_SOURCE = Source(
    "Bylinkin, Beznosikov",
    2024,
    "Accelerated methods with compressed communications for distributed optimization problems under data similarity",
    "2412.16414",
)
Probability = Annotated[float | None, Interval(0.0, 1.0, open="low")]
Accuracy = Annotated[float, Interval(0.0, 0.5, open="both")]


@dataclass
class State:
    """The inner model, whose anchor is the outer x, and the two outer sequences."""

    x: Server  # (*shape)
    y: Server  # the model: where the last epoch ended, (*shape)
    z: Server  # (*shape)
    anchor: Anchor
    first: Server  # grad f_1 at the anchor, (*shape)


@dataclass
class ErrorState:
    """The same with what compression has left of each worker's steps in this epoch."""

    x: Server  # (*shape)
    y: Server  # (*shape)
    z: Server  # (*shape)
    anchor: Anchor
    first: Server  # (*shape)
    error: Worker  # e_i, (local, *shape)


class Numbers(Protocol):
    """The parameters that both methods have."""

    @property
    def step(self) -> float | str | None: ...
    @property
    def probability(self) -> float | None: ...
    @property
    def mu(self) -> float | None: ...
    @property
    def smooth(self) -> float | None: ...
    @property
    def convex(self) -> float | None: ...
    @property
    def accuracy(self) -> float: ...


# ---- what both share -------------------------------------------------------------------------------------------------


def weights(method: Numbers) -> tuple[float, float]:
    """tau of z, and alpha, the step of z."""
    step, p = number(method.step), number(method.probability)
    tau = 0.25 * min(math.sqrt(number(method.mu) * step / p), 1.0)
    return tau, step / (8.0 * p * tau)


def _filled(method: Numbers, p: float, step: float, setting: Setting) -> dict[str, float]:
    """Every number that is open."""
    c, mu = setting.constants, method.mu
    if mu is None:
        (mu,) = known(mu=c.mu)
    convex = convexity_of(method.convex, 1.0 / step, c.delta_server, setting, method)
    return {"step": step, "probability": p, "mu": mu, "smooth": method.smooth or c.L_workers[0], "convex": convex}


def _promise(source: Source, root: float, p: float, setting: Setting, step: float | None) -> Guarantee:
    """step <= min(root / delta, 1 / (2 delta)), without a rate."""
    c = setting.constants
    _, delta = known(mu=c.mu, delta=c.delta)
    delta = max(delta, 1e-9 * float(c.L))
    promise = Guarantee(
        min(root, 0.5) / delta,
        source,
        assumes=("f strongly convex", "f_i similar to f", f"epochs of {1.0 / p:.4g} steps on average"),
        sure=False,
        leans_on=estimates(delta=c.delta, mu=c.mu),
    )
    return promise.at(step)


def _prox(method: Numbers, x: Tensor, slope: Tensor, server: Oracles, link: Link) -> Tensor:
    """argmin <slope, w> + ||w - x||^2 / (2 step) + f_1(w), by the server alone."""
    near = Near(1.0 / number(method.step), number(method.smooth), number(method.convex), method.accuracy)
    at = x[None]
    return near.solve(lambda w, _: server.gradients(w[0]), slope[None], at, at, link)[0]


def _first(x: Tensor, oracles: Oracles, link: Link) -> Tensor:
    """grad f_1(x), by the server alone."""
    return link.at_server(lambda: oracles.server.gradients(x)[0], like=x)


async def _moved(x: Tensor, anchor: Anchor, first: Tensor, oracles: Oracles, link: Link) -> Tensor:
    """(grad f_i - grad f_1)(x) - (grad f_i - grad f_1)(w) of every worker, who is told x and f_1's part."""
    held, of_first = await together(link.broadcast(x), link.broadcast(_first(x, oracles, link) - first))
    return oracles.gradients(held) - anchor.own - of_first


def _outer(
    method: Numbers, state: State | ErrorState, there: Tensor, ended: Tensor, oracles: Oracles, link: Link
) -> tuple[Tensor, Tensor]:
    """The next outer x and z once an epoch has led from the anchor to y = state.x, where grad f is `there`.

    `ended` is y without errors of compression.
    """
    (tau, alpha), mu, before, y = weights(method), number(method.mu), state.anchor, state.x
    moved = state.first - _first(y, oracles, link) - (before.gradient - there)
    slope = number(method.probability) * (moved + (before.point - ended) / number(method.step))
    z = (state.z / alpha + mu * y - slope) / (1.0 / alpha + mu)
    return tau * z + (1.0 - tau) * y, z


# ---- the two methods -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OLGA(Method):
    """Epochs from x = tau z + (1 - tau) y, where everyone's gradient is asked for. In them w <- argmin_u <t, u> +
    ||u - w||^2 / (2 step) + f_1(u), by the server, with t = (grad f - grad f_1)(x) + mean Q(v_i) and v_i =
    (grad f_i - grad f_1)(w) - (grad f_i - grad f_1)(x), first at w = x, where nothing needs to be said; before every
    other step the epoch ends with probability p. Its end is y+, where everyone's gradient is asked for, and with
    G = p ((grad f_1 - grad f)(x) - (grad f_1 - grad f)(y+) + (x - y+) / step), z+ = (z / alpha + mu y+ - G) /
    (1 / alpha + mu). tau = min(sqrt(mu step / p), 1) / 4, alpha = step / (8 p tau). A step sends w and
    grad f_1(w) - grad f_1(x) down, and compressed messages up. The model is the last y.

    Guarantee for f mu-strongly convex, delta-similar f_i and unbiased compressors: p = 1 / (1 + omega), step <=
    min(sqrt(p / A) / 8, 1 / 2) / delta with E||mean Q(v_i) - mean v_i||^2 <= A mean ||v_i||^2 (A = omega / n where they
    are independent). Linear convergence, about sqrt(delta / mu) times powers of omega and n; no rate is given here.
    f_1 need not be convex: at step <= 1 / (2 delta) its prox is.

    Parameters
    ----------
    compressor : Q, unbiased.
    step : theta; None is the one above.
    probability : p; None is 1 / (1 + omega).
    mu : strong convexity of f; None is the problem's.
    smooth : smoothness of f_1, for the inner solver; None is the problem's L_1.
    convex : strong convexity of f_1 + ||.||^2 / (2 step), for the inner solver; None is what is known.
    accuracy : of the inner solver, ||gradient|| <= accuracy convex ||w - start||.

    >>> from laconic.compressors.randk import RandK
    >>> str(OLGA(RandK(k=5), step="2x"))
    "olga(randk(k=5), step='2x')"
    """

    compressor: Compressor
    step: Stepsize = None
    probability: Probability = None
    mu: Positive = None
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 1e-3

    name = "olga"
    example = "olga(randk(k=0.25))"
    source = dataclasses.replace(_SOURCE, where="OLGA")

    def settled(self, setting: Setting) -> OLGA:
        method = dataclasses.replace(self, compressor=informed(self.compressor, setting))
        step = resolve(self.step, lambda: method.guarantee(setting).step)
        p = method._probability(setting)
        return dataclasses.replace(method, **_filled(self, p, step, setting))

    def _probability(self, setting: Setting) -> float:
        if self.probability is not None:
            return self.probability
        joint = as_joint(self.compressor.claim(setting.d, setting.n), setting.n)
        if joint is None:
            raise NoTheorem(
                f"{self} needs an unbiased compressor; use ef_olga for a contractive one, or give probability"
            )
        return 1.0 / (1.0 + joint.omega)

    def guarantee(self, setting: Setting) -> Guarantee:
        p, joint = self._probability(setting), as_joint(self.compressor.claim(setting.d, setting.n), setting.n)
        if joint is None:
            raise NoTheorem(f"the theorem of {self} needs an unbiased compressor; use ef_olga for a contractive one")
        root = math.sqrt(p / joint.A) / 8.0 if joint.A > 0.0 else math.inf
        return _promise(self.source, root, p, setting, explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        return State(x, x, x, unset(x, oracles), torch.zeros_like(x))

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        x, y, z, anchor, first = state.x, state.y, state.z, state.anchor, state.first
        ends = link.coin(number(self.probability))
        if ends and link.step > 1:
            y = x
            _, _, there = await averaged_gradient(y, oracles, link)
            x, z = _outer(self, state, there, y, oracles, link)
        if ends or link.step == 1:
            anchor, first = await renewed(x, oracles, link), _first(x, oracles, link)
            g = anchor.gradient
        else:
            sent = await link.uplink(self.compressor, await _moved(x, anchor, first, oracles, link))
            g = anchor.gradient + sent.mean.dense()
        slope = g - first
        return State(link.at_server(lambda: _prox(self, x, slope, oracles.server, link), like=x), y, z, anchor, first)

    def point(self, state: State) -> Tensor:
        return state.y


@dataclass(frozen=True)
class EFOLGA(Method):
    """OLGA for contractive compressors, with error feedback inside each epoch: worker i sends C(e_i + step v_i), keeps
    what is left as e_i, and the messages over the step take the place of Q(v_i). Each epoch begins with e_i = 0; at its
    end the e_i come up as they are, and y+ - mean e_i takes the place of y+ in (x - y+) / step.

    Guarantee for f mu-strongly convex, delta-similar f_i and contractive compressors: p = alpha and step <=
    p^{3/2} / (24 delta), which is very careful; no rate is given here.

    Parameters
    ----------
    compressor : C, contractive.
    step : theta; None is the one above.
    probability : p; None is the compressor's alpha.
    mu, smooth, convex, accuracy : as for `olga`.

    >>> from laconic.compressors.topk import TopK
    >>> str(EFOLGA(TopK(k=5), step="10x"))
    "ef_olga(topk(k=5), step='10x')"
    """

    compressor: Compressor
    step: Stepsize = None
    probability: Probability = None
    mu: Positive = None
    smooth: Positive = None
    convex: Positive = None
    accuracy: Accuracy = 1e-3

    name = "ef_olga"
    example = "ef_olga(topk(k=0.25))"
    source = dataclasses.replace(_SOURCE, where="EF-OLGA")

    def settled(self, setting: Setting) -> EFOLGA:
        method = dataclasses.replace(self, compressor=informed(self.compressor, setting))
        step = resolve(self.step, lambda: method.guarantee(setting).step)
        return dataclasses.replace(method, **_filled(self, method._probability(setting), step, setting))

    def _probability(self, setting: Setting) -> float:
        if self.probability is not None:
            return self.probability
        alpha = as_contractive(self.compressor.claim(setting.d, setting.n))
        if alpha is None:
            raise NoTheorem(f"{self} needs a contractive compressor; use olga for an unbiased one, or give probability")
        return alpha

    def guarantee(self, setting: Setting) -> Guarantee:
        alpha = as_contractive(self.compressor.claim(setting.d, setting.n))
        if alpha is None:
            raise NoTheorem(f"the theorem of {self} needs a contractive compressor; use olga for an unbiased one")
        p = self._probability(setting)
        return _promise(self.source, min(p, alpha) ** 1.5 / 24.0, p, setting, explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> ErrorState:
        x = oracles.start()
        anchor = unset(x, oracles)
        return ErrorState(x, x, x, anchor, torch.zeros_like(x), torch.zeros_like(anchor.own))

    async def iterate(self, state: ErrorState, oracles: Oracles, link: Link) -> ErrorState:
        x, y, z, anchor, first, error = state.x, state.y, state.z, state.anchor, state.first, state.error
        step = number(self.step)
        ends = link.coin(number(self.probability))
        if ends and link.step > 1:
            y = x
            own = oracles.gradients(await link.broadcast(y))
            there, left = await together(link.uplink(None, own), link.uplink(None, error))
            x, z = _outer(self, state, there.mean.dense(), y - left.mean.dense(), oracles, link)
        if ends or link.step == 1:
            anchor, first, error = await renewed(x, oracles, link), _first(x, oracles, link), torch.zeros_like(error)
            g = anchor.gradient
        else:
            whole = error + step * await _moved(x, anchor, first, oracles, link)
            sent = await link.uplink(self.compressor, whole)
            error = whole - sent.own.dense()
            g = anchor.gradient + sent.mean.dense() / step
        slope = g - first
        x = link.at_server(lambda: _prox(self, x, slope, oracles.server, link), like=x)
        return ErrorState(x, y, z, anchor, first, error)

    def point(self, state: ErrorState) -> Tensor:
        return state.y
