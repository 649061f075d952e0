"""What the low-rank entries share: tensors as matrices, factors as they travel, and the sums they mean."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from laconic.core.compressor import Decoded, Dense
from laconic.core.floats import wide
from laconic.core.message import Message, Schema, Slot
from laconic.core.problem import single_threaded
from laconic.wire.coding import Bits

Factors = tuple[Tensor, Tensor]
LAYOUT = (
    "rows x rank values of the left factor, then columns x rank of the right one, row-major, full width; "
    "vectors and small matrices as they are"
)


def sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of a tensor as a matrix: the first axis against the rest."""
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def compresses(rank: int, shape: tuple[int, ...]) -> bool:
    """Whether the factors of a rank are fewer values than the matrix."""
    rows, columns = sides(shape)
    return rank * (rows + columns) < rows * columns


def longest_short_side(d: int) -> int:
    """The most that min(rows, columns) can be for a matrix of d entries, whatever its shape; at least 1."""
    return max(1, math.isqrt(d))


def whole(shape: tuple[int, ...], dtype: torch.dtype) -> Slot:
    """Every value as it is."""
    return Slot(Bits(8 * dtype.itemsize), dtype, math.prod(shape))


def factor_schema(rank: int, shape: tuple[int, ...], dtype: torch.dtype) -> Schema:
    """Both factors, or every value where that is less."""
    if not compresses(rank, shape):
        return (whole(shape, dtype),)
    width, (rows, columns) = Bits(8 * dtype.itemsize), sides(shape)
    return Slot(width, dtype, rows * rank), Slot(width, dtype, columns * rank)


def largest_is_positive(columns: Tensor) -> Tensor:
    """A sign per column (1, r) that makes its entry of largest magnitude positive: decompositions leave it open."""
    return torch.where(columns.gather(0, columns.abs().argmax(0, keepdim=True)) < 0, -1.0, 1.0)


def to_dtype(values: Tensor, dtype: torch.dtype) -> Tensor:
    """In another dtype; what is too large for it becomes its largest number."""
    most = torch.finfo(dtype).max
    return values.clamp(-most, most).to(dtype)


def balanced(left: Tensor, right: Tensor, scale: Tensor, dtype: torch.dtype) -> Factors:
    """`scale * left` and `right` (float64) as they travel: the largest magnitude in a column of `right` is 1, or 0.

    So that the entries of `left` are those of the product, and neither overflows nor vanishes where that does not.
    """
    most = right.abs().amax(0, keepdim=True)
    most = torch.where(most > 0, most, 1.0)
    return to_dtype(left * most * scale, dtype), to_dtype(right / most, dtype)


@single_threaded
def factor_codes(v: Tensor, rank: int, factors: Callable[[Tensor, int], Factors]) -> tuple[Tensor, ...]:
    """The factors of each worker's matrix. One at a time, as LAPACK does anyway: the bits are those of it alone.

    `factors` gets a matrix in float64 whose largest magnitude is 1 (0 for zeros), and the row of its worker.
    """
    if not compresses(rank, tuple(v.shape[1:])):
        return (v.reshape(-1),)
    rows, columns = sides(tuple(v.shape[1:]))
    matrices = v.reshape(v.shape[0], rows, columns)
    left, right = v.new_full((v.shape[0], rows, rank), math.nan), v.new_full((v.shape[0], columns, rank), math.nan)
    for row in range(v.shape[0]):
        matrix, scale = normalised(matrices[row])
        if torch.isfinite(scale):  # else nothing sensible can be said, and the receiver shall see it
            left[row], right[row] = balanced(*factors(matrix, row), scale, v.dtype)
    return left.view(-1), right.view(-1)


def normalised(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix in float64 over its largest magnitude, and that."""
    matrix = matrix.to(torch.float64).contiguous()  # LAPACK rounds by the way a matrix lies
    scale = matrix.abs().max()
    return matrix / torch.where(scale > 0, scale, 1.0), scale


def product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum of the outer products of the columns of left (n, rows, r) and right (n, columns, r).

    Added in order: a batched product's bits would depend on the batch.
    """
    left, right = left.to(wide(dtype)), right.to(wide(dtype))
    total = torch.zeros((left.shape[0], left.shape[1], right.shape[1]), dtype=left.dtype)
    for column in range(left.shape[2]):
        total += left[:, :, column, None] * right[:, None, :, column]
    return total.to(dtype)


def factor_decode(rank: int, message: Message, shape: tuple[int, ...], dtype: torch.dtype) -> Decoded:
    """What `factor_codes` says."""
    if not compresses(rank, shape):
        return Dense(message.codes[0].view(message.rows, *shape))
    rows, columns = sides(shape)
    left, right = message.codes[0].view(-1, rows, rank), message.codes[1].view(-1, columns, rank)
    return Dense(product(left, right, dtype).view(message.rows, *shape))
