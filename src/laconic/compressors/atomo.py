"""ATOMO: a random few of the singular triples, scaled to be unbiased."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._matrices import (
    balanced,
    compresses,
    largest_is_positive,
    longest_short_side,
    normalised,
    product,
    sides,
    whole,
)
from laconic.core.compressor import Compressor, Decoded, Dense, Unbiased
from laconic.core.entry import Count, Source
from laconic.core.keys import Keys
from laconic.core.message import CountIn, Message, Schema, Slot
from laconic.core.problem import single_threaded
from laconic.wire.coding import Bits


def probabilities(sigma: Tensor, rank: int) -> Tensor:
    """p_j = min(1, c sigma_j) with sum r, for descending sigma (float64) of which more than r are positive; else ones.

    The largest are set to 1 one after another, until c times the next one is no more than 1.
    """
    tails = sigma.flip(0).cumsum(0).flip(0)
    for ones in range(min(rank, len(sigma))):
        p = sigma * ((rank - ones) / torch.where(tails[ones] > 0, tails[ones], 1.0))
        if p[ones] <= 1.0:
            p[:ones] = 1.0
            return torch.where(tails[ones] > 0, p, 1.0)
    return torch.ones_like(sigma)


@dataclass(frozen=True)
class Atomo(Compressor):
    """Each singular triple by a coin of its own: sum of (sigma_j / p_j) u_j v_j' with p_j = min(1, c sigma_j), sum r.

    A tensor is a matrix, its first axis against the rest. Vectors, scalars and matrices for which r (rows + columns) is
    no less than rows times columns travel as they are. Messages vary in size: r triples on average, and the matrix
    that is meant, as it is, where the triples would be no shorter.

    Claim: unbiased with omega = min(rows, columns) / r - 1, independent over workers (derived). The variance is the
    sum of sigma_j^2 (1 / p_j - 1), and these p_j minimise it among all with the same sum (Wang et al.), among them
    p_j = r / min(rows, columns), where it is omega ||x||^2: attained by flat spectra. As with `rank` the claim is the
    most over all shapes of d coordinates, max(0, floor(sqrt(d)) / r - 1), and the share is that of a vector, 1.
    Pitfalls: a whole decomposition in float64 per message; where singular values coincide, their vectors, and so what
    single messages say, may differ between LAPACKs. What is not finite becomes NaN everywhere.

    Parameters
    ----------
    rank : r, how many triples are sent on average.

    >>> Atomo(rank=2).claim(d=100, n=3)
    Unbiased(omega=4.0)
    """

    rank: Annotated[int, Count(1)] = 1

    name = "atomo"
    example = "atomo(rank=2)"
    layout = (
        "how many values follow (as many bits as rows x columns has), then per triple rows values of the left and"
        " columns of the right vector, full width; rows x columns values: the matrix itself; vectors and small matrices"
        " as they are, without the number"
    )
    source = Source(
        "Wang, Sievert, Liu, Charles, Papailiopoulos, Wright",
        2018,
        "ATOMO: communication-efficient learning via atomic sparsification",
        "1806.04090",
    )

    def claim(self, d: int, n: int) -> Unbiased:
        return Unbiased(max(0.0, longest_short_side(d) / self.rank - 1.0))

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        if not compresses(self.rank, shape):
            return (whole(shape, dtype),)
        most = math.prod(shape)
        number = Slot(Bits(most.bit_length()), torch.int64, 1)
        return number, Slot(Bits(8 * dtype.itemsize), dtype, CountIn(0, most))

    @single_threaded
    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        shape = tuple(v.shape[1:])
        if not compresses(self.rank, shape):
            return (v.reshape(-1),)
        matrices = v.reshape(v.shape[0], *sides(shape))
        uniform = keys.uniform(min(sides(shape)))
        messages = [_triples(matrix, self.rank, uniform[row]) for row, matrix in enumerate(matrices)]
        numbers = torch.tensor([len(message) for message in messages], dtype=torch.int64)
        return numbers, torch.cat([v.new_zeros(0), *messages])

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        if not compresses(self.rank, shape):
            return Dense(message.codes[0].view(message.rows, *shape))
        out = torch.zeros((message.rows, *sides(shape)), dtype=dtype)
        offsets = message.offsets[1]
        for row in range(message.rows):
            out[row] = _matrix(message.codes[1][offsets[row] : offsets[row + 1]], sides(shape), dtype)
        return Dense(out.view(message.rows, *shape))


def _triples(matrix: Tensor, rank: int, uniform: Tensor) -> Tensor:
    """The values that are sent of a matrix: left and right vectors of the triples whose uniform number is below p_j."""
    dtype, (rows, columns) = matrix.dtype, matrix.shape
    normal, scale = normalised(matrix)
    if not torch.isfinite(scale):
        return torch.full((rows * columns,), math.nan, dtype=dtype)
    u, sigma, v = torch.linalg.svd(normal, full_matrices=False)
    p = probabilities(sigma, rank)
    kept = ((uniform < p) & (sigma > 0)).nonzero()[:, 0]
    signs = largest_is_positive(v.T[:, kept])
    left, right = balanced(u[:, kept] * (sigma[kept] / p[kept]) * signs, v.T[:, kept] * signs, scale, dtype)
    if len(kept) * (rows + columns) < rows * columns:
        return torch.cat([left, right]).T.reshape(-1)
    return product(left[None], right[None], dtype).view(-1)


def _matrix(values: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The matrix that is meant. Values beyond whole triples, which nobody sends, mean nothing."""
    rows, columns = size
    if len(values) == rows * columns:
        return values.view(size)
    count = len(values) // (rows + columns)
    triples = values[: count * (rows + columns)].view(count, rows + columns).T
    return product(triples[None, :rows], triples[None, rows:], dtype)[0]
