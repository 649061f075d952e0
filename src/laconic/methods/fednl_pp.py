"""FedNL-PP: FedNL with partial participation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Count, Interval
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.method import Method, number
from laconic.core.problem import Oracles
from laconic.core.rows import norm2, svec_products
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting
from laconic.kernels import memory
from laconic.methods._hessian_learning import LEARNED, attempted, learning_rate, local, newton_step, of_hessians, paper


@dataclass
class State:
    """What FedNL-PP keeps: H_i, l_i and g_i = (H_i + l_i I) w_i - grad f_i(w_i) of each worker, and their means."""

    x: Server  # (*shape)
    shift: Worker  # H_i, (local, d (d + 1) / 2)
    error: Worker  # l_i, (local,)
    image: Worker  # g_i, (local, *shape)
    hessian: Server  # H, (d (d + 1) / 2,)
    mean_error: Server  # l, ()
    mean_image: Server  # g, (*shape)


def _images(hessians: Tensor, errors: Tensor, x: Tensor, gradients: Tensor) -> Tensor:
    """(H_i + l_i I) x - grad f_i(x) per row, from svecs."""
    lengths = errors.view(-1, *(1 for _ in x.shape))
    return svec_products(hessians, x) + lengths * x - gradients


@dataclass(frozen=True)
class FedNLPP(Method):
    """FedNL where `cohort` random workers take part per iteration; nobody computes for the others.

    x = (H + l I)^{-1} g with the means of H_i, l_i, g_i; a worker of the cohort takes x as its point w_i, sends
    S_i = C(hess f_i(x) - H_i), learns H_i <- H_i + a S_i, and sends the changes of l_i = ||hess f_i(x) - H_i||_F (after
    learning) and of g_i = (H_i + l_i I) w_i - grad f_i(w_i). With all workers this is option 2 with the Hessian learned
    before the step. Start: H_i = hess f_i(x^0) and g_i, sent at full width and counted.

    Guarantee (local, from the paper): in expectation that of `fednl`, with the share of the cohort in the rates.

    Parameters
    ----------
    compressor : of the svec of the Hessian's change.
    cohort : how many workers take part.
    learning_rate : a; None is theory's.

    >>> from laconic.compressors.topk import TopK
    >>> str(FedNLPP(TopK(k=100), cohort=4))
    'fednl_pp(topk(k=100), cohort=4)'
    """

    compressor: Compressor
    cohort: Annotated[int, Count(1)] = 1
    learning_rate: Annotated[float | None, Interval(0.0, 1.0, open="low")] = None

    name = "fednl_pp"
    example = "fednl_pp(topk(k=0.05), cohort=2)"
    source = paper("Algorithm 2")

    def settled(self, setting: Setting) -> FedNLPP:
        if self.cohort > setting.n:
            raise ValueError(
                f"FedNLPP(cohort={self.cohort}) : the problem has {setting.n} workers; cohort must not exceed them"
            )
        rate = learning_rate(self, self.learning_rate, self.compressor, of_hessians(setting))
        return dataclasses.replace(self, learning_rate=rate)

    def guarantee(self, setting: Setting) -> Guarantee:
        return local(setting, paper("Theorem C.4"), LEARNED)

    async def init(self, oracles: Oracles, link: Link) -> State:
        x = oracles.start()
        hessians = oracles.hessians(x).clone()
        error = hessians.new_zeros(hessians.shape[0])
        image = _images(hessians, error, x, oracles.gradients(x))
        sent, images = await together(link.uplink(None, hessians), link.uplink(None, image))
        nothing = hessians.new_zeros(())
        return State(x, hessians, error, image, sent.mean.dense(), nothing, images.mean.dense())

    async def iterate(self, state: State, oracles: Oracles, link: Link) -> State:
        a, who = number(self.learning_rate), link.sample(self.cohort)
        rows, everyone = torch.from_numpy(who.rows), np.arange(len(who.rows))
        x = attempted(link, lambda: newton_step(state.hessian, state.mean_error, state.mean_image), like=state.x)
        held = await link.broadcast(x, to=who)
        hessians = memory.gathered(state.shift, rows)
        change, _ = oracles.hessian_changes(held, hessians, who.rows)
        packet = link.compress(self.compressor, change, who)
        packet.decoded.scatter(hessians, everyone, a)
        rest = memory.copied(change)  # the message may be a view of the change
        packet.decoded.scatter(rest, everyone, -a)
        error = norm2(rest).sqrt()
        image = _images(hessians, error, held, oracles.gradients(held, who.rows))
        learned, errors, images = await together(
            link.uplink(packet),
            link.uplink(None, error - state.error[rows], who),
            link.uplink(None, image - state.image[rows], who),
        )
        learned.own.add_to(state.shift, scale=a)
        state.error[rows], state.image[rows] = error, image
        learned.mean.add_to(state.hessian, scale=a)
        errors.mean.add_to(state.mean_error)
        images.mean.add_to(state.mean_image)
        return dataclasses.replace(state, x=x)

    def point(self, state: State) -> Tensor:
        return state.x
