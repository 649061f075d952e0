"""FedNL-BC: FedNL with compression in both directions, and gradients at some iterations only."""

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


@dataclass
class State:
    """What everyone knows of the model, the last point of gradients, and the Hessians as svec."""

    z: Shared  # (*shape)
    anchor: Shared  # w, (*shape)
    gradient: Server  # grad f(w), (*shape)
    shift: Worker  # H_i, (local, d (d + 1) / 2)
    hessian: Server  # H = mean H_i, (d (d + 1) / 2,)


@dataclass(frozen=True)
class FedNLBC(Method):
    """x = w - [H]_mu^{-1} grad f(w); the server sends s = C_M(x - z), and everyone's model becomes z + b s.

    At the model z, worker i sends C(hess f_i(z) - H_i) and H_i learns as in `fednl_projected`; and by a shared coin of
    probability p (and in the first iteration) it also sends grad f_i(z), and w becomes z. The paper writes
    x = z - [H]_mu^{-1} g with g = [H]_mu (z - w) + grad f(w) for the iterations without gradients, which is the same
    x. The authors' code swaps the names z and w. With p = 1 and the identity on the way down this is
    `fednl_projected`.

    Guarantee (local, from the paper, recalled): linear for x near x*, with rates that do not depend on conditioning,
    b = 1 for contractive and 1 / (1 + omega) for unbiased C_M.

    Parameters
    ----------
    compressor : C, of the svec of the Hessian's change.
    down : C_M, of the model's change.
    probability : p, of an iteration with gradients.
    learning_rate, down_rate : a of H_i and b of z; None is theory's.
    start : what the first Hessians are sent by; None is at full width. Counted either way.
    mu : of the projection; None is the problem's strong convexity.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNLBC(TopK(k=100), TopK(k=0.5), probability=0.5))
    'fednl_bc(topk(k=100), topk(k=0.5), probability=0.5)'
    """

    compressor: Compressor
    down: Compressor
    probability: Annotated[float, Interval(0.0, 1.0, open="low")] = 1.0
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    down_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    start: Compressor | None = None
    mu: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "fednl_bc"
    example = "fednl_bc(topk(k=0.05), topk(k=0.5), probability=0.5)"
    source = paper("Algorithm 5, FedNL-BC")

    def settled(self, setting: Setting) -> FedNLBC:
        rate = learning_rate(self, self.learning_rate, self.compressor, of_hessians(setting))
        down = learning_rate(self, self.down_rate, self.down, dataclasses.replace(setting, n=1))
        return dataclasses.replace(self, learning_rate=rate, down_rate=down, mu=convexity(self.mu, setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, paper("theorem on FedNL-BC"), LEARNED)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        sent = await first_hessians(x, oracles, link, self.start)
        return State(x, x, x.new_zeros(x.shape), sent.own.dense(), sent.mean.dense())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a, b, mu, z = number(self.learning_rate), number(self.down_rate), number(self.mu), state.z
        anchor, gradient = state.anchor, state.gradient
        change, _ = oracles.hessian_changes(z, state.shift)
        if link.coin(self.probability) or link.step == 1:
            sent, learned = await together(
                link.uplink(None, oracles.gradients(z)), link.uplink(self.compressor, change)
            )
            anchor, gradient = z, sent.mean.dense()
        else:
            learned = await link.uplink(self.compressor, change)
        step = attempted(link, lambda: projected_step(state.hessian, mu, gradient), like=z)
        s = await link.broadcast(anchor - step - z, self.down)
        learned.own.add_to(state.shift, scale=a)
        learned.mean.add_to(state.hessian, scale=a)
        return State(z + b * s, anchor, gradient, state.shift, state.hessian)

    def point(self, state: State) -> Tensor:
        return state.z
