"""SCAM: the memory chooses which coordinates of the gradient itself are sent. As in the slides, and repaired."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.compressors.composition import Composition, Sparsifier
from laconic.compressors.impk import Importance
from laconic.core.compressor import Compressor, Packet, Sparse
from laconic.core.entry import Source
from laconic.core.estimator import Estimator, Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.rows import norm2
from laconic.core.state import Server, Worker
from laconic.core.theory import Guarantee, NoTheorem, Setting

_SOURCE = Source(
    "Khafizov",
    2025,
    "Adaptive compression in distributed optimization",
    where="slides (in Russian), algorithm 1; no paper is known",
)


@dataclass
class Memory:
    """What SCAM keeps."""

    error: Worker  # e_i, (local, *shape)


@dataclass
class ShiftedMemory:
    """What SCAM-21 keeps."""

    error: Worker  # e_i, (local, *shape)
    shift: Worker  # h_i, (local, *shape)
    estimate: Server  # h = mean h_i, (*shape)


def realised_delta(gradients: Tensor, sent: Tensor) -> Tensor:
    """||sent_r||^2 / ||gradient_r||^2 per row, (rows, *shape) each; 1 where the gradient vanishes.

    Assumption (13) of the slides bounds it from below by a constant. With one worker, what was sent is the estimate.

    >>> realised_delta(torch.tensor([[3.0, 4.0], [0.25, 0.0]]), torch.tensor([[0.0, 4.0], [0.0, 0.0]]))
    tensor([0.6400, 0.0000])
    """
    whole = norm2(gradients)
    return torch.where(whole > 0.0, norm2(sent) / whole, torch.ones_like(whole))


def _chosen(packet: Packet) -> Tensor:
    """Where a message keeps values, also where such a value is zero: flat positions in (rows, *shape)."""
    decoded = packet.decoded
    if not isinstance(decoded, Sparse):
        raise ValueError(f"{packet.compressor} gave a message without a support; use a sparsifier such as topk")
    rows, d = len(decoded.offsets) - 1, math.prod(decoded.shape)
    return decoded.indices + torch.from_numpy(np.repeat(np.arange(rows) * d, np.diff(decoded.offsets)))


def chosen(link: Link, compressor: Compressor, v: Tensor, error: Tensor) -> tuple[Packet, Tensor]:
    """The messages C(m_i . v_i), m_i the support of C(error_i + v_i), same coins in both, and flat positions of m_i."""
    first = link.compress(compressor, v, plus=error)
    places = _chosen(first)
    masked = torch.zeros_like(v)
    masked.view(-1)[places] = v.reshape(-1)[places]
    return link.again(first, masked), places


@dataclass(frozen=True)
class Choosing(Mechanism, ABC):
    """A mechanism whose compressor is asked for its support before it is asked for its values."""

    compressor: Compressor

    lazy = True
    source = _SOURCE

    def __post_init__(self) -> None:
        super().__post_init__()
        c = self.compressor
        if not isinstance(c, (Sparsifier, Composition)) and Importance not in c.borrows:
            raise ValueError(
                f"{type(self).__name__}(compressor={c}) : compressor must be a sparsifier, which keeps some of the "
                "coordinates, as topk and impk do"
            )

    def guarantee(self, setting: Setting, estimator: Estimator, step: float | None) -> Guarantee:
        raise NoTheorem(
            f"no theorem covers {self}: that of the slides assumes that what is sent keeps a fixed share of the "
            "gradient's square norm, which the algorithm does not imply; give an explicit step"
        )


@dataclass(frozen=True)
class SCAM(Choosing):
    """m_i = support of C(e_i + v_i); worker i sends c_i = C(m_i . v_i) and keeps e_i <- e_i + v_i - c_i.

    The memory only says where to look: what it holds is never sent, and where a coordinate is sent it does not
    shrink. Start: e_i = 0. Both calls of C draw the same coins and work with the same importances. m_i are the
    coordinates that C keeps, also where the value kept is zero; a threshold may then refuse m_i . v_i what it gave to
    e_i + v_i, so prefer compressors that count. The slides have one worker; here the server averages.
    Their index slip in the update of e (t - 1 for t) is read as above.

    No guarantee. The slides' theorem (14), one worker and TopK: for step < 2 / L, f - f* shrinks by
    1 - mu step (2 - L step) delta, where ||c||^2 >= delta ||v||^2 (13). This is so in each step with the delta of
    that step (:func:`realised_delta`), but no delta > 0 holds in all: f = (x_1^2 / 2 + x_2^2) / 2 from (2, 0.9) with
    step 1 / L = 1 and Top-1 sends zero in its fourth round. With several workers whose gradients do not vanish at
    the solution a distance from it remains that does not shrink with the step (see :class:`SCAM21`).

    Parameters
    ----------
    compressor : a sparsifier, one with importances, or a composition of one with another compressor.

    >>> from laconic.compressors.topk import TopK
    >>> str(SCAM(TopK(k=0.05)))
    'scam(topk(k=0.05))'
    """

    name = "scam"
    example = "scam(topk(k=0.05))"

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await self.exchange(v, Memory(torch.zeros_like(v)), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        packet, _ = chosen(link, self.compressor, v, memory.error)
        sent = await link.uplink(packet)
        memory.error += v
        sent.own.add_to(memory.error, scale=-1.0)
        return sent.mean.dense(), memory


@dataclass(frozen=True)
class SCAMReset(Choosing):
    """SCAM that forgets what it owes where it has sent: e_i <- (1 - m_i) . (e_i + v_i). A variant of ours.

    A coordinate that was sent waits for its turn again, so that none is left out for ever. With several workers
    whose gradients do not vanish at the solution it keeps SCAM's distance, for c_i is still a part of v_i.

    No guarantee, as for :class:`SCAM`.

    Parameters
    ----------
    compressor : a sparsifier, one with importances, or a composition of one with another compressor.

    >>> from laconic.compressors.topk import TopK
    >>> str(SCAMReset(TopK(k=0.05)))
    'scam_reset(topk(k=0.05))'
    """

    name = "scam_reset"
    example = "scam_reset(topk(k=0.05))"

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        return await self.exchange(v, Memory(torch.zeros_like(v)), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        packet, places = chosen(link, self.compressor, v, memory.error)
        sent = await link.uplink(packet)
        memory.error += v
        memory.error.view(-1)[places] = 0.0
        return sent.mean.dense(), memory


@dataclass(frozen=True)
class SCAM21(Choosing):
    """SCAM with resets on u_i = v_i - h_i: c_i = C(m_i . u_i), h_i <- h_i + c_i, and the estimate is h = mean h_i.

    m_i is the support of C(e_i + u_i), and e_i <- (1 - m_i) . (e_i + u_i). A variant of ours after EF21: what is sent
    vanishes at the solution, also where the gradients of single workers do not, so that it can converge to it
    with a constant step, if that is small enough. Start: e_i = 0, h_i = C(v_i).

    No guarantee: the coordinates of e_i + u_i that are largest need not hold a fixed share of u_i.

    Parameters
    ----------
    compressor : a sparsifier, one with importances, or a composition of one with another compressor.

    >>> from laconic.compressors.topk import TopK
    >>> str(SCAM21(TopK(k=0.05)))
    'scam_21(topk(k=0.05))'
    """

    name = "scam_21"
    example = "scam_21(topk(k=0.05))"

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, ShiftedMemory]:
        zero = torch.zeros_like(v)
        return await self.exchange(v, ShiftedMemory(zero, zero.clone(), v.new_zeros(v.shape[1:])), link)

    async def exchange(
        self, v: Tensor, memory: ShiftedMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, ShiftedMemory]:
        u = v - memory.shift
        packet, places = chosen(link, self.compressor, u, memory.error)
        sent = await link.uplink(packet)
        sent.own.add_to(memory.shift)
        sent.mean.add_to(memory.estimate)
        memory.error += u
        memory.error.view(-1)[places] = 0.0
        return memory.estimate, memory
