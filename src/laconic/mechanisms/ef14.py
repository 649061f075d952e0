"""EF14, the classical error feedback, with the step outside or inside the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.core.compressor import Compressor
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, contractive_only, full_gradients_only
from laconic.core.state import Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting, estimates, known

_SOURCE = Source(
    "Seide, Fu, Droppo, Li, Yu",
    2014,
    "1-bit stochastic gradient descent and its application to data-parallel distributed training of speech DNNs",
)
_THEOREM = Source(
    "Beznosikov, Horvath, Richtarik, Safaryan",
    2020,
    "On biased compression for distributed learning",
    "2002.12410",
    "step 1 / (14 (2 / alpha + B) L), B = 0 for full gradients",
)


@dataclass
class Memory:
    """What EF14 keeps."""

    error: Worker  # e_i, (local, *shape)


async def _feed(compressor: Compressor, v: Tensor, memory: Memory, link: Link) -> tuple[Tensor, Memory]:
    sent = await link.uplink(compressor, v, plus=memory.error)
    memory.error += v
    sent.own.add_to(memory.error, scale=-1.0)
    return sent.mean.dense(), memory


def _guarantee(mechanism: Mechanism, compressor: Compressor, setting: Setting, estimator: Estimator) -> Guarantee:
    full_gradients_only(mechanism, estimator)
    alpha = contractive_only(mechanism, compressor, setting)
    if not setting.convex:
        raise NoTheorem(f"the theorem of {mechanism} needs convex f_i; give an explicit step")
    c = setting.constants
    worst, _ = known(L_max=c.L_max, mu=c.mu)
    return Guarantee(
        alpha / (28.0 * worst),
        _THEOREM,
        sure=False,
        leans_on=estimates(L_max=c.L_max),
        assumes=(
            "f_i strongly convex and smooth",
            "converges to a neighbourhood proportional to the step, and to x* only if grad f_i(x*) = 0 for all i",
        ),
    )


@dataclass(frozen=True)
class EF14(Mechanism):
    """Worker i sends c_i = C(e_i + v_i) and keeps what was not sent: e_i <- e_i + v_i - c_i. Step outside the memory.

    With a constant step and a positively homogeneous compressor this equals :class:`EF14Inside`. Where the step
    varies use that one: there the memory is in units of x.

    Guarantee: step <= alpha / (28 L_max), constants recalled; a floor proportional to the step remains unless all
    grad f_i(x*) vanish.

    Parameters
    ----------
    compressor : contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF14(TopK(k=0.01)))
    'ef14(topk(k=0.01))'
    """

    compressor: Compressor

    name = "ef14"
    aliases = ("ef",)
    example = "ef14(topk(k=0.05))"
    lazy = True
    source = _SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await _feed(self.compressor, v, Memory(torch.zeros_like(v)), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        return await _feed(self.compressor, v, memory, link)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        return _guarantee(self, self.compressor, setting, estimator)


@dataclass(frozen=True)
class EF14Inside(Mechanism):
    """EF14 with the step inside the memory: p_i = e_i + step v_i, c_i = C(p_i), e_i <- p_i - c_i, x <- x - mean c_i.

    The virtual iterate x - mean e_i then moves by exactly -step mean v_i, whatever the steps.

    Parameters
    ----------
    compressor : contractive.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF14Inside(TopK(k=0.01)))
    'ef14_inside(topk(k=0.01))'
    """

    compressor: Compressor

    name = "ef14_inside"
    example = "ef14_inside(topk(k=0.05))"
    lazy = True
    takes_step = True
    source = _SOURCE

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await _feed(self.compressor, v, Memory(torch.zeros_like(v)), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        return await _feed(self.compressor, v, memory, link)

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        return _guarantee(self, self.compressor, setting, estimator)
