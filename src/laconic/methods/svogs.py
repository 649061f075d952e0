"""SVOGS: stochastic variance-reduced optimistic gradient sliding, with a few random workers per iteration."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Count, Interval, Source, Stepsize
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, explicit, number, resolve
from laconic.core.problem import Oracles
from laconic.core.state import Server
from laconic.core.theory import Guarantee, Setting, estimates, known
from laconic.methods._inner_operator import zero
from laconic.methods._variational import Anchor, alike, anchored, strongly_monotone

ACCURACY = 1e-3  # of the server's prox: ||residual|| <= ACCURACY ||z - u|| / step, which vanishes at z*


@dataclass
class State:
    """The server's point and the one before, the anchor and the one before."""

    z: Server  # (*shape)
    before: Server  # (*shape)
    anchor: Anchor  # w
    earlier: Anchor  # w_before


@dataclass(frozen=True)
class SVOGS(Method):
    """With G = F - F_1: b random workers take z and z_before, and
    g = G(w_before) + their mean of G_j(z) - G_j(w_before) + a (G_j(z) - G_j(z_before)); the server alone solves
    F_1(u) + (u - v) / step = 0, v = (1 - pull) z + pull w - step g; z+ = u; with probability p, w+ = z+ and all workers
    send their operators there whole. Workers send F_j for G_j: the server takes its own F_1 off.

    The theorem's parameters, for F mu-strongly monotone and m = min(sqrt(n), delta / mu): b = ceil(m), p = pull =
    1 / (m + 8), step = 1 / (32 delta), a = max(1 - step mu / (6 (1 - pull)), 1 - p step mu / (2 pull + step mu)), for
    delta / mu rounds and n + sqrt(n) delta / mu messages up to logarithms. The paper draws workers with replacement;
    here they are different ones, whose mean varies less. delta is the larger of that of F - F_1 and the mean-square
    one, which the paper bounds by one number. The step is the theorem's, twenty times it often works. No rate is
    claimed here. The server's prox is solved to a relative accuracy of 1e-3.

    Parameters
    ----------
    step : eta; None is 1 / (32 delta).
    cohort : b; None is the theorem's.
    probability : p; None is the theorem's.
    pull : gamma, towards w; None is p.
    optimism : a; None is the theorem's.
    smooth : Lipschitz constant of F_1, for the inner solver; None is the problem's L_1.

    >>> str(SVOGS(step="20x"))
    "svogs(step='20x')"
    """

    step: Stepsize = None
    cohort: Annotated[int | None, Count(1)] = None
    probability: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    pull: Annotated[float | None, Interval(0.0, 1.0, open="high")] = None
    optimism: Annotated[float | None, Interval(0.0, 1.0)] = None
    smooth: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "svogs"
    example = "svogs"
    source = Source(
        "Zhou, Ye, Luo",
        2024,
        "Near-optimal distributed minimax optimization under the second-order similarity",
        where="NeurIPS 2024, Algorithm 1",
    )

    def settled(self, setting: Setting) -> SVOGS:
        if self.cohort is not None and self.cohort > setting.n:
            raise ValueError(f"SVOGS(cohort={self.cohort}) : there are {setting.n} workers; take a smaller cohort")
        step = resolve(self.step, lambda: self._largest(setting)[0])
        method = dataclasses.replace(self, step=step)
        if None not in (self.cohort, self.probability, self.optimism, self.smooth):
            return dataclasses.replace(method, pull=self.probability if self.pull is None else self.pull)
        _, delta, mu = self._largest(setting)
        least = min(math.sqrt(setting.n), delta / mu)
        p = 1.0 / (least + 8.0) if self.probability is None else self.probability
        pull = p if self.pull is None else self.pull
        slow = 1.0 - step * mu / (6.0 * (1.0 - pull)), 1.0 - p * step * mu / (2.0 * pull + step * mu)
        return SVOGS(
            step,
            min(setting.n, max(1, math.ceil(least))) if self.cohort is None else self.cohort,
            p,
            pull,
            max(0.0, *slow) if self.optimism is None else self.optimism,
            setting.operator.L_workers[0] if self.smooth is None else self.smooth,
        )

    def _largest(self, setting: Setting) -> tuple[float, float, float]:
        """The theorem's step, delta and mu."""
        c, _, mu = strongly_monotone(setting)
        delta = alike(max(known(delta_server=c.delta_server, delta_mean=c.delta_mean)), c)
        return 1.0 / (32.0 * delta), delta, mu

    def guarantee(self, setting: Setting) -> Guarantee:
        largest, _, _ = self._largest(setting)
        c = setting.operator
        promise = Guarantee(
            largest,
            self.source,
            assumes=("F strongly monotone", "F_i - F Lipschitz", "workers alike in mean square"),
            sure=False,
            leans_on=estimates(delta_server=c.delta_server, delta_mean=c.delta_mean, mu=c.mu),
        )
        return promise.at(explicit(self.step))

    async def init(self, oracles: Oracles, link: Link) -> State:
        anchor = await anchored(oracles.start(), oracles, link)
        return State(anchor.point, anchor.point, anchor, anchor)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        z, anchor, step, pull = state.z, state.anchor, number(self.step), number(self.pull)
        mean = await self._ahead(state, oracles, link)
        v = (1.0 - pull) * z + pull * anchor.point - step * (state.earlier.mean + mean)
        u = link.at_server(lambda: self._solve(v, state, oracles.server, link), like=z)
        if link.coin(number(self.probability)):
            anchor = await anchored(u, oracles, link)
        return State(u, z, anchor, state.anchor)

    async def _ahead(self, state: State, oracles: Oracles, link: Link) -> Tensor:
        """The cohort's mean of F_j(z) - F_j(w_before) + a (F_j(z) - F_j(z_before))."""
        assert self.cohort is not None and self.optimism is not None
        who = link.sample(self.cohort)
        z, before = await together(link.broadcast(state.z, to=who), link.broadcast(state.before, to=who))
        here, past = oracles.gradients(z, who.rows), oracles.gradients(before, who.rows)
        ahead = here - state.earlier.own[torch.from_numpy(who.rows)] + self.optimism * (here - past)
        sent = await link.uplink(None, ahead, who)
        mean = state.z.new_zeros(state.z.shape)
        sent.mean.add_to(mean, scale=link.n / self.cohort)
        return mean

    def _solve(self, v: Tensor, state: State, server: Oracles, link: Link) -> Tensor:
        """u, with v less what F_1 has in the differences: F_1(w_before) cancels."""
        assert self.optimism is not None
        step, here = number(self.step), server.gradients(state.z)[0]
        v = v + step * (here + self.optimism * (here - server.gradients(state.before)[0]))

        def subproblem(u: Tensor) -> Tensor:
            return server.gradients(u)[0] + (u - v) / step

        return zero(subproblem, state.z, number(self.smooth) + 1.0 / step, 1.0 / step, ACCURACY / step, link.remark)

    def point(self, state: State) -> Tensor:
        return state.z
