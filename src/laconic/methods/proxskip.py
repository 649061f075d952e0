"""ProxSkip for consensus (Scaffnew): local steps with control variates, communication by a shared coin."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known


@dataclass
class State:
    """Each worker's model and control variate, and the last average."""

    local: Worker  # x_i, (local, *shape)
    control: Worker  # h_i, (local, *shape); sum h_i = 0
    x: Server  # mean x_i at the last communication, (*shape)


def _worst(setting: Setting) -> tuple[float, float]:
    """L_max and the strong convexity of the least convex f_i. Raises NoTheorem where that is none."""
    worst, mu = known(L_max=setting.constants.L_max, mu_workers=setting.constants.mu_workers)
    if mu <= 0.0:
        raise NoTheorem("the theorem of proxskip needs strongly convex f_i; give explicit step and probability")
    return worst, mu


def _balanced(worst: float, mu: float) -> float:
    """The probability that makes the rate that of the local steps, 1 / sqrt(kappa)."""
    return min(1.0, math.sqrt(mu / worst))


@dataclass(frozen=True)
class ProxSkip(Method):
    """x^_i = x_i - step (grad f_i(x_i) - h_i); by a shared coin of probability p, x_i = mean x^_j, else x_i = x^_i;
    h_i <- h_i + (p / step) (x_i - x^_i).

    Guarantee for f_i mu-strongly convex and L_i-smooth: step <= 1 / L_max, p = 1 / sqrt(L_max / mu), and
    mean ||x_i - x*||^2 + (step / p)^2 mean ||h_i - grad f_i(x*)||^2 contracts in expectation by
    1 - min(step mu, p^2). Most iterations say nothing: rounds are about p times iterations.

    Parameters
    ----------
    step : None is 1 / L_max.
    probability : p; None is 1 / sqrt(L_max / mu).

    >>> str(ProxSkip(probability=1.0))
    'proxskip(probability=1.0)'
    """

    step: Stepsize = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "proxskip"
    aliases = ("scaffnew",)
    example = "proxskip"
    source = Source(
        "Mishchenko, Malinovsky, Stich, Richtarik",
        2022,
        "ProxSkip: yes! Local gradient steps provably lead to communication acceleration! Finally!",
        "2202.09357",
        "Theorem 3.6",
    )

    def settled(self, setting: Setting) -> ProxSkip:
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        p = self.probability
        if p is None:
            p = _balanced(*_worst(setting))
        return dataclasses.replace(self, step=step, probability=p)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        worst, mu = _worst(setting)
        step = explicit(self.step) or 1.0 / worst
        p = self.probability if self.probability is not None else _balanced(worst, mu)

        def lyapunov(snapshot: Snapshot) -> Terms:
            state, x = snapshot.state, snapshot.solution.x
            drift = norm2(state.control - snapshot.oracles.gradients(x))
            return Terms(0.0, norm2(state.local - x) + (step / p) ** 2 * drift)

        promise = Guarantee(
            1.0 / worst,
            self.source,
            1.0 - min(step * mu, p * p),
            lyapunov,
            assumes=("f_i strongly convex and smooth",),
            leans_on=estimates(L_max=c.L_max, mu_workers=c.mu_workers),
        )
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        local = x.expand(oracles.block.size, *x.shape).clone()
        return State(local, torch.zeros_like(local), x)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        step, p = number(self.step), number(self.probability)
        ahead = state.local - step * (oracles.gradients(state.local) - state.control)
        if not link.coin(p):
            return State(ahead, state.control, state.x)
        sent = await link.uplink(None, ahead)
        x = sent.mean.dense()
        local = (await link.broadcast(x)).expand(ahead.shape).clone()
        return State(local, state.control + (p / step) * (local - ahead), x)

    def point(self, state: State) -> Tensor:
        return state.x
