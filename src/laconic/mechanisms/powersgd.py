"""PowerSGD: rank-r approximation by one warm-started power iteration, with error feedback."""

from __future__ import annotations

import math
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


@single_threaded
def _orthonormal(matrix: Tensor) -> Tensor:
    return torch.linalg.qr(matrix).Q


@dataclass(frozen=True)
class PowerSGD(Mechanism):
    """M_i = v_i + e_i; P = orth(mean M_i Q); Q_i = M_i' P; Q = mean Q_i; estimate P Q'; e_i = M_i - P Q_i'.

    Tensors become matrices, first axis against the rest. Vectors, scalars and matrices for which r (rows + columns)
    is no less than rows times columns are averaged as they are. Everything travels in two all-reduces per exchange,
    so every party knows the estimate. Where the new Q vanishes, it is drawn anew from the shared seed.
    The error uses the worker's own Q_i, as the authors' code does; subtracting the mean product instead has the same
    sum over workers. No worst-case contraction is known with warm start, so there is no theorem: the step is explicit.

    Parameters
    ----------
    rank : r.

    >>> str(PowerSGD(rank=2))
    'powersgd(rank=2)'
    """

    rank: Annotated[int, Count(1)] = 1

    name = "powersgd"
    example = "powersgd(rank=2)"
    public = True
    source = Source(
        "Vogels, Karimireddy, Jaggi",
        2019,
        "PowerSGD: practical low-rank gradient compression for distributed optimization",
        "1905.13727",
        "Algorithm 1",
    )

    async def init(self, v: Tensor, link: Link, probe: Probe | None = None) -> tuple[Tensor, Memory]:
        right = self._draw(v, link) if self._compresses(v.shape[1:]) else v.new_zeros(0, 0)
        return await self.exchange(v, Memory(torch.zeros_like(v), right), link)

    async def exchange(
        self, v: Tensor, memory: Memory, link: Link, probe: Probe | None = None
    ) -> tuple[Tensor, Memory]:
        if not self._compresses(v.shape[1:]):
            return await link.all_reduce(v), memory
        matrices = (v + memory.error).flatten(2)
        left = _orthonormal(await link.all_reduce(matrices @ memory.right))
        own = matrices.transpose(1, 2) @ left
        right = await link.all_reduce(own)
        memory.error = (matrices - left @ own.transpose(1, 2)).view(v.shape)
        memory.right = right if right.any() else self._draw(v, link)
        return (left @ right.T).view(v.shape[1:]), memory

    def _compresses(self, shape: torch.Size) -> bool:
        if len(shape) < 2:
            return False
        rows, columns = shape[0], math.prod(shape[1:])
        return self.rank * (rows + columns) < rows * columns

    def _draw(self, v: Tensor, link: Link) -> Tensor:
        columns = math.prod(v.shape[2:])
        return link.keys("right").shared.normal(columns * self.rank).view(columns, self.rank).to(v.dtype)
