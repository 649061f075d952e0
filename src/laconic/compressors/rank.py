"""Low rank: matrices as a few of their singular triples, exact or sketched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from laconic.core.compressor import Compressor, Contractive, Decoded, Dense
from laconic.core.entry import Count, Source
from laconic.core.keys import Keys
from laconic.core.message import Message, Schema, Slot
from laconic.core.problem import single_threaded
from laconic.wire.coding import Bits

Factors = tuple[Tensor, Tensor]
_LAYOUT = (
    "rows x rank values of the left factor, then columns x rank of the right one, row-major, full width; "
    "vectors and small matrices as they are"
)


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: the first axis against the rest."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def _compresses(rank: int, shape: tuple[int, ...]) -> bool:
    rows, columns = _sides(shape)
    return rank * (rows + columns) < rows * columns


def _claim(rank: int, d: int) -> Contractive:
    """min(rows, columns) is at most sqrt(d), whatever the shape; what has no more than `rank` is sent exactly."""
    return Contractive(min(1.0, rank / max(1, math.isqrt(d))))


def _schema(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Schema:
    width = Bits(8 * dtype.itemsize)
    if not _compresses(rank, shape):
        return (Slot(width, dtype, math.prod(shape)),)
    rows, columns = _sides(shape)
    return Slot(width, dtype, rows * rank), Slot(width, dtype, columns * rank)


@single_threaded
def _codes(v: Tensor, rank: int, factors: Callable[[Tensor, int], Factors]) -> tuple[Tensor, ...]:
    """The factors of each worker's matrix. One at a time, as LAPACK does anyway: the bits are those of it alone."""
    if not _compresses(rank, tuple(v.shape[1:])):
        return (v.reshape(-1),)
    rows, columns = _sides(tuple(v.shape[1:]))
    matrices = v.reshape(v.shape[0], rows, columns)
    left, right = v.new_full((v.shape[0], rows, rank), math.nan), v.new_full((v.shape[0], columns, rank), math.nan)
    for row in range(v.shape[0]):
        matrix = matrices[row].to(torch.float64)
        scale = matrix.abs().max()
        if torch.isfinite(scale):  # else nothing sensible can be said, and the receiver shall see it
            own, other = factors(matrix / torch.where(scale > 0, scale, 1.0), row)
            left[row], right[row] = own * scale, other
    return left.view(-1), right.view(-1)


def _decode(rank: int, message: Message, shape: tuple[int, ...], dtype: torch.dtype) -> Decoded:
    if not _compresses(rank, shape):
        return Dense(message.codes[0].view(message.rows, *shape))
    rows, columns = _sides(shape)
    left, right = message.codes[0].view(-1, rows, rank), message.codes[1].view(-1, columns, rank)
    product = torch.zeros((message.rows, rows, columns), dtype=dtype)
    for column in range(rank):  # added in order: a batched product's bits would depend on the batch
        product += left[:, :, column, None] * right[:, None, :, column]
    return Dense(product.view(message.rows, *shape))


def _truncated(matrix: Tensor, rank: int) -> Factors:
    """The best approximation of a rank: U Sigma and V; the largest entry of every column of V is positive."""
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    right = v[:rank].T
    signs = torch.where(right.gather(0, right.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)
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
    layout = _LAYOUT
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
        return _schema(self.rank, shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        return _codes(v, self.rank, lambda matrix, row: _truncated(matrix, self.rank))

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _decode(self.rank, message, shape, dtype)


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
    layout = _LAYOUT
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
        return _schema(self.rank, shape, dtype)

    def codes(self, v: Tensor, keys: Keys) -> tuple[Tensor, ...]:
        columns = _sides(tuple(v.shape[1:]))[1]
        width = min(self.rank + self.oversampling, *_sides(tuple(v.shape[1:])))

        def factors(matrix: Tensor, row: int) -> Factors:
            test = keys.at([row]).normal(columns * width).view(columns, width)
            return _sketched(matrix, test, self.rank, self.powers)

        return _codes(v, self.rank, factors)

    def decode(self, message: Message, shape: tuple[int, ...], dtype: torch.dtype, keys: Keys) -> Decoded:
        return _decode(self.rank, message, shape, dtype)
