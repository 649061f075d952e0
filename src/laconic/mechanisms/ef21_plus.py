"""EF21+: of two compressed messages, whichever says more."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Packet
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.flight import together
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism, full_gradients_only
from laconic.core.rows import mean, norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, Setting, estimates, known
from laconic.mechanisms.ef21 import contraction, three_point


@dataclass
class Memory:
    """What EF21+ keeps."""

    shift: Worker  # g_i, (local, *shape)
    shifts: Server  # g_1, ..., g_n as the server holds them, (n, *shape)


@dataclass(frozen=True)
class EF21Plus(Mechanism):
    """EF21, or the gradient's own message where that is closer: g_i <- C(v_i) or g_i + C(v_i - g_i).

    Worker i takes what is closer to v_i, at a byte of flag. A message that replaces g_i can be used only by a server
    that holds every single g_i: n vectors. Start: g_i = C(v_i).

    Guarantee: that of `ef21`, since what is taken is never worse than EF21's; C of a difference and C of the gradient
    draw the same coins, so that this holds in expectation for random compressors too (the paper asks for deterministic
    ones). A compressor with a state of its own is refused.

    Parameters
    ----------
    compressor : contractive, without a state.

    >>> from laconic.compressors.topk import TopK
    >>> str(EF21Plus(TopK(k=0.05)))
    'ef21_plus(topk(k=0.05))'
    """

    compressor: Compressor

    name = "ef21_plus"
    example = "ef21_plus(topk(k=0.05))"
    lazy = True
    source = Source(
        "Richtarik, Sokolov, Fatkhullin",
        2021,
        "EF21: a new, simpler, theoretically better, and practically faster error feedback",
        "2106.05203",
        "EF21+",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        packet = link.compress(self.compressor, v)
        if packet.state is not None:
            raise ValueError(f"{self} compares two messages, and {self.compressor} keeps a state; use ef21")
        sent = await link.uplink(packet, apart=True)
        shifts = v.new_zeros(link.n, *v.shape[1:])
        sent.mean.spread(shifts)
        return mean(shifts), Memory(sent.own.dense(), shifts)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        change = v - memory.shift
        whole = link.compress(self.compressor, v)
        moved = link.again(whole, change)
        anew = _error(v, whole) < _error(change, moved)
        chosen = link.again(whole, torch.where(_columns(anew, v), v, change))
        sent, flags = await together(
            link.uplink(chosen, apart=True), link.uplink(None, anew.to(torch.uint8), apart=True)
        )
        memory.shift.masked_fill_(_columns(anew, v), 0.0)
        sent.own.add_to(memory.shift)
        replaced = torch.zeros(link.n, dtype=v.dtype)
        flags.mean.spread(replaced)
        memory.shifts.masked_fill_(_columns(replaced > 0.0, memory.shifts), 0.0)
        sent.mean.spread(memory.shifts)
        return mean(memory.shifts), memory

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        full_gradients_only(self, estimator)
        theta, beta = contraction(self, self.compressor, setting)
        c = setting.constants
        (spread,) = known(L_tilde=c.L_tilde)
        leans = estimates(L=c.L, L_tilde=c.L_tilde, mu=c.polyak)
        return three_point(self.source, setting, spread, theta, beta, step, leans)


def _error(v: Tensor, packet: Packet) -> Tensor:
    """||C(v) - v||^2 per row."""
    left = v.clone()
    packet.decoded.scatter(left, np.arange(len(v)), -1.0)
    return norm2(left)


def _columns(mask: Tensor, like: Tensor) -> Tensor:
    """One bool per row (rows,) as a mask of `like` (rows, *shape)."""
    return mask.view(-1, *[1] * (like.dim() - 1))
