"""BL1, Basis Learn: FedNL with Hessians in any basis, and compression in both directions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Interval
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.state import Server, Shared, Worker
from laconic.core.theory import Guarantee, Setting
from laconic.methods._basis_learn import basis_learn, near
from laconic.methods._hessian_learning import attempted, convexity, learning_rate, projected_step
from laconic.methods.bases import Basis, StandardBasis


@dataclass
class State:
    """What everyone knows of the model, the last point of gradients, coefficients, and the mean Hessian as svec."""

    z: Shared  # (*shape)
    anchor: Shared  # w, (*shape)
    gradient: Server  # grad f(w), (*shape)
    learned: Worker  # L_i, (local, K)
    hessian: Server  # H = mean H_i, (d (d + 1) / 2,)
    span: Any  # what the basis has told both ends


@dataclass(frozen=True)
class BL1(Method):
    """As `fednl_bc`, with the coefficients of Hessians in a basis: L_i <- L_i + a C(h_i(hess f_i(z)) - L_i).

    x = w - [H]_mu^{-1} grad f(w), H the mean of the matrices with the coefficients L_i; the server sends
    s = C_M(x - z), and everyone's model becomes z + b s. By a shared coin of probability p (and in the first iteration)
    workers send grad f_i(z), and w becomes z; the paper's g = [H]_mu (z - w) + grad f(w) for the others gives the same
    x. In the standard basis this is `fednl_bc`, and with p = 1 and the identity on the way down `fednl_projected`. In
    `data_basis` gradients and Hessians take r and r (r + 1) / 2 numbers; the server adds the ridge.

    Guarantee (local, from the paper, recalled): linear and in the end superlinear for x near x*, with rates that do not
    depend on conditioning. It is known for orthonormal bases, as all but `psd_basis` are.

    Parameters
    ----------
    compressor : C, of the coefficients' change.
    down : C_M, of the model's change.
    basis : standard_basis, data_basis or psd_basis.
    probability : p, of an iteration with gradients.
    learning_rate, down_rate : a of L_i and b of z; None is theory's.
    start : what the first coefficients are sent by; None is at full width. Counted either way.
    mu : of the projection; None is the problem's strong convexity.

    >>> from laconic.compressors.identity import Identity
    >>> from laconic.compressors.topk import TopK
    >>> from laconic.methods.bases import DataBasis
    >>> str(BL1(TopK(k=6), Identity(), DataBasis()))
    'bl1(topk(k=6), identity, data_basis)'
    """

    compressor: Compressor
    down: Compressor
    basis: Basis = StandardBasis()
    probability: Annotated[float, Interval(0.0, 1.0, open="low")] = 1.0
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    down_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    start: Compressor | None = None
    mu: Annotated[float | None, Interval(0.0, open="low")] = None

    name = "bl1"
    example = "bl1(topk(k=0.05), topk(k=0.5), probability=0.5)"
    source = basis_learn("Algorithm 1, BL1")

    def settled(self, setting: Setting) -> BL1:
        coefficients = dataclasses.replace(setting, shape=(self.basis.size(setting),))
        rate = learning_rate(self, self.learning_rate, self.compressor, coefficients)
        down = learning_rate(self, self.down_rate, self.down, dataclasses.replace(setting, n=1))
        return dataclasses.replace(self, learning_rate=rate, down_rate=down, mu=convexity(self.mu, setting))

    def guarantee(self, setting: Setting) -> Guarantee:
        return near(setting, "theorem on BL1")

    async def init(self, oracles: Oracles, link: Link) -> State:
        x, basis = oracles.start(), self.basis
        span = await basis.agree(oracles, link)
        nothing = x.new_zeros((link.local, basis.width(oracles.d, span)))
        sent = await link.uplink(self.start, basis.changes(oracles, x, nothing, span, np.arange(link.local)))
        hessian = basis.zero(x, span)
        basis.add_mean(hessian, sent, 1.0, span)
        return State(x, x, x.new_zeros(x.shape), sent.own.dense(), hessian, span)

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a, b, mu, z = number(self.learning_rate), number(self.down_rate), number(self.mu), state.z
        anchor, gradient, basis, span = state.anchor, state.gradient, self.basis, state.span
        everyone = np.arange(link.local)
        change = basis.changes(oracles, z, state.learned, span, everyone)
        if link.coin(self.probability) or link.step == 1:
            slopes = basis.slopes(oracles.gradients(z), z, span, everyone)
            sent, learned = await together(link.uplink(None, slopes), link.uplink(self.compressor, change))
            anchor, gradient = z, basis.mean_gradient(sent, z, span)
        else:
            learned = await link.uplink(self.compressor, change)
        step = attempted(link, lambda: projected_step(state.hessian, mu, gradient), like=z)
        s = await link.broadcast(anchor - step - z, self.down)
        learned.own.add_to(state.learned, scale=a)
        basis.add_mean(state.hessian, learned, a, span)
        return State(z + b * s, anchor, gradient, state.learned, state.hessian, span)

    def point(self, state: State) -> Tensor:
        return state.z
