"""SVRP: stochastic variance-reduced proximal point. One worker acts per iteration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Interval, Source, Stepsize
from laconic.core.link import Cohort, Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.rows import square
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, Snapshot, Terms, estimates, known
from laconic.methods._inner import minimise

ACCURACY = 1e-3  # of the client's prox: ||gradient|| <= ACCURACY * ||x_k+1 - x_k|| / step, which vanishes at x*


@dataclass
class State:
    """The model, the reference gradient, and what each worker keeps of the reference point."""

    x: Server  # (*shape)
    reference: Server  # grad f(w), (*shape)
    own: Worker  # grad f_i(w), (local, *shape)


@dataclass(frozen=True)
class SVRP(Method):
    """A random worker m takes x, z = x - step (grad f(w) - grad f_m(w)), and returns x+ = prox_{step f_m}(z); with
    probability p, w becomes x+ and all workers send their gradients there.

    Guarantee for mu-strongly convex f_m with mean-square similarity delta: step = mu / (2 delta^2), p = 1 / n, and
    E||x - x*||^2 shrinks by 1 - min(step mu / (1 + 2 step mu), p / 2) per iteration (constants recalled; the theory is
    pessimistic, ten times the step often works). The prox is solved by accelerated gradient descent to a relative
    accuracy of 1e-3; the gradient calls are counted.

    Parameters
    ----------
    step : None is mu / (2 delta^2).
    probability : p; None is 1 / n.
    smooth : smoothness of the f_m, for the inner solver; None is L_max.

    >>> str(SVRP(step="10x"))
    "svrp(step='10x')"
    """

    step: Stepsize = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    smooth: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "svrp"
    example = "svrp"
    source = Source(
        "Khaled, Jin", 2022, "Faster federated optimization under second-order similarity", "2209.02257", "Theorem 2"
    )

    def settled(self, setting: Setting) -> SVRP:
        step = resolve(self.step, lambda: self.guarantee(setting).step)
        smooth = self.smooth if self.smooth is not None else float(setting.constants.L_max)
        return SVRP(step, self.probability or 1.0 / setting.n, smooth)

    def guarantee(self, setting: Setting) -> Guarantee:
        c = setting.constants
        mu, delta = known(mu_workers=c.mu_workers, delta_mean=c.delta_mean)
        if mu <= 0.0:
            raise NoTheorem("the theorem of svrp needs strongly convex f_i; give an explicit step")
        largest = mu / (2.0 * max(delta, 1e-9 * float(c.L)) ** 2)
        step = explicit(self.step) or largest
        p = self.probability or 1.0 / setting.n
        rate = 1.0 - min(step * mu / (1.0 + 2.0 * step * mu), p / 2.0)
        promise = Guarantee(
            largest,
            self.source,
            rate,
            _distance,
            0.0,
            0.5 * float(c.L),
            ("f_i strongly convex", "similarity"),
            sure=False,
            leans_on=estimates(delta_mean=c.delta_mean, mu_workers=c.mu_workers),
        )
        return promise.at(step)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        own = oracles.gradients(x)
        sent = await link.uplink(None, own)
        return State(x, sent.mean.dense(), own)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        who = link.sample(1)
        x = await link.broadcast(state.x, to=who)
        reference = await link.broadcast(state.reference, to=who)
        sent = await link.uplink(None, self._prox(x, reference, state.own, who, oracles), who)
        x = torch.zeros_like(state.x)
        sent.mean.add_to(x, scale=link.n)
        if not link.coin(number(self.probability)):
            return dataclasses.replace(state, x=x)
        own = oracles.gradients(await link.broadcast(x))
        sent = await link.uplink(None, own)
        return State(x, sent.mean.dense(), own)

    def _prox(self, x: Tensor, reference: Tensor, own: Tensor, who: Cohort, oracles: Oracles) -> Tensor:
        step = number(self.step)
        z = x - step * (reference - own[torch.from_numpy(who.rows)])

        def subproblem(w: Tensor) -> Tensor:
            return oracles.gradients(w, who.rows) + (w - z) / step

        smooth = number(self.smooth) + 1.0 / step
        return minimise(subproblem, x.expand(z.shape), smooth, 1.0 / step, ACCURACY / step)

    def point(self, state: State) -> Tensor:
        return state.x


def _distance(snapshot: Snapshot) -> Terms:
    return Terms(square(snapshot.x - snapshot.solution.x))
