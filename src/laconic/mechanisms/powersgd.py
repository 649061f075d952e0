"""PowerSGD: rank-r approximation by warm-started power iteration, with error feedback."""

from __future__ import annotations

import math
from abc import ABC
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.entry import Count, Source
from laconic.core.estimator import Probe
from laconic.core.link import Link
from laconic.core.mechanism import Mechanism
from laconic.core.problem import single_threaded
from laconic.core.state import Shared, Worker


@dataclass
class Memory:
    """What PowerSGD keeps; empty tensors where vectors are sent as they are."""

    error: Worker  # e_i, (local, *shape)
    right: Shared  # Q, (columns, rank)


@dataclass
class AlternatingMemory:
    """What its alternating form keeps; empty tensors where vectors are sent as they are."""

    error: Worker  # e_i, (local, *shape)
    left: Shared  # P, (rows, rank)
    right: Shared  # Q, (columns, rank)
    round: int  # exchanges so far


@single_threaded
def _orthonormal(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """An orthonormal basis (rows, r) column by column, and which columns collapse: bool (r,), and zero in the basis.

    A column collapses where next to nothing of it is left once the columns before are taken out: what remains would
    be a direction that rounding, or the factorisation, has made up.
    """
    basis, triangle = torch.linalg.qr(matrix)
    left, whole = triangle.diagonal().abs(), triangle.norm(dim=0)  # of a column; that of the matrix's own
    collapsed = left <= 4.0 * max(matrix.shape) * torch.finfo(matrix.dtype).eps * whole
    return torch.where(collapsed, 0.0, basis), collapsed


def _drawn(link: Link, kind: str, like: Tensor) -> Tensor:
    """A Gaussian factor of the shape of `like`, the same on all parties."""
    return link.keys(kind).shared.normal(like.numel()).view(like.shape).to(like.dtype)


@dataclass(frozen=True)
class LowRank(Mechanism, ABC):
    """Tensors become matrices, first axis against the rest; those that a rank-r message does not shorten stay.

    Everything travels in all-reduces, so every party knows the estimate.
    """

    rank: Annotated[int, Count(1)] = 1

    public = True

    def _compresses(self, shape: torch.Size) -> bool:
        if len(shape) < 2:
            return False
        rows, columns = shape[0], math.prod(shape[1:])
        return self.rank * (rows + columns) < rows * columns

    def _factors(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros of the shapes of P and Q."""
        if not self._compresses(v.shape[1:]):
            return v.new_zeros(0, 0), v.new_zeros(0, 0)
        return v.new_zeros(v.shape[1], self.rank), v.new_zeros(math.prod(v.shape[2:]), self.rank)


@dataclass(frozen=True)
class PowerSGD(LowRank):
    """M_i = v_i + e_i; P = orth(mean M_i Q); Q_i = M_i' P; Q = mean Q_i; estimate P Q'; e_i = M_i - P Q_i'.

    Tensors become matrices, first axis against the rest. Vectors, scalars and matrices for which r (rows + columns)
    is no less than rows times columns are averaged as they are. Everything travels in two all-reduces per exchange,
    so every party knows the estimate. The estimate is P P' mean M_i, whatever Q is.

    The warm start can collapse: where Q is orthogonal to the rows of mean M_i nothing is seen of it, and the same Q
    would come back for ever. A column of mean M_i Q without a direction of its own is therefore left out, and the
    next Q has a column from the shared seed in its place, which all parties decide by the same all-reduced numbers.
    No message is longer for it: what a collapsed round leaves out is in the errors.
    The error uses the worker's own Q_i, as the authors' code does; subtracting the mean product instead has the same
    sum over workers. No worst-case contraction is known with warm start, so there is no theorem: the step is explicit.

    Parameters
    ----------
    rank : r.

    >>> str(PowerSGD(rank=2))
    'powersgd(rank=2)'
    """

    name = "powersgd"
    example = "powersgd(rank=2)"
    source = Source(
        "Vogels, Karimireddy, Jaggi",
        2019,
        "PowerSGD: practical low-rank gradient compression for distributed optimization",
        "1905.13727",
        "Algorithm 1",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        right = _drawn(link, "right", self._factors(v)[1])
        return await self.exchange(v, Memory(torch.zeros_like(v), right), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if not self._compresses(v.shape[1:]):
            return await link.all_reduce(v), memory
        matrices = (v + memory.error).flatten(2)
        left, collapsed = _orthonormal(await link.all_reduce(matrices @ memory.right))
        own = matrices.transpose(1, 2) @ left
        right = await link.all_reduce(own)
        memory.error = (matrices - left @ own.transpose(1, 2)).view(v.shape)
        memory.right = torch.where(collapsed, _drawn(link, "right", right), right) if collapsed.any() else right
        return (left @ right.T).view(v.shape[1:]), memory


@dataclass(frozen=True)
class AlternatingPowerSGD(LowRank):
    """PowerSGD that moves one factor per exchange: Q = orth(Q), P = mean M_i Q, and the next time the other way round.

    M_i = v_i + e_i; the estimate is P Q' with the new factor and the orthonormal old one, e_i = M_i - P_i Q' or
    M_i - P Q_i'. A single all-reduce of r rows or r columns per exchange: half of PowerSGD's. Where the old factor has
    a column without a direction of its own, that is drawn anew from the shared seed before it is used. Tensors and
    theory are those of :class:`PowerSGD`. Start: a Gaussian Q.

    Parameters
    ----------
    rank : r.

    >>> str(AlternatingPowerSGD(rank=2))
    'alternating_powersgd(rank=2)'
    """

    name = "alternating_powersgd"
    example = "alternating_powersgd(rank=2)"
    source = Source(
        "Vogels, Karimireddy, Jaggi",
        2019,
        "PowerSGD: practical low-rank gradient compression for distributed optimization",
        "1905.13727",
        "one factor per step, as in the authors' later code",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, AlternatingMemory]:
        left, right = self._factors(v)
        return await self.exchange(v, AlternatingMemory(torch.zeros_like(v), left, right, 0), link)

    async def exchange(
        self, v: Tensor, memory: AlternatingMemory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, AlternatingMemory]:
        if not self._compresses(v.shape[1:]):
            return await link.all_reduce(v), memory
        matrices, forwards = (v + memory.error).flatten(2), memory.round % 2 == 0
        given = matrices if forwards else matrices.transpose(1, 2)
        old = self._basis(memory.right if forwards else memory.left, link)
        own = given @ old
        new = await link.all_reduce(own)
        left_out = given - own @ old.T
        memory.error = (left_out if forwards else left_out.transpose(1, 2)).reshape(v.shape)
        memory.left, memory.right = (new, old) if forwards else (old, new)
        memory.round += 1
        estimate = new @ old.T if forwards else old @ new.T
        return estimate.view(v.shape[1:]), memory

    def _basis(self, factor: Tensor, link: Link) -> Tensor:
        """An orthonormal basis, with drawn directions where the factor's columns have none of their own."""
        basis, collapsed = _orthonormal(factor)
        if collapsed.any():
            basis, _ = _orthonormal(torch.where(collapsed, _drawn(link, "factor", factor), factor))
        return basis
