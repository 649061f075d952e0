"""Low rank: matrices as a few of their singular triples, exact or sketched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.compressors._matrices import (
    LAYOUT,
    Factors,
    factor_codes,
    factor_decode,
    factor_schema,
    largest_is_positive,
    longest_short_side,
    sides,
)
from laconic.core.compressor import Compressor, Contractive, Decoded
from laconic.core.entry import Count, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema


def _claim(rank: int, d: int) -> Contractive:
    """What has no more than `rank` singular values is sent exactly."""
    return Contractive(min(1.0, rank / longest_short_side(d)))


def _truncated(matrix: Tensor, rank: int) -> Factors:
    """The best approximation of a rank: U Sigma and V; the largest entry of every column of V is positive."""
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    right = v[:rank].T
    signs = largest_is_positive(right)
    return u[:, :rank] * sigma[:rank] * signs, right * signs


def _sketched(matrix: Tensor, test: Tensor, rank: int, powers: int) -> Factors:
    """The best approximation of a rank within the range of (M M')^powers M times `test`."""
    basis = torch.linalg.qr(matrix @ test).Q
    for _ in range(powers):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, right = _truncated(basis.T @ matrix, rank)
    return basis @ left, right


@dataclass(frozen=True)
class Rank(Compressor):
    """The best approximation of rank r, by the singular value decomposition of the first axis against the rest.

    Vectors, scalars and matrices for which r (rows + columns) is no less than rows times columns travel as they are.

    Claim: contractive with alpha = r / min(rows, columns), attained by orthogonal matrices (derived: the r largest of
    so many squares have at least that share). A claim is made for a number d of coordinates and not for a shape: it is
    the least over all shapes, min(1, r / floor(sqrt(d))); the share is that of a vector, 1, the most of any shape.
    Deterministic. The work is done in float64, rows x columns x min(rows, columns) of it per message; what is not
    finite becomes NaN everywhere. Where singular values coincide, so may what is kept differ between LAPACKs.

    Parameters
    ----------
    rank : r.

    >>> Rank(rank=2).claim(d=100, n=3)
    Contractive(alpha=0.2)
    """

    rank: Annotated[int, Count(1)] = 1

    name = "rank"
    aliases = ("svd",)
    example = "rank(rank=2)"
    layout = LAYOUT
    source = Source(
        "Wang, Sievert, Liu, Charles, Papailiopoulos, Wright",
        2018,
        "ATOMO: communication-efficient learning via atomic sparsification",
        "1806.04090",
        "its deterministic form; Rank-R in 2106.02969",
    )

    def claim(self, d: int, n: int) -> Contractive:
        return _claim(self.rank, d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return factor_schema(self.rank, shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return factor_codes(v, self.rank, lambda matrix, row: _truncated(matrix, self.rank))

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return factor_decode(self.rank, message, shape, dtype)


@dataclass(frozen=True)
class RandomRank(Compressor):
    """A rank-r approximation by a randomised singular value decomposition: cheap where r is small.

    The best rank-r approximation within the range of (M M')^powers M G, for a gaussian G of r + oversampling columns
    that every worker draws for itself. Vectors, scalars and small matrices travel as they are, as with `rank`.

    Claim: contractive with alpha = r / min(rows, columns) in expectation over G, fresh each round; equality for flat
    spectra without oversampling. It rests on an argument of monotonicity (the larger a singular value, the more of
    its direction is found) and numbers, not on a published theorem; any one draw may do worse. As with `rank` the claim
    is the least over all shapes of d coordinates, min(1, r / floor(sqrt(d))).

    Parameters
    ----------
    rank : r.
    oversampling : further columns of the sketch, cut off after the decomposition.
    powers : power iterations, with orthogonalisation in between; each sharpens the spectrum.

    >>> RandomRank(rank=2).claim(d=100, n=3)
    Contractive(alpha=0.2)
    """

    rank: Annotated[int, Count(1)] = 1
    oversampling: Annotated[int, Count(0)] = 4
    powers: Annotated[int, Count(0)] = 1

    name = "random_rank"
    aliases = ("rsvd",)
    example = "random_rank(rank=2)"
    layout = LAYOUT
    source = Source(
        "Halko, Martinsson, Tropp",
        2009,
        "Finding structure with randomness: probabilistic algorithms for constructing approximate matrix "
        "decompositions",
        "0909.4061",
        "Algorithms 4.4 and 5.1",
    )

    def claim(self, d: int, n: int) -> Contractive:
        return _claim(self.rank, d)

    def schema(self, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Schema:
        return factor_schema(self.rank, shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        columns = sides(tuple(v.shape[1:]))[1]
        width = min(self.rank + self.oversampling, *sides(tuple(v.shape[1:])))

        def factors(matrix: Tensor, row: int) -> Factors:
            test = keys.at([row]).normal(columns * width).view(columns, width)
            return _sketched(matrix, test, self.rank, self.powers)

        return factor_codes(v, self.rank, factors)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return factor_decode(self.rank, message, shape, dtype)
