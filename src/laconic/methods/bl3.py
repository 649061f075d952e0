"""BL3, Basis Learn in a basis of positive semidefinite matrices: a model of the Hessian that is never too small."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, ClassVar

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
from laconic.methods._hessian_learning import attempted, learning_rate, newton_step, of_hessians
from laconic.methods.bases import PSDBasis


@dataclass
class State:
    """Coefficients at the workers; at the server those too, and for each worker b_i, w_i and grad f_i(w_i)."""

    x: Server  # (*shape)
    learned: Worker  # L_i, (local, K)
    copies: Server  # all L_i, (n, K)
    ratios: Server  # all b_i, (n,)
    points: Server  # all w_i, (n, *shape)
    gradients: Server  # all grad f_i(w_i), (n, *shape)


@dataclass(frozen=True)
class BL3(Method):
    """In `psd_basis`, x = (mean H_i)^{-1} mean (H_i w_i - grad f_i(w_i)) with H_i >= hess f_i(z_i), no projection.

    z_i is the last model that worker i got. H_i has the coefficients b (L_i + 2 c_i) - 2 c_i, c_i = max(floor,
    max |L_i|), and b is the largest of b_i = max (h_i(hess f_i(z_i)) + 2 c_i) / (L_i + 2 c_i) over the coefficients: so
    those of H_i are at least those of hess f_i(z_i), and no matrix of the basis has a negative eigenvalue. `cohort`
    random workers act per iteration: they take x, send C(h_i(hess f_i(x)) - L_i), learn L_i as in `bl1`, and send b_i
    (after learning); with probability p, by a coin for each worker that all know, they send their gradients at x too,
    and w_i becomes x. With the identity on Hessians and all workers this is Newton's method by the last x's Hessian.

    Guarantee (local, from the paper, recalled): that of `bl2`. That H is at least the mean of the hess f_i(z_i) is a
    fact of every iteration, and convex problems always have a step.

    Reconstructed, not re-read in the paper. Deviations: the server keeps L_i, w_i and the gradients of all workers, so
    that c_i needs no message and gradients travel alone; the model is sent at full width. Its H and H w are put as
    b L_i + 2 (b - 1) c_i, for b (L_i + 2 c_i) - 2 c_i as in the paper cancels where b is near 1.

    Parameters
    ----------
    compressor : C, of the coefficients' change.
    cohort : how many workers take part.
    probability : p, of a gradient.
    learning_rate : a; None is theory's.
    floor : below which no c_i falls; it matters only where nothing is learned yet.

    >>> from laconic.compressors.topk import TopK
    >>> str(BL3(TopK(k=60), cohort=4))
    'bl3(topk(k=60), cohort=4)'
    """

    basis: ClassVar[PSDBasis] = PSDBasis()

    compressor: Compressor
    cohort: Annotated[int, Count(1)] = 1
    probability: Annotated[float, Interval(0.0, 1.0, open="low")] = 1.0
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None
    floor: Annotated[float, Interval(0.0, open="low")] = 1e-9

    name = "bl3"
    example = "bl3(topk(k=0.05), cohort=2, probability=0.5)"
    source = basis_learn("Algorithm 3, BL3")

    def settled(self, setting: Setting) -> BL3:
        few_of(self, self.cohort, setting)
        rate = learning_rate(self, self.learning_rate, self.compressor, of_hessians(setting))
        return dataclasses.replace(self, learning_rate=rate)

    def guarantee(self, setting: Setting) -> Guarantee:
        return near(setting, "theorem on BL3")

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        first = self.basis.coefficients(oracles.hessians(x), oracles.d)
        sent, gradients = await together(link.uplink(None, first), link.uplink(None, oracles.gradients(x)))
        return State(
            x,
            sent.own.dense(),
            add_each(x.new_zeros((link.n, first.shape[1])), sent),
            x.new_ones(link.n),
            x.expand(link.n, *x.shape).clone(),
            add_each(x.new_zeros((link.n, *x.shape)), gradients),
        )

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a, who = number(self.learning_rate), link.sample(self.cohort)
        speaking = renewed(link, who, self.probability)
        x = attempted(link, lambda: self._step(state), like=state.x)
        held = await link.broadcast(x, to=who)
        known = memory.gathered(state.learned, torch.from_numpy(who.rows))
        asked = self.basis.coefficients(oracles.hessians(held, who.rows), oracles.d)
        packet = link.compress(self.compressor, asked - known, who)
        packet.decoded.scatter(known, np.arange(len(who.rows)), a)
        shift = 2.0 * self._size(known)
        ratios = asked.add_(shift).div_(known.add_(shift)).amax(dim=1)
        learned, ratio, gradients = await together(
            link.uplink(packet),
            link.uplink(None, ratios, who),
            link.uplink(None, oracles.gradients(held, speaking.rows), speaking),
        )
        learned.own.add_to(state.learned, scale=a)
        add_each(state.copies, learned, a)
        put_each(state.ratios, ratio, who)
        put_each(state.gradients, gradients, speaking)
        state.points[torch.from_numpy(speaking.members)] = x
        return dataclasses.replace(state, x=x)

    def _size(self, learned: Tensor) -> Tensor:
        """c_i, (rows, 1)."""
        low, high = learned.aminmax(dim=1, keepdim=True)
        return torch.maximum(high, -low).clamp(min=self.floor)

    def model(self, state: State) -> Tensor:
        """The coefficients of all H_i, (n, K), at the server."""
        b = state.ratios.max()
        return (b * state.copies).add_(2.0 * (b - 1.0) * self._size(state.copies))

    def _step(self, state: State) -> Tensor:
        """x, the minimiser of the mean of the models that the server has of the f_i."""
        model = self.model(state)
        right = mean(self.basis.products(model, state.points, None) - state.gradients)
        hessian = self.basis.matrices(mean(model)[None], state.x.numel())[0]
        return newton_step(hessian, 0.0, right)

    def point(self, state: State) -> Tensor:
        return state.x
