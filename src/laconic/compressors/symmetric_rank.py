"""Low rank for symmetric matrices: a packed upper triangle as a few eigenvalues and eigenvectors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._matrices import largest_is_positive, normalised, to_dtype
from laconic.core.compressor import Compressor, Contractive, Decoded, Dense
from laconic.core.entry import Count, Source
from laconic.core.floats import wide
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.core.problem import single_threaded
from laconic.core.rows import svec_to_matrix
from laconic.wire.coding import Bits


def _side(rank: int, d: int) -> int:
    """The side of the matrix whose upper triangle has d entries; 0 if there is none, or `rank` triples are no less."""
    side = (math.isqrt(8 * d + 1) - 1) // 2
    return side if side * (side + 1) // 2 == d and rank * (side + 1) < d else 0


@dataclass(frozen=True)
class SymmetricRank(Compressor):
    """The best approximation of rank r of a symmetric matrix, by its r eigenvalues of largest magnitude.

    The vector is an svec: the upper triangle of a matrix by rows, off-diagonal entries times sqrt(2), as `fednl` hands
    over Hessians; lengths and errors are then those of the matrix in Frobenius norm. Tensors are flattened. What is no
    triangle, d not side (side + 1) / 2, travels as it is, and so does a triangle where r (side + 1) values are no less.

    Claim: contractive with alpha = r / side, attained by matrices with eigenvalues of equal magnitude (derived: the r
    largest of side squares have at least that share); 1 for what travels as it is. Deterministic; eigenvalues of equal
    magnitude are taken in ascending order. The work is done in float64, side^3 of it per message; what is not finite
    becomes NaN everywhere. Where eigenvalues coincide, so may what is kept differ between LAPACKs.

    Parameters
    ----------
    rank : r.

    >>> SymmetricRank(rank=2).claim(d=55, n=3)
    Contractive(alpha=0.2)
    """

    rank: Annotated[int, Count(1)] = 1

    name = "symmetric_rank"
    aliases = ("eigen_rank",)
    example = "symmetric_rank(rank=1)"
    layout = (
        "r eigenvalues, then side x r values of their eigenvectors, row-major, full width; what is no triangle, or a"
        " small one, as it is"
    )
    source = Source(
        "Safaryan, Islamov, Qian, Richtarik",
        2021,
        "FedNL: making Newton-type methods applicable to federated learning",
        "2106.02969",
        "Rank-R",
    )

    def claim(self, d: int, n: int) -> Contractive:
        side = _side(self.rank, d)
        return Contractive(self.rank / side if side else 1.0)

    def share(self, d: int, n: int) -> float:
        side = _side(self.rank, d)
        return self.rank * (side + 1) / d if side else 1.0

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        width, d = Bits(8 * dtype.itemsize), math.prod(shape)
        side = _side(self.rank, d)
        if not side:
            return (Slot(width, dtype, d),)
        return Slot(width, dtype, self.rank), Slot(width, dtype, side * self.rank)

    @single_threaded
    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        d = math.prod(v.shape[1:])
        side = _side(self.rank, d)
        if not side:
            return (v.reshape(-1),)
        values, vectors = v.new_empty(v.shape[0], self.rank), v.new_empty(v.shape[0], side, self.rank)
        for row, packed in enumerate(v.reshape(v.shape[0], d)):
            values[row], vectors[row] = _dominant(packed, side, self.rank)
        return values.view(-1), vectors.view(-1)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        side = _side(self.rank, math.prod(shape))
        if not side:
            return Dense(message.codes[0].view(message.rows, *shape))
        values = message.codes[0].view(-1, self.rank).to(wide(dtype))
        vectors = message.codes[1].view(-1, side, self.rank).to(wide(dtype))
        i, j = torch.triu_indices(side, side)
        total = torch.zeros((message.rows, math.prod(shape)), dtype=wide(dtype))
        for column in range(self.rank):  # added in order: a batched product's bits would depend on the batch
            vector = vectors[:, :, column]
            total += (values[:, column, None] * vector)[:, i] * vector[:, j]
        total = torch.where(i == j, total, total * math.sqrt(2.0))
        return Dense(total.to(dtype).view(message.rows, *shape))


def _dominant(packed: Tensor, side: int, rank: int) -> tuple[Tensor, Tensor]:
    """The eigenvalues of largest magnitude (rank,) of an svec, and their vectors (side, rank) of largest entry 1.

    So that a value is the largest entry of its term, and neither overflows nor vanishes where that does not.
    """
    dtype = packed.dtype
    packed, scale = normalised(packed)
    if not torch.isfinite(scale):
        nothing = torch.full((side + 1, rank), math.nan, dtype=dtype)
        return nothing[0], nothing[1:]
    values, vectors = torch.linalg.eigh(svec_to_matrix(packed, side))
    order = torch.sort(values.abs(), descending=True, stable=True).indices[:rank]
    values, vectors = values[order], vectors[:, order]
    most = vectors.abs().amax(0)
    vectors = vectors * largest_is_positive(vectors) / most
    return to_dtype(values * most.square() * scale, dtype), to_dtype(vectors, dtype)
