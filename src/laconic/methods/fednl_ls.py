"""FedNL-LS: FedNL with a backtracking line search."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import dot
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, Setting
from laconic.methods._hessian_learning import (
    LEARNED,
    attempted,
    convexity,
    first_hessians,
    learning_rate,
    local,
    of_hessians,
    paper,
    projected_step,
)

SLACK = 1e-14  # of |f(x)|: near x* rounding of f decides, and would refuse every step where c = 1/2
MOST = 60  # trials of one iteration; a direction of descent needs about log(L / mu) / log(1 / shrink)


@dataclass
class State:
    """The model, which everyone knows, f there, and each worker's Hessian and their mean, as svec."""

    x: Shared  # (*shape)
    value: Server  # f(x), ()
    shift: Worker  # H_i, (local, d (d + 1) / 2)
    hessian: Server  # H = mean H_i, (d (d + 1) / 2,)


@dataclass(frozen=True)
class FedNLLS(Method):
    """x+ = x + t p with p = -[H]_mu^{-1} grad f(x) and t the first of 1, b, b^2, ... with f(x + t p) <= f(x) + c t
    <grad f(x), p>.

    H is learned as in `fednl_projected`. The server sends p instead of x, which everyone then knows; each trial is one
    more round: workers send f_i(x + t p), the server answers whether that is enough. f(x) is the last trial's. The
    test has a slack of 1e-14 |f(x)|, below which rounding decides.

    Guarantee (from the paper, recalled): global, linear for strongly convex f, since p is a direction of descent;
    locally that of `fednl`. Constants are not given here. From H_i^0 = 0 it converges too.

    Parameters
    ----------
    compressor : of the svec of the Hessian's change.
    learning_rate : a; None is theory's.
    start : what the first Hessians are sent by; None is at full width. Counted either way.
    mu : of the projection; None is the problem's strong convexity.
    decrease : c, the share of the promised decrease that must be there.
    shrink : b, between one trial and the next.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNLLS(TopK(k=100), decrease=0.25))
    'fednl_ls(topk(k=100), decrease=0.25)'
    """

    compressor: Compressor
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    start: Compressor | None = None
    mu: Annotated[float | None, Interval(0.0, open="low")] = None
    decrease: Annotated[float, Interval(0.0, 0.5, open="low")] = 0.5
    shrink: Annotated[float, Interval(0.0, 1.0, open="both")] = 0.5

    name = "fednl_ls"
    example = "fednl_ls(topk(k=0.05))"
    source = paper("Algorithm 3, FedNL-LS")

    def settled(self, setting: Setting) -> FedNLLS:
        rate = learning_rate(self, self.learning_rate, self.compressor, of_hessians(setting))
        return dataclasses.replace(self, learning_rate=rate, mu=convexity(self.mu, setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, paper("theorem on FedNL-LS"), "linear from any start", LEARNED)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        sent, values = await together(
            first_hessians(x, oracles, link, self.start), link.uplink(None, oracles.values(x))
        )
        return State(x, values.mean.dense(), sent.own.dense(), sent.mean.dense())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a, mu = number(self.learning_rate), number(self.mu)
        change, _ = oracles.hessian_changes(state.x, state.shift)
        gradient, learned = await together(
            link.uplink(None, oracles.gradients(state.x)), link.uplink(self.compressor, change)
        )
        g = gradient.mean.dense()
        p = attempted(link, lambda: -projected_step(state.hessian, mu, g), like=state.x)
        slope = dot(g.reshape(1, -1), p.reshape(1, -1))[0]
        x, value = await self._search(state, await link.broadcast(p), slope, oracles, link)
        learned.own.add_to(state.shift, scale=a)
        learned.mean.add_to(state.hessian, scale=a)
        return State(x, value, state.shift, state.hessian)

    async def _search(
        self, state: State, direction: Tensor, slope: Tensor, oracles: Oracles, link: Link
    ) -> tuple[Tensor, Tensor]:
        """The first point that descends enough, and f there; the last one tried where none does."""
        t, x, value = 1.0, state.x, state.value
        for _ in range(MOST):
            x = state.x + t * direction
            value = (await link.uplink(None, oracles.values(x))).mean.dense()
            most = state.value + self.decrease * t * slope + SLACK * state.value.abs()
            again = (value > most).to(value.dtype)
            # the answer; a process without workers hears none, and is shown when the search ends
            _, told = await together(link.broadcast(again), link.show(again))
            if not float(told) > 0.0:
                break
            t *= self.shrink
        return x, value

    def point(self, state: State) -> Tensor:
        return state.x
