"""Majority vote: one bit per coordinate up, and the sign of the sum down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from laconic.compressors.sign import Sign
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.floats import wide
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.theory import Guarantee, NoTheorem, Setting


@dataclass(frozen=True)
class MajorityVote(Mechanism):
    """Every worker sends sign(v_i), the server sends sign(sum_i sign(v_i)), and that is the estimate (signSGD).

    A bit per coordinate either way, and no model goes down: every party steps for itself. sign(0) = +1 both times, so
    that a zero votes for +1 and a tie of an even number of workers is +1 too.

    No guarantee. With a constant step x ends up in a cycle as wide as the step, for signs do not shrink; the paper's
    rates are for decreasing steps and large batches or symmetric unimodal noise. And where the workers' data differ
    the cycle is elsewhere than at the solution: in one dimension, for f_i = a_i (x - c_i)^2 / 2 with any a_i > 0, the
    votes are those of sum |x - c_i|, whose minimiser is the median of the c_i (the lower one for an even number, by
    the rule for ties); f is minimised by their mean, weighted with a_i.

    >>> str(MajorityVote())
    'majority_vote'
    """

    name = "majority_vote"
    aliases = ("signsgd",)
    example = "majority_vote"
    public = True
    source = Source(
        "Bernstein, Zhao, Azizzadenesheli, Anandkumar",
        2018,
        "signSGD with majority vote is communication efficient and fault tolerant",
        "1810.05291",
        "algorithm 1 without momentum",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        return await self.exchange(v, None, link)

    async def exchange(self, v: Tensor, memory: Any, link: Link, probe: Probe | None = None) -> tuple[Tensor, Any]:
        sent = await link.uplink(Sign(), v.to(wide(v.dtype)))  # wide: so many votes are counted exactly
        votes = torch.zeros(v.shape[1:], dtype=wide(v.dtype))
        sent.mean.add_to(votes, scale=float(link.n))  # the sum: a tie is exactly zero
        return (await link.broadcast(votes, Sign())).to(v.dtype), memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        raise NoTheorem(
            f"no stepsize makes {self} converge to the solution when the workers' data differ, and with a constant one "
            "it ends in a cycle; give an explicit step, and a decreasing schedule"
        )
