"""Power iteration: a matrix's projection on a subspace that is improved with every message."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._matrices import (
    LAYOUT,
    Factors,
    compresses,
    factor_codes,
    factor_decode,
    factor_schema,
    sides,
)
from laconic.core.compressor import Compressor, Decoded
from laconic.core.entry import Count, Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema
from laconic.core.state import Worker

_LOST = 2.0**-40  # what is left of a column below this share of ||M|| ||q|| is rounding


@dataclass
class Subspace:
    """Where the next message begins: Q of each worker."""

    right: Worker  # (local, columns, rank)


@dataclass(frozen=True)
class PowerIteration(Compressor):
    """M -> P P' M with P = orth(M Q) and then Q = M' P, which each worker keeps for its next message.

    The compressor of PowerSGD for one message (Vogels et al., Algorithm 1, without its averages): one step of subspace
    iteration, cheaper than `rank` and, where matrices change slowly, soon nearly as good. The first Q is gaussian, of
    each worker for itself. A receiver holds no Q, so both P and M' P travel. Vectors, scalars and small matrices travel
    as they are, as with `rank`, and need no Q.

    Claim: none. No worst-case contraction is known with warm start: a Q orthogonal to all rows of M would leave nothing
    of it. What is certain is that a projection never expands: ||P P' M|| <= ||M|| and ||M - P P' M|| <= ||M||; and
    that with a fresh gaussian Q, as in the first message, alpha is r / min(rows, columns) in expectation, as of
    `random_rank` without oversampling. A column of M Q that is zero or depends on those before is replaced at once by
    M g with a gaussian g that the worker draws anew, so that a worker whose matrix turns away is not stuck; if that
    is lost too, M has a smaller rank, and the column is zero. P is made by Gram and Schmidt's method in float64, twice.

    Parameters
    ----------
    rank : r.

    >>> str(PowerIteration(rank=2))
    'power_iteration(rank=2)'
    """

    rank: Annotated[int, Count(1)] = 1

    name = "power_iteration"
    example = "power_iteration(rank=2)"
    layout = LAYOUT
    source = Source(
        "Vogels, Karimireddy, Jaggi",
        2019,
        "PowerSGD: practical low-rank gradient compression for distributed optimization",
        "1905.13727",
        "Algorithm 1",
    )

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return factor_schema(self.rank, shape, dtype)

    def start(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Subspace | None:
        if not compresses(self.rank, shape):
            return None
        columns = sides(shape)[1]
        right = keys.scope("right").normal(columns * self.rank).view(-1, columns, self.rank)
        return Subspace(right.to(wide(dtype)))

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        """A first message."""
        return self.advance(v, keys, self.start(tuple(v.shape[1:]), v.dtype, keys))[0]

    def advance(self, v: Tensor, keys: Keys, state: Subspace | None) -> tuple[tuple[Tensor, ...], Subspace | None]:
        if state is None:
            return (v.reshape(-1),), None
        moved = state.right.clone()

        def factors(matrix: Tensor, row: int) -> Factors:
            fresh = keys.scope("redraw").at([row])
            left, right, following = _iterate(matrix, state.right[row].to(torch.float64), fresh)
            moved[row] = following
            return left, right

        codes = factor_codes(v, self.rank, factors)
        return codes, dataclasses.replace(state, right=moved)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return factor_decode(self.rank, message, shape, dtype)


def _iterate(matrix: Tensor, right: Tensor, fresh: Keys) -> tuple[Tensor, Tensor, Tensor]:
    """P, M' P, and the next Q: M' P, but where a column was lost what was drawn in its place."""
    rank, size = right.shape[1], torch.linalg.vector_norm(matrix)
    left, image, start = matrix.new_zeros(matrix.shape[0], rank), matrix @ right, right
    redrawn = None
    for column in range(rank):
        new = _orthogonal(image[:, column], left, _LOST * size * torch.linalg.vector_norm(start[:, column]))
        if new is None:
            if redrawn is None:
                redrawn = fresh.normal(right.numel()).view_as(right)
                start = right.clone()
            start[:, column] = redrawn[:, column]
            least = _LOST * size * torch.linalg.vector_norm(redrawn[:, column])
            new = _orthogonal(matrix @ redrawn[:, column], left, least)
        if new is not None:
            left[:, column] = new
    product = matrix.T @ left
    return left, product, torch.where(left.any(0, keepdim=True), product, start)


def _orthogonal(vector: Tensor, basis: Tensor, least: Tensor) -> Tensor | None:
    """The unit vector of what is orthogonal to the columns of a basis (zero ones allowed); None if that is lost."""
    for _ in range(2):
        vector = vector - basis @ (basis.T @ vector)
        norm = torch.linalg.vector_norm(vector)
        if not norm > least:
            return None
        vector = vector / norm
        least = torch.zeros_like(least)  # the second time only rounding is taken away
    return vector
