"""BL2, Basis Learn with partial participation: FedNL-PP with Hessians in any basis, and gradients now and then."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Count, Interval
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import mean
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting
from laconic.kernels import memory
from laconic.methods._basis_learn import add_each, basis_learn, few_of, near, put_each, renewed
from laconic.methods._hessian_learning import attempted, learning_rate, newton_step
from laconic.methods.bases import Basis, StandardBasis


@dataclass
class State:
    """Coefficients at the workers; at the server those too, and for each worker l_i, w_i and what it sent of its
    gradient there, and the mean Hessian as svec.
    """

    x: Server  # (*shape)
    learned: Worker  # L_i, (local, K)
    copies: Server  # all L_i, (n, K)
    errors: Server  # all l_i, (n,)
    points: Server  # all w_i, (n, *shape)
    slopes: Server  # of grad f_i(w_i), (n, *what a slope is)
    hessian: Server  # mean H_i, (d (d + 1) / 2,)
    span: Any  # what the basis has told both ends


@dataclass(frozen=True)
class BL2(Method):
    """As `fednl_pp`, with the coefficients of Hessians in a basis: `cohort` random workers act per iteration.

    x = (mean (H_i + l_i I))^{-1} mean ((H_i + l_i I) w_i - grad f_i(w_i)), H_i with the coefficients L_i. A worker of
    the cohort takes x, sends C(h_i(hess f_i(x)) - L_i), learns L_i as in `bl1`, and sends l_i = ||hess f_i(x) - H_i||_F
    (after learning); with probability p, by a coin for each worker that all know, it sends its gradient at x too, and
    w_i becomes x. In the standard basis with p = 1 this is `fednl_pp`, whose guarantee it has (local, recalled).

    Deviations: the server keeps L_i, w_i and the gradients of all workers, where the paper's workers send changes of
    (H_i + l_i I) w_i - grad f_i(w_i): d numbers, which in `data_basis` become r. The model is sent at full width: the
    paper compresses x less each worker's own point, a message for each of them; its compressor here is the identity.

    Parameters
    ----------
    compressor : C, of the coefficients' change.
    cohort : how many workers take part.
    basis : standard_basis, data_basis or psd_basis.
    probability : p, of a gradient.
    learning_rate : a; None is theory's.

    >>> from laconic.compressors.topk import TopK
    >>> str(BL2(TopK(k=6), cohort=4, probability=0.5))
    'bl2(topk(k=6), cohort=4, probability=0.5)'
    """

    compressor: Compressor
    cohort: Annotated[int, Count(1)] = 1
    basis: Basis = StandardBasis()
    probability: Annotated[float, Interval(0.0, 1.0, open="low")] = 1.0
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "bl2"
    example = "bl2(topk(k=0.05), cohort=2, probability=0.5)"
    source = basis_learn("Algorithm 2, BL2")

    def settled(self, setting: Setting) -> BL2:
        few_of(self, self.cohort, setting)
        coefficients = dataclasses.replace(setting, shape=(self.basis.size(setting),))
        rate = learning_rate(self, self.learning_rate, self.compressor, coefficients)
        return dataclasses.replace(self, learning_rate=rate)

    def guarantee(self, setting: Setting) -> Guarantee:
        return near(setting, "theorem on BL2")

    async def init(self, oracles: Oracles, link: Link) -> State:
        x, basis, everyone = oracles.start(), self.basis, np.arange(link.local)
        span = await basis.agree(oracles, link)
        nothing = x.new_zeros((link.local, basis.width(oracles.d, span)))
        first = basis.changes(oracles, x, nothing, span, everyone)
        slopes = basis.slopes(oracles.gradients(x), x, span, everyone)
        sent, gradients = await together(link.uplink(None, first), link.uplink(None, slopes))
        hessian = basis.zero(x, span)
        basis.add_mean(hessian, sent, 1.0, span)
        return State(
            x,
            sent.own.dense(),
            add_each(x.new_zeros((link.n, first.shape[1])), sent),
            x.new_zeros(link.n),
            x.expand(link.n, *x.shape).clone(),
            add_each(x.new_zeros((link.n, *slopes.shape[1:])), gradients),
            hessian,
            span,
        )

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a, basis, span = number(self.learning_rate), self.basis, state.span
        who = link.sample(self.cohort)
        speaking = renewed(link, who, self.probability)
        x = attempted(link, lambda: self._step(state), like=state.x)
        held = await link.broadcast(x, to=who)
        known = memory.gathered(state.learned, torch.from_numpy(who.rows))
        change = basis.changes(oracles, held, known, span, who.rows)
        packet = link.compress(self.compressor, change, who)
        rest = memory.copied(change)  # the message may be a view of the change
        packet.decoded.scatter(rest, np.arange(len(who.rows)), -a)
        slopes = basis.slopes(oracles.gradients(held, speaking.rows), held, span, speaking.rows)
        learned, errors, gradients = await together(
            link.uplink(packet),
            link.uplink(None, basis.lengths(rest, oracles.d), who),
            link.uplink(None, slopes, speaking),
        )
        learned.own.add_to(state.learned, scale=a)
        add_each(state.copies, learned, a)
        basis.add_mean(state.hessian, learned, a, span)
        put_each(state.errors, errors, who)
        put_each(state.slopes, gradients, speaking)
        state.points[torch.from_numpy(speaking.members)] = x
        return dataclasses.replace(state, x=x)

    def _step(self, state: State) -> Tensor:
        """x, the minimiser of the mean of the models that the server has of the f_i."""
        basis, span, points = self.basis, state.span, state.points
        lengths = state.errors.view(-1, *(1 for _ in state.x.shape))
        images = basis.products(state.copies, points, span) + lengths * points
        right = mean(images - basis.gradients(state.slopes, points, span))
        return newton_step(state.hessian, mean(state.errors), right)

    def point(self, state: State) -> Tensor:
        return state.x
